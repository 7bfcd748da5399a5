"""A bundle that was touched is refused, and the file is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.bundle.read import open_bundle
from appliance.bundle.write import seal_bundle, write_bundle
from appliance.cli import app
from appliance.errors import BundleError, SealError
from tests.models import make_tiny_model


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_opens_with_all_that_a_server_needs(bundle: Path) -> None:
    found = open_bundle(bundle)
    assert found.name == "tiny"
    assert found.eos_ids == {2}
    assert (found.graph.layers, found.graph.kv_heads, found.graph.head_dim) == (2, 2, 16)
    assert found.graph.vocab_size == found.config["vocab_size"] == found.tokenizer.vocab_size
    assert found.graph.max_length == 256
    assert found.graph.onnx.is_file()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_one_changed_bit_is_named(bundle: Path) -> None:
    for name in ("model.safetensors", "graph/model.onnx", "tokenizer_config.json"):
        flip(bundle / name)
        with pytest.raises(SealError, match=f"{name} was changed"):
            open_bundle(bundle)
        flip(bundle / name)
    open_bundle(bundle)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: (b / "graph" / "inference.pdmodel").unlink(), "inference.pdmodel is missing"),
        (lambda b: (b / "config.json").open("a").write(" "), "config.json was changed"),
        (lambda b: (b / "graph" / "extra.bin").write_text("x"), "extra.bin was added"),
        (lambda b: (b / "manifest.json").write_text("{"), "manifest.json was changed"),
    ],
)
def test_missing_longer_and_added_files_are_named(
    bundle: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(bundle)
    with pytest.raises(SealError, match=message):
        open_bundle(bundle)


def test_a_manifest_made_to_fit_changed_files_is_refused(bundle: Path) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["config.json"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(SealError, match=r"manifest\.json was changed"):
        open_bundle(bundle, check=False)


def test_an_unsealed_bundle_opens_only_unchecked(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    assert open_bundle(bundle, check=False).graph.layers == 2
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        open_bundle(bundle)


def test_a_graph_of_another_model_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", kv_heads=4)
    with pytest.raises(BundleError, match="another model"):
        write_bundle(tmp_path / "bundle", model=other, export=tiny_bundle)


def test_writing_twice_leaves_the_same_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    for _ in range(2):
        write_bundle(tmp_path / "b", model=tiny_bundle, export=tiny_bundle)
    manifest = seal_bundle(tmp_path / "b", "tiny")
    assert manifest["files"] == open_bundle(tiny_bundle).manifest["files"]


def test_the_verb_checks_and_names(bundle: Path) -> None:
    run = CliRunner()
    whole = run.invoke(app, ["bundle", "check", str(bundle)])
    assert whole.exit_code == 0
    assert "tiny: whole, 9 files" in whole.output
    flip(bundle / "model.safetensors")
    broken = run.invoke(app, ["bundle", "check", str(bundle)])
    assert isinstance(broken.exception, SealError)
    assert "model.safetensors" in str(broken.exception)
