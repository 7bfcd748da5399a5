"""The proof, whole and with each of its links broken on purpose."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from appliance.bundle.read import open_bundle
from appliance.files import read_json, write_json
from appliance.training.proof import logits_link, rendering_link
from tests.pipeline import (
    changed_copy,
    run_pipeline,
    run_program,
    scratch_recipe,
    tiny_recipe,
    write_dialogues,
)


@pytest.fixture(scope="module")
def stages(tiny_model, tmp_path_factory):
    """A tiny job up to and with its proof."""
    folder = tmp_path_factory.mktemp("job")
    data = write_dialogues(folder / "rows.jsonl")
    return run_pipeline(tiny_recipe(tiny_model, data), folder)


def verify_with(stages, tmp_path, **changed):
    """Run verify again, with some inputs replaced; gives the process and its events."""
    stage = replace(
        stages["verify"],
        inputs={**stages["verify"].inputs, **changed},
        final=tmp_path / "verify" / "artifact",
        events_path=tmp_path / "events.jsonl",
    )
    done = run_program(stage, tmp_path)
    events = [json.loads(line) for line in stage.events_path.read_text().splitlines()]
    return stage, done, events


def broken_link(stages, tmp_path, **changed):
    """The name of the first link that parts; nothing may be published then."""
    stage, done, events = verify_with(stages, tmp_path, **changed)
    assert done.returncode == 1, done.stderr
    assert not stage.final.exists()
    assert "Traceback" not in done.stderr
    rows = next(event["rows"] for event in events if event["kind"] == "table")
    first = next(row for row in rows if row[4] != "agree")
    assert first[5], "the table says where they part"
    assert first[0] in done.stderr
    return first[0]


def test_a_true_bundle_is_proven_and_sealed(stages):
    bundle = open_bundle(stages["verify"].final)
    proof = bundle.manifest["proof"]
    assert proof["passed"]
    assert proof["steps"] == 64
    assert [link["name"] for link in proof["links"]] == [
        "rendering",
        "merged",
        "graph",
        "engine",
        "whole",
        "served",
        "end",
    ]
    differences = [link["difference"] for link in proof["links"] if link["difference"] is not None]
    assert len(differences) == 4
    assert 0 < max(differences) < 1e-3
    assert bundle.name == "tiny"


def test_a_model_from_scratch_is_proven_like_any_other(tmp_path):
    stages = run_pipeline(scratch_recipe(), tmp_path)
    bundle = open_bundle(stages["verify"].final)
    proof = bundle.manifest["proof"]
    assert proof["passed"]
    assert proof["prompts"] == 4
    assert bundle.tokenizer.chat_template is None
    report = read_json(stages["evaluate"].final / "report.json")
    assert report["loss_before"] is None
    assert len(report["answers"]) == 2


def test_training_changed_the_model(stages):
    """Else the proof would prove the base model."""
    base = load_file(stages["prepare"].final / "base" / "model.safetensors")
    merged = load_file(stages["merge"].final / "model" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert np.abs(base[name] - merged[name]).max() > 1e-4


def test_a_lost_epsilon_parts_at_the_graph(stages, tmp_path):
    export = changed_copy(stages["export"].final, tmp_path / "export")
    path = export / "graph" / "model.onnx"
    model = onnx.load(path)
    eps = read_json(stages["merge"].final / "model" / "config.json")["rms_norm_eps"]
    lost = 0
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.size == 1 and np.isclose(values, eps).all():
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(values), tensor.name))
            lost += 1
    assert lost, "the graph holds its epsilon as a tensor"
    onnx.save(model, path)
    assert broken_link(stages, tmp_path, export=export) == "graph"


def test_a_changed_template_parts_at_the_rendering(stages, tmp_path):
    merge = changed_copy(stages["merge"].final, tmp_path / "merge")
    path = merge / "model" / "tokenizer_config.json"
    config = read_json(path)
    config["chat_template"] = config["chat_template"].replace("helpful", "polite")
    write_json(path, config)
    assert broken_link(stages, tmp_path, merge=merge) == "rendering"


def test_a_wrong_lora_scale_parts_at_the_merge(stages, tmp_path):
    """As the stock merge script scales rsLoRA: the update is added twice, in model and graph."""
    merge = changed_copy(stages["merge"].final, tmp_path / "merge")
    path = merge / "model" / "model.safetensors"
    base = load_file(stages["prepare"].final / "base" / "model.safetensors")
    weights = {name: w + (w - base[name]) for name, w in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    stage = replace(
        stages["export"],
        inputs={"merge": merge},
        final=tmp_path / "export" / "artifact",
        events_path=tmp_path / "export-events.jsonl",
    )
    done = run_program(stage, tmp_path)
    assert done.returncode == 0, done.stderr
    assert broken_link(stages, tmp_path, merge=merge, export=stage.final) == "merged"


def test_a_missing_end_token_parts_at_the_end(stages, tmp_path):
    merge = changed_copy(stages["merge"].final, tmp_path / "merge")
    for name in ("generation_config.json", "config.json"):
        path = merge / "model" / name
        write_json(path, {**read_json(path), "eos_token_id": 0})
    assert broken_link(stages, tmp_path, merge=merge) == "end"


def test_a_nan_is_no_agreement():
    rows = [np.zeros((2, 3), np.float32)]
    broken = [np.full((2, 3), np.nan, np.float32)]
    link = logits_link("graph", "merged", broken, rows)
    assert not link.passed


def test_no_conversation_proves_nothing():
    assert not rendering_link([], [], []).passed
