"""The held-out loss by hand, in numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from appliance.bundle import reference
from appliance.bundle.config import ModelConfig
from appliance.bundle.weights import Weights


def numpy_loss(base: Path, prepared: Path) -> float:
    """Mean cross entropy over the answers' tokens of eval.jsonl, from the reference's logits."""
    config, weights = ModelConfig.read(base), Weights.open(base)
    found = []
    for line in (prepared / "eval.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        logits = reference.logits(config, weights, row["input_ids"]).astype(np.float64)
        shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for at, label in enumerate(row["labels"][1:]):
            if label != -100:
                found.append(-shares[at, label])
    return float(np.mean(found))
