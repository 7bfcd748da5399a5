"""Tokens per second of our engines and of transformers + torch: same weights, one run.

    python benchmarks/serve.py BUNDLE [--quick] [--threads N] [--peer .venv-peers/bin/python]

Greedy, each stream its own prompt from a play; no answer ends before its last token: the end token
is one like the others. The time is that from the first request to the last token, prefill,
scheduler and sampling included. The contestants take turns, and the best of their rounds counts,
so that a disturbance meets all of them. Answers are compared token by token; where one leaves the
peer's, the report says how far apart the two best logits lie at that step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from appliance.bundle.read import Bundle, open_bundle  # noqa: E402
from appliance.bundle.tokenizer import Tokenizer  # noqa: E402
from appliance.errors import ApplianceError  # noqa: E402
from appliance.recipe.sources import package_files  # noqa: E402
from serving.engine import load_engine  # noqa: E402
from serving.scheduler import Request, Sampling, Scheduler  # noqa: E402

PROMPTS = (32, 12, 20, 48, 64, 100, 150, 200)  # tokens, by stream
STREAMS = (1, len(PROMPTS))
OPENING = 4000  # characters of a play before its prompt: past title and cast
PEER_DEADLINE = 900.0  # seconds for one answer of the peer
OURS = {
    "fastdeploy-onnxruntime": ("fastdeploy", "onnxruntime"),
    "fastdeploy-paddle": ("fastdeploy", "paddle"),
    "fastdeploy-openvino": ("fastdeploy", "openvino"),
    "onnxruntime": ("onnxruntime", "onnxruntime"),
}
PEER = "transformers"

Prompts = list[list[int]]
Generate = Callable[[Prompts, int], tuple[float, Prompts]]


@dataclass
class Result:
    """The best round of one contestant at one number of streams."""

    speed: float = 0.0  # tokens/s
    ids: Prompts = field(default_factory=list)


@dataclass(frozen=True)
class Contestant:
    """`margin`: how far apart the two best logits lie after these ids; the peer gives none."""

    generate: Generate
    margin: Callable[[list[int]], float] | None = None


@contextlib.contextmanager
def our_engine(bundle: Bundle, name: str, longest: int, threads: int) -> Iterator[Contestant]:
    """One of our engines behind the scheduler, as a server has it."""
    engine, backend = OURS[name]
    scheduler = Scheduler(
        load_engine(
            bundle,
            engine=engine,
            backend=backend,
            slots=max(STREAMS),
            max_length=longest,
            threads=threads,
        ),
        max_queue=max(STREAMS),
    )

    def generate(prompts: Prompts, tokens: int) -> tuple[float, Prompts]:
        began = time.perf_counter()
        asked = [
            scheduler.submit(
                Request(tuple(p), tokens, sampling=Sampling(temperature=0), timeout=PEER_DEADLINE)
            )
            for p in prompts
        ]
        ids = [[token.id for token in generation] for generation in asked]
        return time.perf_counter() - began, ids

    def margin(ids: list[int]) -> float:
        asked = Request(tuple(ids), 1, sampling=Sampling(temperature=0, logprobs=2))
        (token,) = scheduler.submit(asked)
        (_, best), (_, second) = token.top_logprobs
        return best - second

    try:
        yield Contestant(generate, margin)
    finally:
        scheduler.close()


@contextlib.contextmanager
def peer(bundle: Bundle, python: Path, threads: int) -> Iterator[Contestant]:
    """transformers in its own environment, over pipes."""
    process = subprocess.Popen(
        [python, ROOT / "benchmarks/peer_transformers.py", bundle.folder, str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
    )
    assert process.stdin and process.stdout
    replies, questions = process.stdout, process.stdin

    def reply() -> dict[str, object]:
        timer = threading.Timer(PEER_DEADLINE, process.kill)
        timer.start()
        try:
            line = replies.readline()
        finally:
            timer.cancel()
        if not line:
            raise SystemExit(f"{PEER} ended with exit code {process.wait(10)}: is {python} whole?")
        answer: dict[str, object] = json.loads(line)
        return answer

    def generate(prompts: Prompts, tokens: int) -> tuple[float, Prompts]:
        print(json.dumps({"prompts": prompts, "tokens": tokens}), file=questions, flush=True)
        answer = reply()
        return float(str(answer["seconds"])), answer["ids"]  # type: ignore[return-value]

    try:
        reply()
        yield Contestant(generate)
    finally:
        process.kill()
        process.wait(10)


def prompts_of(tokenizer: Tokenizer) -> Prompts:
    """A piece of a different play for each stream, in the bundle's own tokens."""
    plays = [f.path.read_text(encoding="utf-8-sig") for f in package_files("package:shakespeare")]
    whole = [play for play in plays if len(play) > 2 * OPENING]
    return [
        tokenizer.encode(play[OPENING : 2 * OPENING])[:length]
        for play, length in zip(whole, PROMPTS, strict=False)
    ]


def run(
    contestants: dict[str, Contestant], prompts: Prompts, tokens: int, rounds: int
) -> dict[tuple[str, int], Result]:
    """All contestants in turn, each number of streams, `rounds` times."""
    results = {(name, streams): Result() for name in contestants for streams in STREAMS}
    for name, contestant in contestants.items():
        print(f"warming up {name}", flush=True)
        contestant.generate(prompts[:1], 2)
    for streams in STREAMS:
        for turn in range(rounds):
            for name, contestant in contestants.items():
                seconds, ids = contestant.generate(prompts[:streams], tokens)
                speed = streams * tokens / seconds
                result = results[name, streams]
                result.speed, result.ids = max(result.speed, speed), ids
                print(
                    f"{name:24s} {streams} streams, round {turn + 1} of {rounds}: "
                    f"{speed:7.1f} tokens/s",
                    flush=True,
                )
    return results


def report(
    results: dict[tuple[str, int], Result], contestants: dict[str, Contestant], prompts: Prompts
) -> None:
    """The table: speed, ratio to the peer, and how far the greedy answers agree with its own.
    Below it, each answer that leaves the peer's: where, and at what margin."""
    with_peer = PEER in contestants
    print("\n| engine | streams | tokens/s |" + (" × peer | same tokens |" if with_peer else ""))
    print("|---|---|---|" + ("---|---|" if with_peer else ""))
    departures = []
    for name, contestant in contestants.items():
        for streams in STREAMS:
            result = results[name, streams]
            line = f"| {name} | {streams} | {result.speed:.1f} |"
            if with_peer:
                other = results[PEER, streams]
                same = np.mean(np.array(result.ids) == np.array(other.ids))
                line += f" {result.speed / other.speed:.2f} | {same:.1%} |"
                if margin := contestant.margin:
                    departures += [
                        f"{name}, {streams} streams: stream {stream} leaves {PEER} at token {step},"
                        f" where its two best logits lie {margin(ids):.1e} apart"
                        for stream, step, ids in first_differences(prompts, result.ids, other.ids)
                    ]
            print(line)
    print("", *departures, sep="\n")


def first_differences(
    prompts: Prompts, answers: Prompts, others: Prompts
) -> Iterator[tuple[int, int, list[int]]]:
    """(stream, step, the ids before it) of each answer that differs from the other one."""
    for stream, (prompt, ids, other) in enumerate(zip(prompts, answers, others, strict=False)):
        if ids != other:
            step = next(i for i, (a, b) in enumerate(zip(ids, other, strict=True)) if a != b)
            yield stream, step, prompt + ids[:step]


def main() -> int:
    """Parse, load all contestants, run, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--quick", action="store_true", help="16 tokens, one round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--engines",
        default="fastdeploy-onnxruntime,onnxruntime",
        help=f"comma-separated, of {', '.join(OURS)}",
    )
    parser.add_argument("--peer", type=Path, default=ROOT / ".venv-peers/bin/python")
    options = parser.parse_args()
    names = options.engines.split(",")
    if unknown := set(names) - set(OURS):
        parser.error(f"--engines: unknown {', '.join(sorted(unknown))}; known: {', '.join(OURS)}")
    tokens, rounds = (16, 1) if options.quick else (128, 3)
    try:
        bundle = open_bundle(options.bundle, check=False)
        with contextlib.ExitStack() as stack:
            prompts = prompts_of(bundle.tokenizer)
            contestants = {}
            for name in names:
                print(f"loading {name}", flush=True)
                opened = our_engine(bundle, name, max(PROMPTS) + tokens, options.threads)
                contestants[name] = stack.enter_context(opened)
            if options.peer.exists():
                print(f"loading {PEER}", flush=True)
                opened = peer(bundle, options.peer, options.threads)
                contestants[PEER] = stack.enter_context(opened)
            else:
                print(f"no {options.peer}: `make peers` brings the peer to compare with")
            results = run(contestants, prompts, tokens, rounds)
            report(results, contestants, prompts)
    except ApplianceError as error:
        parser.exit(error.exit_code, f"{error.message}\n{error.hint}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
