"""Figures, durations and foreign texts as people read them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any


def clean(text: str) -> str:
    """The text without what would steer a terminal: a model may answer anything."""
    # Control characters alone: the joiner of an emoji's parts is not printable either.
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in text
    )


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def figure(value: float) -> str:
    """A figure to four significant digits, whole numbers in full."""
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.4g}"


def outcome(stage: str, metrics: Mapping[str, Any]) -> str:
    """What a stage arrived at, from the metrics of its manifest; empty where they tell nothing."""
    if stage == "prepare" and "train" in metrics and "eval" in metrics:
        return f"{metrics['train']:,} to train on, {metrics['eval']:,} held out"
    if stage == "train" and metrics.get("eval_loss") is not None:
        return f"held-out loss {figure(metrics['eval_loss'])}"
    if stage == "evaluate" and metrics.get("loss_after") is not None:
        before = metrics.get("loss_before")
        first = f"{figure(before)} before, " if before is not None else ""
        return f"held-out loss {first}{figure(metrics['loss_after'])} after training"
    if stage == "verify" and "largest_difference" in metrics:
        return f"proven, logits within {metrics['largest_difference']:.1e}"
    return ""
