"""Runs a model along given paths, in a process of its own: Paddle and FastDeploy do not share one.

    python -m appliance.training.witness NAME CASE_JSON OUTPUT_NPZ

The witnesses are `trained`, `merged` (Paddle), `graph` (onnxruntime, the whole path at once) and
`engine` (what the recipe serves with: a cache, a batch, step by step). The engine writes the greedy
paths that the others are led along.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from appliance.bundle.read import open_bundle
from appliance.errors import StageError
from appliance.files import read_json, write_json
from appliance.training.program import run_program

if TYPE_CHECKING:
    from serving.core import Core
    from serving.engine import Engine

Logits = list[NDArray[np.float32]]
MASKED = np.float32(-1e9)


@dataclass(frozen=True)
class Case:
    """What all witnesses are asked. Folders as text, since a case travels as JSON."""

    bundle: str
    base: str
    trained: str
    merged: str
    method: str
    serve: dict[str, Any]
    steps: int
    """Greedy tokens behind each prompt: proof.STEPS, or as many as the graph's context leaves."""
    prompts: list[list[int]]
    questions: list[dict[str, Any]]
    """For each prompt what a client would send: `messages`, or `prompt` for plain completion."""
    paths: list[list[int]]
    """For each prompt the engine's greedy tokens; empty until the engine has run."""

    @classmethod
    def read(cls, path: Path) -> Case:
        """Read a case that `write` wrote."""
        return cls(**read_json(path))

    def write(self, path: Path) -> None:
        """Write the case as JSON."""
        write_json(path, asdict(self))


def trained(case: Case) -> Logits:
    """The model as training left it: base and adapter, or all weights."""
    from appliance.training.model import load_adapter_model, load_model

    if case.method == "lora":
        return paddle_logits(load_adapter_model(Path(case.base), Path(case.trained)), case)
    return paddle_logits(load_model(Path(case.trained)), case)


def merged(case: Case) -> Logits:
    """The merged model, read by PaddleNLP."""
    from appliance.training.model import load_model

    return paddle_logits(load_model(Path(case.merged)), case)


def paddle_logits(model: Any, case: Case) -> Logits:
    """Logits [steps, vocabulary] of a Paddle model along each path."""
    from appliance.training.model import logits

    return [
        logits(model, prompt + path[:-1])[len(prompt) - 1 :]
        for prompt, path in zip(case.prompts, case.paths, strict=True)
    ]


def graph(case: Case) -> Logits:
    """The exported ONNX graph on the whole of each path at once, without a cache."""
    import onnxruntime

    info = open_bundle(Path(case.bundle), check=False).graph
    session = onnxruntime.InferenceSession(str(info.onnx), providers=["CPUExecutionProvider"])
    # One masked cache position: not every runtime takes a cache of length zero.
    empty = np.zeros((1, info.kv_heads, 1, info.head_dim), np.float32)
    caches = {f"c{i}": empty for i in range(2 * info.layers)}
    found = []
    for prompt, path in zip(case.prompts, case.paths, strict=True):
        ids = np.asarray([prompt + path[:-1]], np.int64)
        n = ids.shape[1]
        mask = np.where(np.tri(n, dtype=bool), np.float32(0), MASKED)
        mask = np.concatenate([np.full((n, 1), MASKED, np.float32), mask], axis=1)
        last = np.asarray([[0, at] for at in range(len(prompt) - 1, n)], np.int64)
        feeds = {"ids": ids, "pos": np.arange(n)[None], "mask": mask[None, None], "last": last}
        found.append(session.run(["logits"], {**feeds, **caches})[0])
    return found


def engine(case: Case) -> tuple[Logits, dict[str, Any]]:
    """The serving engine: logits along its own greedy paths, and what the serving core answers.

    All prompts run at once, so that batching and the cache are part of the proof.
    """
    from serving.core import Core
    from serving.engine import load_engine
    from serving.scheduler import Scheduler

    bundle = open_bundle(Path(case.bundle), check=False)
    running = load_engine(
        bundle,
        engine=case.serve["engine"],
        backend=case.serve["backend"],
        slots=max(case.serve["slots"], len(case.prompts)),
        max_length=max(len(prompt) for prompt in case.prompts) + case.steps,
        threads=None,
    )
    rows, paths = walk(running, case.prompts, case.steps)
    scheduler = Scheduler(running, max_queue=len(case.prompts))
    try:
        core = Core(bundle, scheduler, name=bundle.name, request_timeout=600.0)
        answers = [ask(core, question, case.steps, {}) for question in case.questions]
        forced = {str(token): 100.0 for token in sorted(bundle.eos_ids)[:1]}
        ended = ask(core, case.questions[0], case.steps, forced)
    finally:
        scheduler.close()
    return rows, {"paths": paths, "answers": answers, "ended": ended}


def walk(
    running: Engine, prompts: Sequence[Sequence[int]], steps: int
) -> tuple[Logits, list[list[int]]]:
    """Greedy steps of all prompts as one batch: logits [steps, vocabulary] and ids [steps] each."""
    # Copied at once: an engine may write its next logits where these are.
    rows = [[np.array(running.prefill(slot, prompt))] for slot, prompt in enumerate(prompts)]
    paths = [[int(row[0].argmax())] for row in rows]
    for _ in range(steps - 1):
        last = running.decode({slot: path[-1] for slot, path in enumerate(paths)})
        for slot, row in last.items():
            rows[slot].append(np.array(row))
            paths[slot].append(int(row.argmax()))
    for slot in range(len(prompts)):
        running.release(slot)
    return [np.stack(row) for row in rows], paths


def ask(
    core: Core, question: dict[str, Any], steps: int, bias: dict[str, float]
) -> dict[str, str | None]:
    """One greedy request through the serving core: its text and finish reason."""
    from serving.requests import ChatRequest, CompletionRequest

    fields = {**question, "temperature": 0, "max_tokens": steps, "logit_bias": bias}
    answer = (
        core.chat(ChatRequest(**fields))
        if "messages" in question
        else core.complete(CompletionRequest(**fields))
    )
    whole = answer.gather()[0]
    return {"text": whole.text, "finish_reason": whole.finish_reason}


def main() -> None:
    """Run the witness that the command line names."""
    name, case_path, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    case = Case.read(case_path)
    if name == "engine":
        rows, said = engine(case)
        write_json(output.with_suffix(".json"), said)
    else:
        rows = {"trained": trained, "merged": merged, "graph": graph}[name](case)
    for i, row in enumerate(rows):
        if row.shape[0] != case.steps:
            raise StageError(
                f"witness {name}: {row.shape[0]} steps of prompt {i}, not {case.steps}"
            )
    np.savez(output, *rows)


if __name__ == "__main__":
    run_program(main)
