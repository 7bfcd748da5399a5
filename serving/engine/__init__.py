"""Engines: the same step graph run by FastDeploy or by onnxruntime."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil

from appliance.errors import BundleError, MachineError
from serving.engine.base import Engine
from serving.engine.slots import SlotEngine

if TYPE_CHECKING:
    from appliance.bundle.read import Bundle, Graph

GIB = 1 << 30
BACKENDS = ("onnxruntime", "paddle", "openvino")  # FastDeploy's

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
    """Load a bundle's step graph into `engine`, "fastdeploy" or "onnxruntime".

    `backend` is FastDeploy's: "onnxruntime", "paddle" or "openvino". `threads` defaults to all
    cores. Raises BundleError where max_length exceeds the graph's, MachineError where the engine
    cannot run here; never takes another engine instead.
    """
    _check_room(bundle.graph, slots, max_length)
    threads = threads or len(os.sched_getaffinity(0))
    # Each runtime is imported only where it is asked for: one of them may be missing.
    if engine == "onnxruntime":
        from serving.engine.onnxruntime import OnnxRuntime

        runner = OnnxRuntime(bundle.graph.onnx, threads=threads)
        return SlotEngine(bundle.graph, runner, slots=slots, max_length=max_length)
    if engine == "fastdeploy" and backend == "onnxruntime" and bundle.graph.weights_apart:
        raise MachineError(
            "the ONNX Runtime inside FastDeploy reads no weights that lie beside the graph, "
            "as those over 2 GiB do",
            hint="Set serve.backend (--backend) to openvino or paddle, or serve.engine (--engine) "
            "to onnxruntime.",
        )
    if engine == "fastdeploy" and backend in BACKENDS:
        from serving.engine.process import ProcessEngine
        from serving.engine.worker import Settings

        return ProcessEngine(Settings(bundle.graph, backend, slots, max_length, threads))
    raise MachineError(
        f"there is no engine {engine!r} with backend {backend!r}",
        hint="Set serve.engine (--engine) to onnxruntime, or to fastdeploy with serve.backend "
        f"(--backend) {', '.join(BACKENDS)}.",
    )


def _check_room(graph: Graph, slots: int, max_length: int) -> None:
    """Refuse before the first long answer would: the caches grow to 2L·slots·KV·T·D float32."""
    if max_length > graph.max_length:
        raise BundleError(
            f"serve.max_length is {max_length}, the bundle's graph holds {graph.max_length} tokens",
            hint=f"Set serve.max_length (--max-length) to at most {graph.max_length}.",
        )
    needed = 2 * graph.layers * slots * graph.kv_heads * max_length * graph.head_dim * 4
    free = psutil.virtual_memory().available
    if needed > free:
        raise MachineError(
            f"{slots} slots of {max_length} tokens need {needed / GIB:.1f} GiB for their caches, "
            f"{free / GIB:.1f} GiB are free",
            hint="Lower serve.slots (--slots) or serve.max_length (--max-length).",
        )
