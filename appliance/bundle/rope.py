"""Rotary embedding: the frequencies of a Llama, and the tables that the graph looks up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any] | None
) -> NDArray[np.float64]:
    """Radians a position turns each of the `head_dim / 2` pairs: theta^(-2i/head_dim), scaled.

    `linear` (arXiv:2306.15595) divides all of them by its factor. `llama3` divides those whose
    wavelength exceeds first context / low_freq_factor, leaves those shorter than first context /
    high_freq_factor, and goes over smoothly between (Llama 3.1's model card and reference code).
    """
    plain: NDArray[np.float64] = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return plain
    if scaling["rope_type"] == "linear":
        return np.divide(plain, scaling["factor"])
    if scaling["rope_type"] != "llama3":
        raise ValueError(f"no rope scaling {scaling['rope_type']!r}")
    first = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = first * plain / (2 * np.pi)  # over the first context
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    mixed: NDArray[np.float64] = share * plain + (1 - share) * plain / scaling["factor"]
    return mixed


def table(
    head_dim: int, theta: float, scaling: Mapping[str, Any] | None, length: int
) -> NDArray[np.float32]:
    """One row a position, `[length, 2 * head_dim]`: cosines twice, then sines, first half negated.

    With x = [a, b] in two halves, x·cos + [b, a]·sin is the rotation.
    """
    angles = np.outer(np.arange(length), frequencies(head_dim, theta, scaling))
    cos, sin = np.cos(angles), np.sin(angles)
    rows: NDArray[np.float32] = np.concatenate([cos, cos, -sin, sin], -1).astype(np.float32)
    return rows
