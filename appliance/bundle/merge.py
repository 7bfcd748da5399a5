"""Merging a LoRA adapter into its base: W + scale · A·B, in float32 (arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.bundle.config import ModelConfig, normal_config, read_config
from appliance.bundle.importer import copy_tokenizer
from appliance.bundle.names import paddlenlp_name
from appliance.bundle.weights import SINGLE, Progress, Weights, weights_sha256, write_weights
from appliance.errors import BundleError
from appliance.files import read_json, write_json


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as PaddleNLP trains it: lora_A [in, rank], lora_B [rank, out]."""

    factors: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    """By PaddleNLP's name of the weight that they change."""
    scale: float


def read_adapter(folder: Path) -> Adapter:
    """Read adapter.json and the weights beside it. Raises BundleError."""
    facts = _facts(folder)
    state = _adapter_state(folder)
    ends = (".lora_A", ".lora_B")
    layers = sorted(
        {name.removesuffix(end) for name in state for end in ends if name.endswith(end)}
    )
    factors = {}
    for layer in layers:
        missing = [end for end in ends if layer + end not in state]
        if missing:
            raise BundleError(
                f"{folder}: {layer}{missing[0]} is missing", hint="Train the adapter anew."
            )
        factors[f"{layer}.weight"] = (state[layer + ends[0]], state[layer + ends[1]])
    if not factors:
        raise BundleError(f"{folder} holds no LoRA weights", hint="Train the adapter anew.")
    return Adapter(factors, float(facts["scale"]))


def merge_adapter(
    base: Path, adapter: Path, target: Path, *, progress: Progress | None = None
) -> int:
    """Write base and adapter as one complete model folder, float32; gives the layers changed.

    Raises BundleError where the adapter was trained on other weights than `base` holds, or
    names a layer that it lacks.
    """
    trained_on, held = str(_facts(adapter)["base_sha256"]), weights_sha256(base)
    if held != trained_on:
        raise BundleError(
            f"the adapter was trained on weights {trained_on[:12]}…, the base holds {held[:12]}…",
            hint="Merge it into the base that it was trained on, or train it anew on this one.",
        )
    found, weights = read_adapter(adapter), Weights.open(base)
    by_name = {paddlenlp_name(name): name for name in weights.tensors}
    changes = {}
    for name, factors in found.factors.items():
        if name not in by_name:
            raise BundleError(
                f"the adapter changes {name}, which the base lacks", hint="Train the adapter anew."
            )
        changes[by_name[name]] = factors

    def load(name: str) -> NDArray[np.float32]:
        values = weights.float32(name)
        if name not in changes:
            return values
        a, b = changes[name]
        merged: NDArray[np.float32] = values + np.float32(found.scale) * (a @ b).T
        return merged

    write_float32(base, target, load, progress=progress)
    return len(changes)


def write_float32(
    source: Path,
    target: Path,
    load: Callable[[str], NDArray[np.float32]] | None = None,
    *,
    progress: Progress | None = None,
) -> None:
    """Write the model of `source` anew in float32; `load` gives weights that were changed."""
    target.mkdir(parents=True, exist_ok=True)
    raw = read_config(source)
    config = ModelConfig.parse(raw, where=str(source / "config.json"))
    weights = Weights.open(source)
    weights.check(config.tensors(), str(source))
    layout = {name: ("F32", shape) for name, shape in config.tensors().items()}
    write_weights(target / SINGLE, layout, load or weights.float32, progress=progress)
    copy_tokenizer(source, target)
    write_json(target / "config.json", normal_config(raw, config) | {"torch_dtype": "float32"})


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / "adapter.json"
    try:
        facts = read_json(path)
        scale = float(facts["alpha"]) / (
            float(facts["rank"]) ** 0.5 if facts["rslora"] else float(facts["rank"])
        )
        recorded = float(facts["scale"])
        str(facts["base_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{path} cannot be read: {error!r}", hint="Train the adapter anew."
        ) from error
    if abs(scale - recorded) > 1e-6 * abs(scale):
        raise BundleError(
            f"{path}: scale is {recorded}; alpha, rank and rslora make it {scale}",
            hint="The file was changed; train the adapter anew.",
        )
    return dict(facts)


def _adapter_state(folder: Path) -> dict[str, NDArray[np.float32]]:
    import paddle

    path = folder / "lora_model_state.pdparams"
    if not path.is_file():
        raise BundleError(f"{path} is missing", hint="Train the adapter anew.")
    state = paddle.load(str(path), return_numpy=True)
    return {name: _float32(values) for name, values in state.items() if ".lora_" in name}


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Paddle gives bfloat16 as its uint16 bits."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
