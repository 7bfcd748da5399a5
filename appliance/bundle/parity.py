"""Parity: a step graph against the reference, with a cache, before anyone may use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.bundle import reference
from appliance.bundle.config import ModelConfig
from appliance.bundle.tokenizer import Tokenizer
from appliance.bundle.weights import Weights
from appliance.errors import StageError

TOLERANCE = 1e-3  # largest difference of two float32 logits
MASKED = np.float32(-1e9)  # not infinity: a row of it alone must stay a number
_FIRST, _LENGTH = 11, 16  # tokens in the first step, and in all

Step = Callable[[Mapping[str, NDArray[Any]]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Runs the graph once: its inputs by name, to `logits` and `new`."""


def text_ids(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Ids [2, 16] of plain text. Random ids drive a trained model to activations ten times those
    of text, and float32's rounding with them."""
    texts = [text * _LENGTH for text in ("The sun rose over the harbour. ", "太阳从港口升起。")]
    return np.asarray([tokenizer.encode(text)[:_LENGTH] for text in texts])


def check_parity(
    config: ModelConfig,
    weights: Weights,
    graphs: Mapping[str, Callable[[], Step]],
    ids: NDArray[np.int64] | None = None,
) -> dict[str, float]:
    """Run each graph on two sequences in two steps; gives its largest logit difference.

    `ids` [2, 16] are the sequences, random ones by default. Graphs are loaded one after the other,
    since each holds all weights. Raises StageError where a difference exceeds TOLERANCE.
    """
    if ids is None:
        ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, _LENGTH))
    expected = np.stack([reference.logits(config, weights, row.tolist()) for row in ids])
    found = {}
    for name, load in graphs.items():
        difference = float(np.max(np.abs(two_steps(config, load(), ids) - expected)))
        if not difference <= TOLERANCE:
            raise StageError(
                f"the {name} graph's logits differ from the model's by {difference:.2g}, "
                f"more than {TOLERANCE}",
                hint="This is a defect of the export; please report it with the model's "
                "config.json.",
            )
        found[name] = difference
    return found


def two_steps(config: ModelConfig, step: Step, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits [B, S, V] of `ids` [B, S]: the first tokens without a cache, the others with one."""
    batch, length = ids.shape
    kv, dim = config.num_key_value_heads, config.head_dim
    caches = np.zeros((2 * config.num_hidden_layers, batch, kv, length, dim), np.float32)
    found = []
    for start, end in ((0, _FIRST), (_FIRST, length)):
        new_length = end - start
        mask = np.full((batch, 1, new_length, length + new_length), MASKED, np.float32)
        mask[..., :start] = 0
        mask[..., length:] = np.where(np.tri(new_length, dtype=bool), np.float32(0), MASKED)
        places = [(row, at) for row in range(batch) for at in range(new_length)]
        logits, new = step(
            {
                "ids": ids[:, start:end].astype(np.int64),
                "pos": np.tile(np.arange(start, end, dtype=np.int64), (batch, 1)),
                "mask": mask,
                "last": np.asarray(places, np.int64),
                **{f"c{i}": np.ascontiguousarray(cache) for i, cache in enumerate(caches)},
            }
        )
        caches[:, :, :, start:end] = new
        found.append(logits.reshape(batch, new_length, -1))
    return np.concatenate(found, axis=1)


def onnx_step(path: Path) -> Step:
    """The ONNX graph in onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def step(feeds: Mapping[str, NDArray[Any]]) -> tuple[Any, Any]:
        logits, new = session.run(["logits", "new"], dict(feeds))
        return logits, new

    return step


def paddle_step(model: Path, params: Path) -> Step:
    """The Paddle graph in Paddle Inference."""
    from paddle import inference

    settings = inference.Config(str(model), str(params))
    settings.disable_glog_info()
    settings.disable_gpu()
    predictor = inference.create_predictor(settings)

    def step(feeds: Mapping[str, NDArray[Any]]) -> tuple[Any, Any]:
        for name in predictor.get_input_names():
            predictor.get_input_handle(name).copy_from_cpu(feeds[name])
        predictor.run()
        logits, new = (
            predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()
        )
        return logits, new

    return step
