"""The proof: a chain of links from the tokens that training saw to the answers that are served.

    rendering   the bundle's token ids of the held-out conversations = those that training made
    merged      the merged model's logits = the trained model's (base and adapter, or all weights)
    graph       the exported graph's logits = the merged model's
    engine      the engine's logits, with a cache and in a batch, step by step = the graph's
    whole       the engine's logits = the trained model's
    served      the serving core's text = the engine's tokens up to the end token
    end         the token that ended the trained answers ends a served one

The engine goes first and writes a greedy path of 64 tokens behind each prompt. A model whose
highest logit at each position of that path is the path's next token would have written the same
path, by induction: one forward pass a prompt proves 64 greedy steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROMPTS = 4
STEPS = 64  # greedy tokens behind each; fewer only where the model's context ends
TOLERANCE = 1e-3  # largest difference of two float32 logits

Logits = Sequence[NDArray[np.float32]]  # a prompt each: [steps, vocabulary]


@dataclass(frozen=True)
class Link:
    """One link's verdict. `difference`: the largest one of two logits, None where none is taken."""

    name: str
    against: str
    compared: str
    passed: bool
    difference: float | None = None
    parts_at: str = ""


def rendering_link(
    trained: Sequence[Sequence[int]], rendered: Sequence[Sequence[int]], prompts: Sequence[str]
) -> Link:
    """Token ids that training saw against the bundle's rendering, conversation by conversation."""
    compared = f"{len(trained)} conversations, token ids"
    for i, (ours, theirs) in enumerate(zip(trained, rendered, strict=True)):
        if list(ours) != list(theirs):
            at = first_difference(ours, theirs)
            return Link(
                "rendering",
                "training",
                compared,
                False,
                parts_at=f"conversation {i}, token {at} ({prompts[i][:40]!r}): "
                f"trained {list(ours[at : at + 4])}, rendered {list(theirs[at : at + 4])}",
            )
    return Link("rendering", "training", compared, bool(trained))


def logits_link(name: str, against: str, ours: Logits, theirs: Logits) -> Link:
    """Logits [steps, vocabulary] of two models along the same paths, and both models' choices."""
    compared = f"{len(ours)} prompts, {sum(map(len, ours))} greedy steps"
    worst, parts_at = 0.0, ""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        gaps = np.abs(a - b).max(axis=1)
        worst = float(np.maximum(worst, gaps.max()))  # unlike max(), keeps a NaN
        wrong = ~(gaps <= TOLERANCE) | (a.argmax(axis=1) != b.argmax(axis=1))
        if wrong.any() and not parts_at:
            step = int(wrong.argmax())
            parts_at = (
                f"prompt {i}, step {step}: logits differ by {gaps[step]:.2g}, "
                f"{name} chooses {a[step].argmax()}, {against} {b[step].argmax()}"
            )
    return Link(name, against, compared, not parts_at, worst, parts_at)


def served_link(expected: Sequence[str], served: Sequence[str]) -> Link:
    """Texts of the serving core against the engine's tokens, decoded."""
    compared = f"{len(expected)} answers, text"
    for i, (ours, theirs) in enumerate(zip(expected, served, strict=True)):
        if ours != theirs:
            at = first_difference(ours, theirs)
            parts_at = (
                f"prompt {i}, character {at}: {ours[at : at + 20]!r}, {theirs[at : at + 20]!r}"
            )
            return Link("served", "engine", compared, False, parts_at=parts_at)
    return Link("served", "engine", compared, True)


def end_link(trained_end: int | None, end_ids: Collection[int], finish_reason: str | None) -> Link:
    """The token that ended each trained answer is an end token of the bundle, and it ends one."""
    compared = f"token {trained_end}" if trained_end is not None else "no trained end"
    if trained_end not in end_ids:
        parts_at = f"training ended answers with {trained_end}, the bundle with {sorted(end_ids)}"
        return Link("end", "training", compared, False, parts_at=parts_at)
    if finish_reason != "stop":
        parts_at = f"an answer that reached the end token finished with {finish_reason!r}"
        return Link("end", "training", compared, False, parts_at=parts_at)
    return Link("end", "training", compared, True)


def first_difference(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The first index at which two sequences differ; the shorter's length where none does."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def table(links: Sequence[Link]) -> list[list[str]]:
    """A row a link: name, compared with, what, largest difference, verdict, where they part."""
    return [
        [
            link.name,
            link.against,
            link.compared,
            "" if link.difference is None else f"{link.difference:.1e}",
            "agree" if link.passed else "PART",
            link.parts_at,
        ]
        for link in links
    ]


COLUMNS = ("link", "against", "compared", "difference", "verdict", "where they part")


def record(
    links: Sequence[Link], prompts: int, steps: int, engine: Mapping[str, str]
) -> dict[str, Any]:
    """What the bundle's manifest keeps."""
    return {
        "passed": all(link.passed for link in links),
        "links": [asdict(link) for link in links],
        "prompts": prompts,
        "steps": steps,
        "tolerance": TOLERANCE,
        "engine": dict(engine),
    }
