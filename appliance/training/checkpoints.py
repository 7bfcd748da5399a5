"""Checkpoints: which are whole, which is newest, which is best, which may go.

    checkpoints/checkpoint-STEP/   what PaddleNLP's Trainer writes: weights, optimizer, learning
                                   rate, random states, trainer_state.json
                     whole.json    written last, when all of it is on the disk

A checkpoint without whole.json was cut short by a kill and counts for nothing.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.files import read_json, write_json
from appliance.jobs.artifacts import sync_tree

PREFIX = "checkpoint-"
MARKER = "whole.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. The Trainer's own state does not hold these figures."""

    step: int
    total_steps: int
    eval_loss: float | None
    """Loss on the held-out rows at this step, None where it was not measured."""
    pending: tuple[float, ...]
    """Losses of the steps since the last line of the log."""


def folder_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies below the folder of checkpoints."""
    return folder / f"{PREFIX}{step}"


def whole(folder: Path) -> list[Checkpoint]:
    """All whole checkpoints, the oldest first."""
    found = [read_json(path) for path in folder.glob(f"{PREFIX}*/{MARKER}")]
    made = [Checkpoint(**{**raw, "pending": tuple(raw["pending"])}) for raw in found]
    return sorted(made, key=lambda checkpoint: checkpoint.step)


def seal(folder: Path, checkpoint: Checkpoint) -> None:
    """Bring a checkpoint that was just written to the disk, then mark it as whole."""
    written = folder_of(folder, checkpoint.step)
    sync_tree(written)
    write_json(written / MARKER, asdict(checkpoint))


def best(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The one with the lowest held-out loss; the newest where none was measured."""
    measured = [c for c in checkpoints if c.eval_loss is not None]
    return min(measured, key=lambda c: (c.eval_loss, c.step)) if measured else checkpoints[-1]


def prune(folder: Path, keep: int) -> None:
    """Remove what was cut short, and all whole checkpoints but the `keep` newest and the best."""
    checkpoints = whole(folder)
    kept = {c.step for c in checkpoints[-keep:]}
    if checkpoints:
        kept.add(best(checkpoints).step)
    names = {folder_of(folder, step) for step in kept}
    for path in folder.glob(f"{PREFIX}*"):
        if path not in names:
            # The marker goes first: half a removal must not look like a whole checkpoint.
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)
