"""Export of a model folder's step graph, for Paddle and as ONNX, proven equal before it is used.

Writes `graph/inference.pdmodel`, `graph/inference.pdiparams`, `graph/model.onnx` and `graph.json`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance.bundle.config import ModelConfig
from appliance.bundle.tokenizer import Tokenizer
from appliance.bundle.weights import Weights
from appliance.errors import ModelError, StageError
from appliance.files import write_json

# What ONNX Runtime 1.12 and OpenVINO inside FastDeploy 1.0.7 read; newer runtimes read it too.
OPSET = 13
PHASES = ("build", "Paddle", "ONNX", "parity")

Progress = Callable[[int, int], None]
"""Told how many of the PHASES are done."""


def export_graph(
    model: Path, target: Path, *, max_length: int | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Export the model in the folder `model` into `target`; gives what graph.json says.

    `max_length` is the longest sequence in tokens, by default the model's own context. The process
    must have FLAGS_enable_pir_api=0 in its environment before paddle is imported. Raises
    ModelError for a model that is not whole, StageError where a graph's logits are not the model's.
    """
    config = ModelConfig.read(model)
    weights = Weights.open(model)
    weights.check(config.tensors(), str(model))
    length = max_length or config.max_position_embeddings
    if length > config.max_position_embeddings:
        raise ModelError(
            f"export.max_length is {length}; the model's context ends at "
            f"{config.max_position_embeddings} tokens",
            hint="Lower export.max_length, or leave it out.",
        )
    say = progress or (lambda done, total: None)
    folder = target / "graph"
    folder.mkdir(parents=True, exist_ok=True)
    graph = _build(config, weights, length)
    say(1, len(PHASES))
    _save_paddle(graph, config, folder / "inference")
    say(2, len(PHASES))
    _save_onnx(graph, config, folder)
    del graph
    say(3, len(PHASES))
    facts = _describe(config, length) | {"parity": _parity(model, config, weights, folder)}
    write_json(target / "graph.json", facts)
    say(4, len(PHASES))
    return facts


def _describe(config: ModelConfig, length: int) -> dict[str, Any]:
    return {
        "layers": config.num_hidden_layers,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_length": length,
        "onnx": "graph/model.onnx",
        "paddle_model": "graph/inference.pdmodel",
        "paddle_params": "graph/inference.pdiparams",
        "opset": OPSET,
    }


def _build(config: ModelConfig, weights: Weights, length: int) -> Any:
    import paddle

    from appliance.bundle.graph import StepGraph

    if paddle.get_flags("FLAGS_enable_pir_api")["FLAGS_enable_pir_api"]:
        raise StageError(
            "paddle was imported without FLAGS_enable_pir_api=0, so it cannot write .pdmodel files",
            hint="Set FLAGS_enable_pir_api=0 in the environment of the exporting process.",
        )
    graph = StepGraph(config, weights, length)
    graph.eval()
    return graph


def _save_paddle(graph: Any, config: ModelConfig, prefix: Path) -> None:
    import paddle

    from appliance.bundle.graph import input_spec

    static = paddle.jit.to_static(graph, input_spec=input_spec(config), full_graph=True)
    paddle.jit.save(static, str(prefix))
    prefix.with_suffix(".pdiparams.info").unlink(missing_ok=True)


def _save_onnx(graph: Any, config: ModelConfig, folder: Path) -> None:
    """Convert the program alone and put the weights in ourselves.

    With the weights paddle2onnx holds eight copies of them, and 2 GiB is its end.
    """
    import onnx
    import paddle2onnx

    from appliance.bundle import onnx_file

    with tempfile.TemporaryDirectory(dir=folder, prefix=".onnx-") as work:
        raw = Path(work) / "model.onnx"
        with _captured(Path(work) / "log") as log:
            paddle2onnx.export(
                str(folder / "inference.pdmodel"),
                str(Path(work) / "no.pdiparams"),
                str(raw),
                opset_version=OPSET,
                auto_upgrade_opset=False,
                enable_onnx_checker=False,  # it would miss the weights
                optimize_tool=None,
            )
        if not raw.is_file():
            said = log.read_text(errors="replace")[-500:]
            raise StageError(f"paddle2onnx wrote no graph: {said}")
        model = onnx.load(str(raw))
    caches = [f"c{i}" for i in range(2 * config.num_hidden_layers)]
    onnx_file.tidy(model, ["ids", "pos", "mask", "last", *caches], ["logits", "new"])
    parameters = graph.parameters()
    onnx_file.save(
        model,
        folder / "model.onnx",
        {parameter.name: parameter.numpy for parameter in parameters},
        external=sum(4 * parameter.size for parameter in parameters) > onnx_file.EXTERNAL_OVER,
    )


@contextmanager
def _captured(path: Path) -> Iterator[Path]:
    """Send what native code prints to a file: paddle2onnx warns hundreds of times about nothing."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with path.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            yield path
        except UnboundLocalError as error:  # how paddle2onnx ends when its converter failed
            raise StageError(
                f"paddle2onnx failed: {path.read_text(errors='replace')[-500:]}"
            ) from error
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            for number in saved:
                os.close(number)


def _parity(model: Path, config: ModelConfig, weights: Weights, folder: Path) -> dict[str, float]:
    from appliance.bundle.parity import check_parity, onnx_step, paddle_step, text_ids

    return check_parity(
        config,
        weights,
        {
            "ONNX": lambda: onnx_step(folder / "model.onnx"),
            "Paddle": lambda: paddle_step(
                folder / "inference.pdmodel", folder / "inference.pdiparams"
            ),
        },
        text_ids(Tokenizer.load(model)),
    )
