"""The seal: every file of a bundle as it was when the proof was made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.errors import BundleError, SealError
from appliance.files import read_json, sealed, sha256

MANIFEST = "manifest.json"
_REMEDY = "Restore the file, or make the bundle anew with `appliance up RECIPE`."

Progress = Callable[[int, int], None]
"""Told how many of how many bytes are checked."""


def read_sealed(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle, its own seal checked. Raises BundleError, SealError."""
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise BundleError(
            f"{folder} is no bundle: {MANIFEST} is missing",
            hint="Name a folder that `appliance up` made, such as ~/.appliance/bundles/NAME.",
        ) from None
    except ValueError as error:
        raise SealError(f"{path} was changed: it is not JSON ({error})", hint=_REMEDY) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise SealError(f"{path} was changed: it lists no files", hint=_REMEDY)
    if manifest.get("seal") != sealed(manifest)["seal"]:
        raise SealError(f"{path} was changed after sealing", hint=_REMEDY)
    return manifest


def check_files(folder: Path, manifest: dict[str, Any], progress: Progress | None = None) -> None:
    """Compare every file with a manifest, and look for others. Raises SealError naming one."""
    files: dict[str, dict[str, Any]] = manifest["files"]
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise SealError(f"{path} is missing from the sealed bundle", hint=_REMEDY)
        if path.stat().st_size != entry["size"]:
            raise SealError(
                f"{path} was changed after sealing: {path.stat().st_size} bytes, "
                f"{entry['size']} when sealed",
                hint=_REMEDY,
            )
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name != MANIFEST and name not in files:
            raise SealError(
                f"{path} was added to the sealed bundle", hint="Move the file out of the folder."
            )
    total, done = sum(entry["size"] for entry in files.values()), 0
    for name, entry in files.items():
        if sha256(folder / name) != entry["sha256"]:
            raise SealError(f"{folder / name} was changed after sealing", hint=_REMEDY)
        done += entry["size"]
        if progress is not None:
            progress(done, total)
