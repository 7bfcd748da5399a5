"""The stage `export`, as the controller runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from appliance.bundle.read import Graph
from appliance.files import read_json
from appliance.jobs.artifacts import Stage

ROOT = Path(__file__).parents[2]


def run_export(model: Path, work: Path, max_length: int | None) -> tuple[Path, str]:
    merge = work / "merged"
    if not merge.exists():
        shutil.copytree(model, merge / "model")
    stage = Stage(
        name="export",
        job="test",
        spec={"export": {"max_length": max_length}},
        inputs={"merge": merge},
        final=work / "export" / "fingerprint",
        events_path=work / "events.jsonl",
    )
    stage.write(work / "stage.json")
    done = subprocess.run(
        [sys.executable, "-m", "appliance.training.export", str(work / "stage.json")],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
    )
    return stage.final, f"exit {done.returncode}: {done.stderr}"


def test_publishes_a_graph_with_its_parity(tiny_model: Path, tmp_path: Path) -> None:
    final, said = run_export(tiny_model, tmp_path, 100)
    assert said.startswith("exit 0"), said
    assert Graph.read(final).max_length == 100
    assert set(read_json(final / "manifest.json")["files"]) == {
        "graph.json",
        "graph/inference.pdiparams",
        "graph/inference.pdmodel",
        "graph/model.onnx",
    }
    parity = read_json(final / "manifest.json")["metrics"]["parity"]
    assert all(0 < parity[name] < 1e-4 for name in ("ONNX", "Paddle"))
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["done"] for event in events if event["kind"] == "progress"] == [1, 2, 3, 4]


def test_a_graph_longer_than_the_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    final, said = run_export(tiny_model, tmp_path, 257)
    assert said.startswith("exit 2: error: export.max_length is 257")
    assert not final.exists()
