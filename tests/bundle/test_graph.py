"""The step graph gives the model's logits, in every runtime that may serve it."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from appliance.bundle import onnx_file, reference
from appliance.bundle.config import ModelConfig
from appliance.bundle.parity import MASKED, check_parity, onnx_step, two_steps
from appliance.bundle.read import open_bundle
from appliance.bundle.weights import Weights
from appliance.errors import MachineError, StageError
from serving.engine import load_engine
from tests.models import export_model, make_tiny_model

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "every-query-its-own-key, untied": {"kv_heads": 4, "tie": False},
    "one-key-for-all, wide heads": {"kv_heads": 1, "head_dim": 32},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 1e5},
    "llama3": {"rope_scaling": LLAMA3, "rope_theta": 5e5},
}


def expected(model: Path, ids: np.ndarray) -> np.ndarray:
    config, weights = ModelConfig.read(model), Weights.open(model)
    return np.stack([reference.logits(config, weights, row.tolist()) for row in ids])


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_llama(name: str, tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", **VARIANTS[name])
    export_model(model, tmp_path)
    config = ModelConfig.read(model)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (3, 120))
    found = two_steps(config, onnx_step(tmp_path / "graph" / "model.onnx"), ids)
    assert np.max(np.abs(found - expected(model, ids))) < 1e-4
    if config.rope_scaling is not None:
        plain = dataclasses.replace(config, rope_scaling=None)
        unscaled = reference.logits(plain, Weights.open(model), ids[0].tolist())
        assert np.max(np.abs(found[0] - unscaled)) > 0.1


BACKENDS = """
import sys, json
from pathlib import Path
import numpy as np, fastdeploy
from appliance.bundle.config import ModelConfig
from appliance.bundle.parity import check_parity
from appliance.bundle.weights import Weights
bundle, backend = Path(sys.argv[1]), sys.argv[2]
option = fastdeploy.RuntimeOption()
option.use_cpu()
if backend == "paddle":
    graph = bundle / "graph" / "inference"
    option.set_model_path(f"{graph}.pdmodel", f"{graph}.pdiparams")
    option.use_paddle_infer_backend()
else:
    path = str(bundle / "graph" / "model.onnx")
    option.set_model_path(path, "", fastdeploy.ModelFormat.ONNX)
    option.use_ort_backend() if backend == "onnxruntime" else option.use_openvino_backend()
runtime = fastdeploy.Runtime(option)
step = lambda feeds: runtime.infer({k: np.ascontiguousarray(v) for k, v in feeds.items()})
found = check_parity(ModelConfig.read(bundle), Weights.open(bundle), {backend: lambda: step})
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="FastDeploy 1.0.7 ends at Python 3.10")
@pytest.mark.parametrize("backend", ["onnxruntime", "paddle", "openvino"])
def test_runs_in_fastdeploy(tiny_bundle: Path, backend: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BACKENDS, str(tiny_bundle), backend],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])[backend] < 1e-4


def test_a_graph_that_is_another_model_is_refused(tiny_bundle: Path) -> None:
    config, weights = ModelConfig.read(tiny_bundle), Weights.open(tiny_bundle)
    steps = {"ONNX": lambda: onnx_step(tiny_bundle / "graph" / "model.onnx")}
    assert check_parity(config, weights, steps)["ONNX"] < 1e-4
    for change in ({"rms_norm_eps": 1e-3}, {"rope_theta": 20000.0}):
        with pytest.raises(StageError, match="ONNX graph's logits differ"):
            check_parity(dataclasses.replace(config, **change), weights, steps)


def test_a_graph_of_no_numbers_is_refused(tiny_bundle: Path) -> None:
    config, weights = ModelConfig.read(tiny_bundle), Weights.open(tiny_bundle)
    good = onnx_step(tiny_bundle / "graph" / "model.onnx")

    def broken(feeds: Any) -> Any:
        logits, new = good(feeds)
        return logits * np.nan, new

    with pytest.raises(StageError):
        check_parity(config, weights, {"ONNX": lambda: broken})


def test_batches_hold_sequences_of_different_length(tiny_bundle: Path) -> None:
    config = ModelConfig.read(tiny_bundle)
    step = onnx_step(tiny_bundle / "graph" / "model.onnx")
    ids = np.random.default_rng(2).integers(0, config.vocab_size, (2, 9))
    lengths, padded = [9, 4], 9
    mask = np.full((2, 1, padded, 1 + padded), MASKED, np.float32)
    for row, length in enumerate(lengths):
        mask[row, 0, :length, 1 : 1 + length] = np.where(np.tri(length), np.float32(0), MASKED)
    empty = np.zeros((2, config.num_key_value_heads, 1, config.head_dim), np.float32)
    logits, new = step(
        {
            "ids": ids,
            "pos": np.tile(np.arange(padded), (2, 1)),
            "mask": mask,
            "last": np.asarray([[row, length - 1] for row, length in enumerate(lengths)]),
            **{f"c{i}": empty for i in range(2 * config.num_hidden_layers)},
        }
    )
    assert new.shape == (4, 2, config.num_key_value_heads, padded, config.head_dim)
    for row, length in enumerate(lengths):
        alone = expected(tiny_bundle, ids[row : row + 1, :length])[0, -1]
        assert np.max(np.abs(logits[row] - alone)) < 1e-4


def test_weights_may_lie_in_a_file_beside(tiny_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_bundle / "graph" / "model.onnx")
    large = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) == 2}
    kept = [t for t in model.graph.initializer if t.name not in large]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    loaders = {name: functools.partial(np.copy, values) for name, values in large.items()}
    onnx_file.save(model, tmp_path / "model.onnx", loaders, external=True)
    assert (tmp_path / "model.onnx.data").stat().st_size > 400_000
    assert (tmp_path / "model.onnx").stat().st_size < 50_000
    config, weights = ModelConfig.read(tiny_bundle), Weights.open(tiny_bundle)
    check_parity(config, weights, {"ONNX": lambda: onnx_step(tmp_path / "model.onnx")})
    onnx.checker.check_model(str(tmp_path / "model.onnx"))


def test_fastdeploy_is_not_asked_for_what_it_cannot_read(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "large")
    (folder / "graph" / "model.onnx.data").write_bytes(b"weights")
    large = open_bundle(folder, check=False)
    with pytest.raises(MachineError, match="over 2 GiB") as caught:
        load_engine(large, engine="fastdeploy", slots=1, max_length=64)
    assert "serve.backend" in caught.value.hint


def test_the_onnx_file_is_as_old_runtimes_want_it(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "graph" / "model.onnx")
    onnx.checker.check_model(model)
    assert model.ir_version <= 8
    assert [entry.version for entry in model.opset_import] == [13]
    assert [value.name for value in model.graph.input] == [
        *("ids", "pos", "mask", "last"),
        *(f"c{i}" for i in range(4)),
    ]
    assert [value.name for value in model.graph.output] == ["logits", "new"]
    names = {tensor.name for tensor in model.graph.initializer}
    assert {"embedding", "l0_qkv", "l1_down", "final_norm", "eps"} <= names
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Constant", "Identity", "If", "Loop"}
    assert sum(len(t.raw_data) for t in model.graph.initializer) > 400_000


@pytest.mark.model
def test_smollm2_knows_the_capital_of_france(smollm2_bundle: Path) -> None:
    bundle = open_bundle(smollm2_bundle, check=False)
    step = onnx_step(bundle.graph.onnx)
    layers, kv, dim = bundle.graph.layers, bundle.graph.kv_heads, bundle.graph.head_dim
    ids = bundle.tokenizer.encode("The capital of France is")
    caches = np.zeros((2 * layers, 1, kv, 32, dim), np.float32)
    held, tokens, answer = 0, ids, []
    while len(answer) < 6:
        new_length = len(tokens)
        mask = np.full((1, 1, new_length, 32 + new_length), MASKED, np.float32)
        mask[..., :held] = 0
        mask[..., 32:] = np.where(np.tri(new_length, dtype=bool), np.float32(0), MASKED)
        logits, new = step(
            {
                "ids": np.asarray([tokens]),
                "pos": np.arange(held, held + new_length)[None],
                "mask": mask,
                "last": np.asarray([[0, new_length - 1]]),
                **{f"c{i}": np.ascontiguousarray(cache) for i, cache in enumerate(caches)},
            }
        )
        caches[:, :, :, held : held + new_length] = new
        held += new_length
        tokens = [int(logits[0].argmax())]
        answer += tokens
    assert bundle.tokenizer.decode(answer).startswith(" Paris")
