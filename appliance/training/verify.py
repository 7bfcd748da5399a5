"""Stage `verify`: the bundle is put together, led through the proof and sealed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from appliance.bundle.read import Bundle, open_bundle
from appliance.bundle.write import write_bundle
from appliance.errors import ProofError, StageError
from appliance.files import read_json, write_json
from appliance.jobs.artifacts import Stage
from appliance.training.program import run_stage
from appliance.training.proof import (
    COLUMNS,
    PROMPTS,
    STEPS,
    Link,
    end_link,
    logits_link,
    record,
    rendering_link,
    served_link,
    table,
)
from appliance.training.witness import Case, Logits

SPOKEN = {  # the witnesses in the order in which they speak, in words
    "engine": "engine",
    "graph": "graph",
    "merged": "merged model",
    "trained": "trained model",
}
WITNESSES = tuple(SPOKEN)
DEADLINE = 3600.0  # seconds for one witness; a model that takes longer than this here is stuck
PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddlenlp", "fastdeploy-python", "onnxruntime")


def verify(stage: Stage) -> None:
    """Run the stage. Raises ProofError, with a table of the links, where two of them part."""
    shutil.rmtree(stage.output)  # what a killed run left: all of it is made anew
    stage.scratch.mkdir(parents=True)
    write_bundle(stage.output, model=stage.inputs["merge"] / "model", export=stage.inputs["export"])
    bundle = open_bundle(stage.output, check=False)
    examples = choose_examples(stage.inputs["prepare"] / "examples.jsonl")
    case = make_case(stage, bundle, examples)
    links = [rendering(bundle, examples), *compare(stage, bundle, case, examples)]
    stage.events.table("Proof: is the model served the model trained?", COLUMNS, table(links))
    engine = {key: case.serve[key] for key in ("engine", "backend")}
    proof = record(links, len(case.prompts), case.steps, engine)
    if not proof["passed"]:
        refuse(stage, links, proof)
    publish(stage, proof)


def choose_examples(path: Path) -> list[dict[str, Any]]:
    """The first held-out rows that ask different things and were not cut: what training saw is all
    there is of them."""
    chosen: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as stream:
        for row in map(json.loads, stream):
            asked = [question(other) for other in chosen]
            if not row.get("truncated") and question(row) not in asked and len(chosen) < PROMPTS:
                chosen.append(row)
    if not chosen:
        raise StageError(
            "no held-out row fits into data.max_length, so nothing can be compared",
            hint="Raise data.max_length or data.eval_fraction.",
        )
    return chosen


def make_case(stage: Stage, bundle: Bundle, examples: list[dict[str, Any]]) -> Case:
    """What the witnesses are asked: prompts as ids, and the same as a client would send them."""
    method = stage.spec["recipe"]["train"]["method"]
    trained = stage.inputs["train"] / ("adapter" if method == "lora" else "model")
    prompts = [prompt_ids(bundle, example) for example in examples]
    room = bundle.graph.max_length - max(map(len, prompts))
    if room < 1:
        raise StageError(
            f"the held-out prompts fill the graph's context of {bundle.graph.max_length} tokens",
            hint="Raise export.max_length or lower data.max_length.",
        )
    return Case(
        bundle=str(stage.output),
        base=str(stage.inputs["prepare"] / "base"),
        trained=str(trained),
        merged=str(stage.inputs["merge"] / "model"),
        method=method,
        serve=stage.spec["recipe"]["serve"],
        steps=min(STEPS, room),
        prompts=prompts,
        questions=[question(example) for example in examples],
        paths=[],
    )


def question(example: dict[str, Any]) -> dict[str, Any]:
    """A held-out row as a client's request: all messages but the last answer, or plain text."""
    if "messages" in example:
        return {"messages": example["messages"][:-1]}
    return {"prompt": example["prompt"]}


def prompt_ids(bundle: Bundle, example: dict[str, Any]) -> list[int]:
    """The ids that the model is asked to go on from, rendered by the bundle."""
    if "messages" in example:
        text = bundle.tokenizer.render(example["messages"][:-1], add_generation_prompt=True)
        return bundle.tokenizer.encode(text)
    return [*bundle.tokenizer.prefix_ids, *bundle.tokenizer.encode(example["prompt"])]


def rendering(bundle: Bundle, examples: list[dict[str, Any]]) -> Link:
    """Token ids of whole rows, as training wrote them and as the bundle renders them."""
    trained = [example["input_ids"] for example in examples]
    rendered = [rendered_ids(bundle, example) for example in examples]
    return rendering_link(trained, rendered, [str(question(e)) for e in examples])


def rendered_ids(bundle: Bundle, example: dict[str, Any]) -> list[int]:
    """What the bundle makes of a row: a conversation's prompt and, behind it, as much of the whole
    as was learnt (training leaves out what a template writes behind the last end token); or a
    text's ids and the end token that training put behind it."""
    seen = example["input_ids"]
    if "messages" not in example:
        return [*bundle.tokenizer.encode(example["text"]), seen[-1]]
    prompt = bundle.tokenizer.render(example["messages"][:-1], add_generation_prompt=True)
    whole = bundle.tokenizer.render(example["messages"], add_generation_prompt=False)
    # Apart, for an answer that begins with a line break would merge with the prompt's last token.
    answer = bundle.tokenizer.encode(whole.removeprefix(prompt))
    return [*bundle.tokenizer.encode(prompt), *answer][: len(seen)]


def compare(
    stage: Stage, bundle: Bundle, case: Case, examples: list[dict[str, Any]]
) -> Iterator[Link]:
    """Let the witnesses speak, one after the other, and compare neighbours of the chain."""
    said: dict[str, Logits] = {}
    for i, name in enumerate(WITNESSES):
        stage.events.progress(i, len(WITNESSES), "witnesses")
        stage.events.note(f"Running {len(case.prompts)} prompts through the {SPOKEN[name]}.")
        said[name] = hear(stage, name, case)
        if name == "engine":
            heard = read_json(stage.scratch / "engine.json")
            case = replace(case, paths=heard["paths"])
    stage.events.progress(len(WITNESSES), len(WITNESSES), "witnesses")
    yield logits_link("merged", "trained", said["merged"], said["trained"])
    yield logits_link("graph", "merged", said["graph"], said["merged"])
    yield logits_link("engine", "graph", said["engine"], said["graph"])
    yield logits_link("whole", "trained", said["engine"], said["trained"])
    expected = [answer_text(bundle, path) for path in case.paths]
    yield served_link(expected, [answer["text"] for answer in heard["answers"]])
    yield end_link(trained_end(examples), bundle.eos_ids, heard["ended"]["finish_reason"])


def hear(stage: Stage, name: str, case: Case) -> Logits:
    """Run one witness in a process of its own. Raises StageError with its last words."""
    case_path, output = stage.scratch / "case.json", stage.scratch / f"{name}.npz"
    case.write(case_path)
    command = [sys.executable, "-m", "appliance.training.witness", name]
    done = subprocess.run(
        [*command, str(case_path), str(output)],
        stdin=subprocess.DEVNULL,
        stdout=sys.stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, "APPLIANCE_LIFELINE": "0"},
    )
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        raise StageError(f"the {name} model could not be asked: {last[0]}")
    with np.load(output) as arrays:
        return [arrays[key] for key in arrays.files]


def answer_text(bundle: Bundle, path: list[int]) -> str:
    """What a client should read: the path's text up to the end token."""
    ends = [i for i, token in enumerate(path) if token in bundle.eos_ids]
    return bundle.tokenizer.decode(path[: ends[0]] if ends else path)


def trained_end(examples: list[dict[str, Any]]) -> int | None:
    """The last learnt token of the first row: what ends an answer, as training knows it."""
    row = examples[0]
    learnt = [
        token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0
    ]
    return learnt[-1] if learnt else None


def refuse(stage: Stage, links: list[Link], proof: dict[str, Any]) -> None:
    """Keep what was found and stop the job before anything is served."""
    found = stage.output / "proof.json"
    write_json(found, proof)
    first = next(link for link in links if not link.passed)
    raise ProofError(
        f"the model served is not the model trained: {first.name} parts from {first.against}: "
        f"{first.parts_at}",
        hint=f"Nothing was deployed. The whole table is in the job's log and in {found}.",
    )


def publish(stage: Stage, proof: dict[str, Any]) -> None:
    """Seal the bundle under its name, with its recipe, its origin, its figures and its proof."""
    report = read_json(stage.inputs["evaluate"] / "report.json")
    figures = {key: report[key] for key in ("loss_before", "loss_after")}
    worst = max(link["difference"] or 0.0 for link in proof["links"])
    stage.publish(
        {**figures, "largest_difference": worst},
        extra={
            "format": 1,
            "name": stage.spec["name"],
            "recipe": stage.spec["recipe"],
            "base": read_json(stage.inputs["prepare"] / "base.json"),
            "proof": proof,
            "environment": environment(),
        },
    )


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that the proof stood on."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    run_stage(verify)
