"""What a recipe's sources are right now: so that a changed file is prepared anew.

A stage's fingerprint is made of its spec, and the spec of `prepare` only names its files. Their
sizes and times tell a change without reading gigabytes; a file that was only touched is prepared
again, and since that gives the same content, no later stage is.
"""

from __future__ import annotations

import glob
from importlib import metadata
from pathlib import Path

from appliance.recipe import Recipe

PACKAGE = "package:"


def source_stamps(recipe: Recipe) -> dict[str, list[str]]:
    """For each source of the recipe, what would differ if it were another."""
    base = [recipe.model.base] if recipe.model.base else []
    return {source: stamp(source) for source in (*base, *recipe.data.train, *recipe.data.eval)}


def stamp(source: str) -> list[str]:
    """A package's version; for each file of a path or glob its path, size and time of change."""
    if source.startswith(PACKAGE):
        name = source.removeprefix(PACKAGE).split("/")[0]
        try:
            return [metadata.version(name)]
        except metadata.PackageNotFoundError:
            return []  # `prepare` says what is missing
    found = [Path(match) for match in sorted(glob.glob(source, recursive=True))]
    files = [
        file for path in found for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
    ]
    return [
        f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}"
        for file in files
        if file.is_file()
    ]
