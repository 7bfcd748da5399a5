"""Makes what `prepare` publishes, and runs stages on it as the controller does."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from appliance.jobs.artifacts import Stage
from appliance.recipe import TrainSection
from appliance.training.log import read_log
from tests.models import make_tiny_model

ROOT = Path(__file__).parent.parent.parent
ANSWERS = ("Is it plugged in?", "Please restart the machine.", "Paris.", "你好，世界。")
QUESTIONS = ("printer does not print", "screen is dark", "capital of France", "你好")

LONG = {
    "max_steps": 60,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "eval_steps": 20,
    "save_steps": 8,
    "logging_steps": 3,
}
"""Long enough to be disturbed. An epoch is 8 steps, so that checkpoints lie at epochs' ends."""


def prepare(home: Path, *, method: str = "lora", rows: int = 40, contrary: bool = False) -> Path:
    """Publish a `prepare` artifact of a tiny model; conversations, or a corpus for pretrain.

    `contrary`: the held-out questions have other answers than those trained on, so that the
    held-out loss falls while the model learns to answer at all, then rises.
    """
    stage = Stage(
        "prepare",
        "job",
        {"method": method, "data": {"split": "80,20,0", "max_length": 32}},
        {},
        home / "artifacts" / "prepare" / method,
        home / "events.jsonl",
    )
    with stage.open():
        base = make_tiny_model(stage.output / "base")
        (stage.output / "base.json").write_text(json.dumps({"source": "tiny", "sha256": "ab" * 32}))
        if method == "pretrain":
            (base / "model.safetensors").unlink()
            write_corpus(base, stage.output)
        else:
            write_rows(base, stage.output, rows, contrary)
        stage.publish()
    return stage.final


def write_rows(base: Path, folder: Path, count: int, contrary: bool) -> None:
    """Conversations in the three forms that `prepare` writes; every fifth is held out."""
    from appliance.bundle.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(base)
    train, held = [], []
    for i in range(count):
        kind, held_out = i % len(QUESTIONS), i % 5 == 0
        answer_text = ANSWERS[(kind + (contrary and held_out)) % len(ANSWERS)]
        messages = [
            {"role": "user", "content": f"{QUESTIONS[kind]} {'again ' * (i % 3)}?"},
            {"role": "assistant", "content": answer_text},
        ]
        prompt = tokenizer.render(messages[:1], add_generation_prompt=True)
        ids = tokenizer.encode(prompt)
        answer = tokenizer.encode(answer_text + "<|im_end|>")
        row = {"input_ids": ids + answer, "labels": [-100] * len(ids) + answer}
        (held if held_out else train).append((row, messages))
    lines = {
        "train.jsonl": [row for row, _ in train],
        "eval.jsonl": [row for row, _ in held],
        "examples.jsonl": [{"messages": messages, **row} for row, messages in held],
    }
    for name, values in lines.items():
        text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        (folder / name).write_text(text, encoding="utf-8")


def write_corpus(base: Path, folder: Path) -> None:
    """Ten documents as PaddleNLP's mmap form (MMIDIDX): sizes, byte offsets, document starts."""
    from appliance.bundle.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(base)
    text = "My printer does not print. Is it plugged in, and is it turned on? "
    documents = [[*tokenizer.encode(text * (6 + i % 3)), 2] for i in range(10)]
    sizes = np.asarray([len(ids) for ids in documents], np.int32)
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)[:-1]]) * 2
    with (folder / "corpus.bin").open("wb") as stream:
        for ids in documents:
            stream.write(np.asarray(ids, np.uint16).tobytes())
    with (folder / "corpus.idx").open("wb") as stream:
        stream.write(b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, 8))
        stream.write(struct.pack("<QQ", len(sizes), len(sizes) + 1))
        stream.write(sizes.tobytes() + starts.astype(np.int64).tobytes())
        stream.write(np.arange(len(sizes) + 1, dtype=np.int64).tobytes())
    example = {"prompt": text[:30], "text": text, "input_ids": documents[8], "labels": documents[8]}
    (folder / "examples.jsonl").write_text(json.dumps(example) + "\n")


def train_stage(home: Path, prepared: Path, name: str, **fields: Any) -> Stage:
    """A stage `train` on a `prepare` artifact; `fields` are the recipe's."""
    section = TrainSection(
        **{
            "method": "lora",
            "max_steps": 12,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "lora_rank": 4,
            "eval_steps": 6,
            "save_steps": 4,
            **fields,
        }
    )
    return Stage(
        "train",
        "job",
        {"train": section.model_dump(mode="json"), "devices": 1},
        {"prepare": prepared},
        home / "artifacts" / "train" / name,
        home / f"{name}.jsonl",
    )


def start(stage: Stage, program: str | None = None) -> subprocess.Popen[str]:
    """Start a stage's program as a process of its own."""
    path = stage.final.with_name(f"{stage.name}-{stage.final.name}.json")
    stage.write(path)
    return subprocess.Popen(
        [sys.executable, "-m", f"appliance.training.{program or stage.name}", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "APPLIANCE_LIFELINE": "0"},
    )


def run(stage: Stage) -> None:
    """Run a stage to its end, which must be a good one."""
    process = start(stage)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]


def losses(stage: Stage, *, published: bool = True) -> dict[int, float]:
    """Step to loss, of the stage's log.jsonl; every step once."""
    folder = stage.final if published else stage.output
    lines = [line for line in read_log(folder / "log.jsonl") if "loss" in line]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: line["loss"] for line in lines}


def events(stage: Stage, kind: str) -> list[dict[str, Any]]:
    """The stage's events of one kind."""
    lines = stage.events_path.read_text().splitlines() if stage.events_path.exists() else []
    return [event for event in map(json.loads, lines) if event["kind"] == kind]
