"""Engines: the same step graph run by FastDeploy or by onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.engine.base import Engine

if TYPE_CHECKING:
    from appliance.bundle.read import Bundle

__all__ = ["Engine", "load_engine"]


def load_engine(
    bundle: Bundle,
    *,
    engine: str,
    backend: str = "onnxruntime",
    slots: int,
    max_length: int,
    threads: int | None = None,
) -> Engine:
    """Load a bundle's step graph into `engine` ("fastdeploy" or "onnxruntime")."""
    raise NotImplementedError
