"""The stage `evaluate`: the report that a reader judges the training by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.files import read_json
from appliance.jobs.artifacts import Stage, read_manifest
from appliance.training.evaluate import read_examples
from appliance.training.log import read_log
from tests.training import stages
from tests.training.numpy_loss import numpy_loss


def evaluated(trained: Stage, method: str, home: Path) -> tuple[dict[str, Any], Stage]:
    """Run `evaluate` on a training; gives its report and the stage."""
    stage = Stage(
        "evaluate",
        "job",
        {"method": method, "batch_size": 3, "questions": 4, "max_new_tokens": 16},
        {"prepare": trained.inputs["prepare"], "train": trained.final},
        home / "artifacts" / "evaluate" / method,
        home / f"evaluate-{method}.jsonl",
    )
    stages.run(stage)
    return read_json(stage.final / "report.json"), stage


def least_loss(trained: Stage) -> float:
    lines = read_log(trained.final / "log.jsonl")
    return min(line["eval_loss"] for line in lines if "eval_loss" in line)


def test_an_adapter_before_and_after(home: Path, whole: Stage) -> None:
    report, stage = evaluated(whole, "lora", home)
    assert report["loss_after"] == pytest.approx(least_loss(whole), abs=1e-5)
    untrained = numpy_loss(whole.inputs["prepare"] / "base", whole.inputs["prepare"])
    assert report["loss_before"] == pytest.approx(untrained, abs=1e-5)
    answers = report["answers"]
    assert len(answers) == 4
    assert all(a["question"].startswith(stages.QUESTIONS) for a in answers)
    assert [a["after"] for a in answers] == [a["reference"] for a in answers]
    assert all(a["before"] not in ("", a["reference"]) for a in answers)
    (table,) = stages.events(stage, "table")
    assert table["rows"] == [[a["question"], a["before"], a["after"]] for a in answers]
    metrics = read_manifest(stage.final)["metrics"]
    assert metrics == {key: report[key] for key in ("loss_before", "loss_after")}
    spoken = {event["name"]: event["value"] for event in stages.events(stage, "metric")}
    assert spoken == metrics


def test_all_weights_before_and_after(home: Path, full: Stage) -> None:
    report, _ = evaluated(full, "full", home)
    assert report["loss_after"] == pytest.approx(least_loss(full), abs=1e-5)
    assert report["loss_before"] > report["loss_after"] + 1
    assert all(a["before"] != a["after"] for a in report["answers"])


def test_a_model_from_scratch_has_no_before(home: Path, pretrained: Stage) -> None:
    report, _ = evaluated(pretrained, "pretrain", home)
    assert report["loss_before"] is None
    assert report["loss_after"] == pytest.approx(least_loss(pretrained), abs=1e-5)
    (answer,) = report["answers"]
    assert answer["before"] is None and answer["after"]
    assert answer["question"] == "My printer does not print. Is "
    assert answer["reference"].startswith("it plugged in")


def test_a_question_that_is_held_out_twice_is_asked_once(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in (("Who?", "I."), ("Who?", "You."), ("Why?", "So."), ("When?", "Now."))
    ]
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_examples(path, 2)
    assert [row["messages"][0]["content"] for row in found] == ["Who?", "Why?"]
