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

from appliance.errors import MachineError


def home() -> Path:
    """The folder, made where it is missing. Raises MachineError where it cannot be."""
    path = Path(os.environ.get("APPLIANCE_HOME") or Path.home() / ".appliance").absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(
            f"{path} cannot be made: {error.strerror}",
            hint="Set APPLIANCE_HOME to a folder that you may write to.",
        ) from None
    return path
