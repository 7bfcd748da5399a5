"""Trainings of a tiny model that several tests look at, each run once."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.jobs.artifacts import Stage
from tests.training import stages


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="session")
def prepared(home: Path) -> Path:
    return stages.prepare(home)


@pytest.fixture(scope="session")
def whole(home: Path, prepared: Path) -> Stage:
    """A training with an adapter that nothing disturbed."""
    stage = stages.train_stage(home, prepared, "whole", **stages.LONG)
    stages.run(stage)
    return stage


@pytest.fixture(scope="session")
def full(home: Path) -> Stage:
    """All weights trained, on rows whose held-out answers contradict those trained on."""
    prepared = stages.prepare(home, method="full", contrary=True)
    stage = stages.train_stage(
        home, prepared, "full", method="full", max_steps=40, eval_steps=4, save_total_limit=1
    )
    stages.run(stage)
    return stage


@pytest.fixture(scope="session")
def pretrained(home: Path) -> Stage:
    """A model from scratch; its activations are computed twice, to save memory."""
    prepared = stages.prepare(home, method="pretrain")
    stage = stages.train_stage(
        home,
        prepared,
        "pretrain",
        method="pretrain",
        max_steps=-1,
        num_train_epochs=6,
        recompute=True,
    )
    stages.run(stage)
    return stage
