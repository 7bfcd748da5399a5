"""The plan: what will run for a recipe on a machine. A pure function, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.machine import Machine
from appliance.recipe import Recipe

ANSWER_TOKENS = 48  # of the answers before and after training: enough for the eye


@dataclass(frozen=True)
class PlannedStage:
    """One stage: what it reads and all that decides what it writes."""

    name: str
    inputs: tuple[str, ...]
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """The stages of a job, in order."""

    name: str
    devices: int
    stages: tuple[PlannedStage, ...]


def make_plan(recipe: Recipe, machine: Machine) -> Plan:
    """Lay out the stages. A stage's spec holds only what can change its result."""
    r = recipe.model_dump(mode="json")
    method = recipe.train.method
    devices = max(1, len(machine.cards))
    served = {key: r["serve"][key] for key in ("engine", "backend", "slots", "max_length")}
    stages = (
        PlannedStage(
            "prepare",
            (),
            {"model": r["model"], "data": r["data"], "method": method, "seed": recipe.train.seed},
        ),
        PlannedStage("train", ("prepare",), {"train": r["train"], "devices": devices}),
        PlannedStage(
            "evaluate",
            ("prepare", "train"),
            {
                "method": method,
                "batch_size": recipe.train.per_device_eval_batch_size,
                "questions": recipe.data.questions,
                "max_new_tokens": ANSWER_TOKENS,
            },
        ),
        PlannedStage("merge", ("prepare", "train"), {"method": method}),
        PlannedStage("export", ("merge",), {"export": r["export"]}),
        PlannedStage(
            "verify",
            ("prepare", "train", "evaluate", "merge", "export"),
            {"name": recipe.name, "recipe": {**r, "serve": served}},
        ),
        PlannedStage(
            "deploy",
            ("verify",),
            {"serve": {**r["serve"], "name": recipe.serve.name or recipe.name}},
        ),
    )
    return Plan(recipe.name, devices, stages)
