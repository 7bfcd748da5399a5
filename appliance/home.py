"""Where the appliance keeps what it makes: `$APPLIANCE_HOME`, else `~/.appliance`.

jobs.sqlite        the store
jobs/ID/           log.txt, events.jsonl, recipe.yaml of one job
artifacts/STAGE/FINGERPRINT/   what a stage published; FINGERPRINT.partial while it works
bundles/NAME       link to the newest bundle of that name (an artifact of `verify`)
deployments/NAME/  log.txt of the serving process
"""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder, made where it is missing."""
    path = Path(os.environ.get("APPLIANCE_HOME") or Path.home() / ".appliance").absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path
