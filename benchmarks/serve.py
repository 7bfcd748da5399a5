"""Tokens per second of our engines and of transformers + torch: same weights, one run.

    python benchmarks/serve.py BUNDLE [--quick] [--threads N] [--peer .venv-peers/bin/python]

Greedy, prompts of equal length, no end token; the time is that from the first request to the last
token, prefill, scheduler and sampling included. The contestants take turns, and the best of their
rounds counts, so that a disturbance meets all of them. Answers are compared token by token.
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from appliance.bundle.read import Bundle, open_bundle  # noqa: E402
from appliance.errors import ApplianceError  # noqa: E402
from serving.engine import load_engine  # noqa: E402
from serving.scheduler import Request, Sampling, Scheduler  # noqa: E402

STREAMS = (1, 8)
PROMPT = 32  # tokens
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
    ids: Prompts | None = None


@contextlib.contextmanager
def our_engine(bundle: Bundle, name: str, longest: int, threads: int) -> Iterator[Generate]:
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

    try:
        yield generate
    finally:
        scheduler.close()


@contextlib.contextmanager
def peer(bundle: Bundle, python: Path, threads: int) -> Iterator[Generate]:
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
        yield generate
    finally:
        process.kill()
        process.wait(10)


def run(
    contestants: dict[str, Generate], vocab_size: int, tokens: int, rounds: int
) -> dict[tuple[str, int], Result]:
    """All contestants in turn, each number of streams, `rounds` times."""
    random = np.random.default_rng(0)
    results = {(name, streams): Result() for name in contestants for streams in STREAMS}
    for name, generate in contestants.items():
        print(f"warming up {name}", flush=True)
        generate([[1] * PROMPT], 2)
    for streams in STREAMS:
        prompts = random.integers(0, vocab_size, (streams, PROMPT)).tolist()
        for turn in range(rounds):
            for name, generate in contestants.items():
                seconds, ids = generate(prompts, tokens)
                speed = streams * tokens / seconds
                result = results[name, streams]
                result.speed, result.ids = max(result.speed, speed), ids
                print(
                    f"{name:24s} {streams} streams, round {turn + 1} of {rounds}: "
                    f"{speed:7.1f} tokens/s",
                    flush=True,
                )
    return results


def report(results: dict[tuple[str, int], Result], names: list[str]) -> None:
    """The table: speed, ratio to the peer, and how far the greedy answers agree with its own."""
    with_peer = PEER in names
    print("\n| engine | streams | tokens/s |" + (" × peer | same tokens |" if with_peer else ""))
    print("|---|---|---|" + ("---|---|" if with_peer else ""))
    for name in names:
        for streams in STREAMS:
            result = results[name, streams]
            line = f"| {name} | {streams} | {result.speed:.1f} |"
            if with_peer:
                other = results[PEER, streams]
                same = np.mean(np.array(result.ids) == np.array(other.ids))
                line += f" {result.speed / other.speed:.2f} | {same:.1%} |"
            print(line)


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
            contestants = {}
            for name in names:
                print(f"loading {name}", flush=True)
                opened = our_engine(bundle, name, PROMPT + tokens, options.threads)
                contestants[name] = stack.enter_context(opened)
            if options.peer.exists():
                print(f"loading {PEER}", flush=True)
                opened = peer(bundle, options.peer, options.threads)
                contestants[PEER] = stack.enter_context(opened)
            else:
                print(f"no {options.peer}: `make peers` brings the peer to compare with")
            results = run(contestants, bundle.graph.vocab_size, tokens, rounds)
    except ApplianceError as error:
        parser.exit(error.exit_code, f"{error.message}\n{error.hint}\n")
    report(results, list(contestants))
    return 0


if __name__ == "__main__":
    sys.exit(main())
