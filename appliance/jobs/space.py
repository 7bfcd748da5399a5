"""Whether the disk has room for what a stage will write."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.errors import MachineError
from appliance.jobs.artifacts import read_manifest
from appliance.recipe import Recipe

SPARE = 128 << 20  # bytes left for logs, tokens, the store


def needed(stage: str, recipe: Recipe, inputs: Mapping[str, Path]) -> int:
    """Bytes that a stage may write at most, from the weights among its inputs.

    A checkpoint of a full training holds weights and AdamW's two moments, float32: three times
    the weights; `save_total_limit`, the best one, and the one being written are there at once. A
    graph is written as ONNX and as Paddle files. A bundle links or copies weights and graph.
    """
    weights = max((weight_bytes(path) for path in inputs.values()), default=0)
    checkpoints = (recipe.train.save_total_limit + 2) * 3
    factor = {
        "train": 0 if recipe.train.method == "lora" else checkpoints + 1,
        "merge": 1,
        "export": 3,
        "verify": 3,
    }
    return factor.get(stage, 0) * weights + SPARE


def weight_bytes(artifact: Path) -> int:
    """Bytes of the safetensors files of an artifact."""
    files: dict[str, dict[str, Any]] = read_manifest(artifact)["files"]
    return sum(int(e["size"]) for name, e in files.items() if name.endswith(".safetensors"))


def check_space(stage: str, recipe: Recipe, inputs: Mapping[str, Path], folder: Path) -> None:
    """Raise MachineError where the disk of `folder` has less room than the stage may need."""
    need, free = needed(stage, recipe, inputs), shutil.disk_usage(folder).free
    if free < need:
        raise MachineError(
            f"{stage} may write {need / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free",
            hint="Make room, or set APPLIANCE_HOME to a folder on a larger disk.",
        )
