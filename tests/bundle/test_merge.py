"""PaddleNLP and we agree: on the model, on its weights' names, on what an adapter adds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.bundle import reference
from appliance.bundle.config import ModelConfig
from appliance.bundle.importer import check_complete
from appliance.bundle.tokenizer import Tokenizer
from appliance.bundle.weights import Weights, weights_sha256
from appliance.files import read_json, write_json
from appliance.jobs.artifacts import Stage
from tests.bundle.paddlenlp_model import IDS
from tests.bundle.test_graph import LLAMA3
from tests.models import make_tiny_model

ROOT = Path(__file__).parents[2]


def paddlenlp_reads(model: Path, work: Path, *options: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bundle.paddlenlp_model", str(model), str(work), *options],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def expected(model: Path) -> np.ndarray:
    return reference.logits(ModelConfig.read(model), Weights.open(model), IDS)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.abs(a - b)))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """prepare's base, and adapters of both scales as PaddleNLP saves them."""
    folder = tmp_path_factory.mktemp("adapters")
    base = make_tiny_model(folder / "prepare" / "base")
    paddlenlp_reads(base, folder, "--lora")
    return folder


def run_merge(
    work: Path, scale: str, prepare: Path, output: Path, method: str = "lora"
) -> tuple[Path, str]:
    """Run the stage; gives its artifact and what it said."""
    final = output / "merge" / "fingerprint"
    stage = Stage(
        name="merge",
        job="test",
        spec={"method": method},
        inputs={"prepare": prepare, "train": work / scale / "train"},
        final=final,
        events_path=work / scale / "events.jsonl",
    )
    stage.write(work / scale / "stage.json")
    done = subprocess.run(
        [sys.executable, "-m", "appliance.training.merge", str(work / scale / "stage.json")],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
    )
    return final, f"exit {done.returncode}: {done.stderr}"


def test_paddlenlp_reads_what_we_write_and_we_what_it_has(work: Path) -> None:
    base = work / "prepare" / "base"
    assert difference(np.load(work / "plain.npy"), expected(base)) < 1e-4
    assert weights_sha256(work / "written") == weights_sha256(base)
    assert check_complete(work / "written") == ModelConfig.read(base)


@pytest.mark.parametrize(
    "options",
    [
        {"kv_heads": 4, "tie": False, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": LLAMA3, "rope_theta": 5e5},
    ],
    ids=["linear", "llama3"],
)
def test_paddlenlp_scales_positions_as_we_do(options: dict[str, object], tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", **options)  # type: ignore[arg-type]
    paddlenlp_reads(model, tmp_path)
    assert difference(np.load(tmp_path / "plain.npy"), expected(model)) < 1e-4
    assert weights_sha256(tmp_path / "written") == weights_sha256(model)


@pytest.mark.parametrize("scale", ["lora", "rslora"])
def test_merged_is_base_and_adapter(work: Path, scale: str, tmp_path: Path) -> None:
    final, said = run_merge(work, scale, work / "prepare", tmp_path)
    assert said.startswith("exit 0"), said
    merged, base = final / "model", work / "prepare" / "base"
    trained = np.load(work / scale / "logits.npy")
    assert difference(expected(merged), trained) < 1e-4
    assert difference(expected(base), trained) > 1
    assert Tokenizer.load(merged).chat_template == Tokenizer.load(base).chat_template
    assert Tokenizer.load(merged).eos_ids == {2}
    metrics = read_json(final / "manifest.json")["metrics"]
    assert metrics == {"merged_layers": 10, "sha256": weights_sha256(merged)}


def test_an_adapter_of_another_base_is_refused(work: Path, tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    final, said = run_merge(work, "lora", tmp_path, tmp_path)
    assert said.startswith("exit 2: error: the adapter was trained on weights"), said
    assert not final.exists()


def test_an_adapter_whose_scale_was_changed_is_refused(work: Path, tmp_path: Path) -> None:
    path = work / "lora" / "train" / "adapter" / "adapter.json"
    facts = json.loads(path.read_text())
    write_json(path, facts | {"rslora": True})
    try:
        _, said = run_merge(work, "lora", work / "prepare", tmp_path)
    finally:
        write_json(path, facts)
    assert said.startswith("exit 2")
    assert "scale is 3.0; alpha, rank and rslora make it 6.0" in said


def test_a_fully_trained_model_passes_through(work: Path, tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "full" / "train" / "model", seed=9)
    final, said = run_merge(tmp_path, "full", work / "prepare", tmp_path, "full")
    assert said.startswith("exit 0"), said
    assert weights_sha256(final / "model") == weights_sha256(model)
