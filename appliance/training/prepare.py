"""Stage `prepare`: the base model and the data, in the forms that training reads."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from appliance.bundle.importer import import_model
from appliance.bundle.tokenizer import Tokenizer
from appliance.data.prepare import Counts, Rows, read_rows, render_rows
from appliance.data.read import Tally
from appliance.data.render import Example
from appliance.data.template import with_template
from appliance.errors import DataError, ModelError
from appliance.files import atomic, read_json, write_json
from appliance.jobs.artifacts import Stage
from appliance.jobs.events import Events
from appliance.recipe import DataSection, ModelSection
from appliance.training.program import run_stage


def prepare(stage: Stage) -> None:
    """Run the stage. Raises ModelError, DataError."""
    shutil.rmtree(stage.output)  # what a killed run left: all of it is made anew in a minute
    stage.output.mkdir()
    data = DataSection.model_validate(stage.spec["data"])
    model = ModelSection.model_validate(stage.spec["model"])
    if stage.spec["method"] == "pretrain":
        from appliance.training.corpus import prepare_corpus

        progress = _report(stage.events, "sections", 500)
        counts = prepare_corpus(stage, model, data, progress)
    else:
        counts = prepare_conversations(stage, model, data)
    write_json(stage.output / "data.json", counts)
    stage.publish({key: counts[key] for key in ("rows", "train", "eval", "tokens")})


def prepare_conversations(stage: Stage, model: ModelSection, data: DataSection) -> dict[str, Any]:
    """Import the base model, render and write the rows; gives the counts of data.json."""
    assert model.base is not None  # the recipe's own check: only `pretrain` goes without
    base = stage.output / "base"
    rows = read_rows(data, stage.spec["seed"])
    _say_rows(stage.events, rows)
    stage.events.note(f"Importing {model.base}.")
    info = import_model(model.base, base, progress=_report(stage.events, "tensors", 50))
    write_json(stage.output / "base.json", info)
    tokenizer = ensure_template(base, stage.events)
    _check_context(base, data.max_length)
    train, held = Counts(), Counts()
    progress = _report(stage.events, "rows", 200)
    rendered = render_rows(rows.train, tokenizer, data.max_length, train, progress)
    _write_rows(stage.output / "train.jsonl", rendered)
    examples = list(render_rows(rows.eval, tokenizer, data.max_length, held))
    _check_held_out(examples, data.max_length)
    _write_rows(stage.output / "eval.jsonl", examples)
    _write_lines(stage.output / "examples.jsonl", (_shown(example) for example in examples))
    _say_lengths(stage.events, train, held, data.max_length)
    return _counts(rows, train, held)


def ensure_template(base: Path, events: Events) -> Tokenizer:
    """The tokenizer of a model folder; a model without a chat template is given one, in its files.

    Raises ModelError where no template can be built.
    """
    tokenizer, name = with_template(Tokenizer.load(base))
    if name:
        events.warning(f"The base model has no chat template; using the {name} one.")
        _amend(base / "tokenizer_config.json", chat_template=tokenizer.chat_template)
        ends = sorted(tokenizer.eos_ids)
        _amend(base / "generation_config.json", eos_token_id=ends if len(ends) > 1 else ends[0])
    return tokenizer


def _amend(path: Path, **values: Any) -> None:
    write_json(path, {**(read_json(path) if path.is_file() else {}), **values})


def _check_context(base: Path, max_length: int) -> None:
    context = read_json(base / "config.json")["max_position_embeddings"]
    if max_length > context:
        raise ModelError(
            f"data.max_length is {max_length}, but the model's context is {context} tokens",
            hint=f"Set data.max_length to at most {context}.",
        )


def _check_held_out(examples: list[Example], max_length: int) -> None:
    """Say before hours of training what the proof would say after them."""
    if all(example.truncated for example in examples):
        raise DataError(
            f"none of {len(examples)} held-out rows fits into data.max_length {max_length}, "
            "so the trained model could not be proven",
            hint="Raise data.max_length, or hold out more rows with data.eval_fraction.",
        )


def _report(events: Events, unit: str, every: int) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        if done % every == 0 or done == total:
            events.progress(done, total, unit)

    return report


def _write_rows(path: Path, examples: Iterable[Example]) -> None:
    _write_lines(path, ({"input_ids": e.input_ids, "labels": e.labels} for e in examples))


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with atomic(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _shown(example: Example) -> dict[str, Any]:
    return {
        "messages": example.messages,
        "input_ids": example.input_ids,
        "labels": example.labels,
        "truncated": example.truncated,
    }


def _counts(rows: Rows, train: Counts, held: Counts) -> dict[str, Any]:
    return {
        "format": rows.tally.format,
        "rows": rows.tally.formats.total(),
        "train": len(rows.train),
        "eval": len(rows.eval),
        "tokens": train.tokens + held.tokens,
        "truncated": train.truncated + held.truncated,
        "skipped": rows.tally.skipped,
        "repeated": rows.repeated,
        "shared": rows.shared,
        "train_counts": dataclasses.asdict(train),
        "eval_counts": dataclasses.asdict(held),
    }


def say_skipped(events: Events, tally: Tally) -> None:
    """Warn of the rows that were left out, with the first reasons."""
    if tally.skipped:
        events.warning(f"Rows skipped: {tally.skipped}. " + "; ".join(tally.reasons))


def _say_rows(events: Events, rows: Rows) -> None:
    events.note(
        f"{rows.tally.formats.total()} rows, format {rows.tally.format}: "
        f"{len(rows.train)} to train on, {len(rows.eval)} held out."
    )
    if rows.repeated:
        events.note(f"Rows left out that repeat another word for word: {rows.repeated}.")
    if rows.shared:
        events.note(f"Rows left out that ask what a held-out row asks: {rows.shared}.")
    say_skipped(events, rows.tally)


def _say_lengths(events: Events, train: Counts, held: Counts, max_length: int) -> None:
    tokens, learnt = train.tokens + held.tokens, train.learnt_tokens + held.learnt_tokens
    events.note(f"{tokens} tokens, {learnt} of them learnt; longest {train.longest} tokens.")
    if truncated := train.truncated + held.truncated:
        events.warning(
            f"Rows longer than data.max_length {max_length} and cut: {truncated} "
            f"({train.rounds_cut + held.rounds_cut} rounds, "
            f"{train.tokens_cut + held.tokens_cut} tokens left out)."
        )


if __name__ == "__main__":
    run_stage(prepare)
