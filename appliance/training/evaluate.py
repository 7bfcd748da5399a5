"""Stage `evaluate`: held-out loss and answers to held-out questions, before training and after."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.bundle.tokenizer import Tokenizer
from appliance.files import write_json
from appliance.jobs.artifacts import Stage
from appliance.training.program import run_stage

Answers = list[str]


@dataclass(frozen=True)
class Exam:
    """What a model is asked: held-out rows for the loss, prompts for the answers."""

    rows: list[Any]
    prompts: list[list[int]]
    tokenizer: Tokenizer
    batch_size: int
    max_new_tokens: int


def evaluate(stage: Stage) -> None:
    """Run the stage: report.json, metrics, and a table for the reader. Raises StageError."""
    shutil.rmtree(stage.output)  # what a killed run left: all of it is made anew
    stage.scratch.mkdir(parents=True)
    examples = read_examples(stage.inputs["prepare"] / "examples.jsonl", stage.spec["questions"])
    losses: dict[str, float | None] = {"before": None}
    said: dict[str, list[str | None]] = {"before": [None] * len(examples)}
    exam = make_exam(stage, examples)
    for when, model in models(stage):
        loss, answers = sit(exam, model, stage, when)
        losses[when], said[when] = loss, list(answers)
        if loss is not None:
            stage.events.metric(f"loss_{when}", loss)
    rows = [
        {"question": question(e), "before": before, "after": after, "reference": reference(e)}
        for e, before, after in zip(examples, said["before"], said["after"], strict=True)
    ]
    report = {"loss_before": losses["before"], "loss_after": losses["after"], "answers": rows}
    write_json(stage.output / "report.json", report)
    if rows:
        shown = [[row[key] or "" for key in ("question", "before", "after")] for row in rows]
        stage.events.table("Held-out questions", ["question", "before", "after"], shown)
    stage.publish({key: report[key] for key in ("loss_before", "loss_after")})


def read_examples(path: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` held-out examples that ask different questions."""
    found: dict[str, dict[str, Any]] = {}
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            if len(found) == count:
                break
            example = json.loads(line)
            found.setdefault(question(example), example)
    return list(found.values())


def make_exam(stage: Stage, examples: list[dict[str, Any]]) -> Exam:
    """Read the held-out rows and render the prompts."""
    from appliance.training.dataset import corpus, read_rows

    prepare = stage.inputs["prepare"]
    if stage.spec["method"] == "pretrain":
        _, windows = corpus(prepare, stage.scratch / "index", samples=1, seed=0)
        rows = [windows[i] for i in range(len(windows))]
    else:
        rows = read_rows(prepare / "eval.jsonl")
    tokenizer = Tokenizer.load(prepare / "base")
    prompts = [prompt_ids(tokenizer, example) for example in examples]
    return Exam(rows, prompts, tokenizer, stage.spec["batch_size"], stage.spec["max_new_tokens"])


def models(stage: Stage) -> Iterator[tuple[str, Any]]:
    """The model `before` training (none for pretrain), then `after`; one at a time in memory."""
    from appliance.training.model import load_adapter_model, load_model

    base, trained = stage.inputs["prepare"] / "base", stage.inputs["train"]
    if stage.spec["method"] == "lora":
        model = load_adapter_model(base, trained / "adapter")
        model.disable_lora()
        yield "before", model
        model.enable_lora()
        yield "after", model
        return
    if stage.spec["method"] == "full":
        yield "before", load_model(base)
    yield "after", load_model(trained / "model")


def sit(exam: Exam, model: Any, stage: Stage, when: str) -> tuple[float | None, Answers]:
    """Held-out loss (None without held-out rows) and answers of one model."""
    from appliance.training.answers import greedy
    from appliance.training.dataset import batches
    from appliance.training.loss import held_out_loss

    loss = None
    if exam.rows:
        total = -(-len(exam.rows) // exam.batch_size)
        report = _report(stage, total, f"batches {when} training")
        loss = held_out_loss(model, batches(exam.rows, exam.batch_size), report)
    stage.events.note(f"Asking {len(exam.prompts)} held-out questions, {when} training.")
    tokens = greedy(
        model,
        exam.prompts,
        max_new_tokens=exam.max_new_tokens,
        eos_ids=exam.tokenizer.eos_ids,
        batch_size=exam.batch_size,
    )
    return loss, [exam.tokenizer.decode(ids).strip() for ids in tokens]


def prompt_ids(tokenizer: Tokenizer, example: dict[str, Any]) -> list[int]:
    """Ids of what the model goes on from: the conversation up to its last answer, or a text."""
    if "messages" in example:
        text = tokenizer.render(example["messages"][:-1], add_generation_prompt=True)
    else:
        text = example["prompt"]
    return tokenizer.encode(text)


def question(example: dict[str, Any]) -> str:
    """What is asked, for the reader."""
    if "messages" in example:
        return str(example["messages"][-2]["content"])
    return str(example["prompt"])


def reference(example: dict[str, Any]) -> str:
    """What the data answers; of a text, how it really goes on."""
    if "messages" in example:
        return str(example["messages"][-1]["content"])
    return str(example["text"])[len(example["prompt"]) :]


def _report(stage: Stage, total: int, unit: str) -> Callable[[int], None]:
    def report(done: int) -> None:
        stage.events.progress(done, total, unit)

    return report


if __name__ == "__main__":
    run_stage(evaluate)
