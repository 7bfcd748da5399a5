"""The offline bundle: all that a host of one profile needs, in one file.

manifest.json   what is in it: the SHA-256 of each file, and the seal over all
debs/           packages with all they depend on, a signed source
wheels/         wheels of the locks; locks/ lists them by hash: train, data, serve (FastDeploy 2)
python.tar.gz   a relocatable Python 3.10, where this machine has one
project/        the appliance's own wheel
keys/           the key of debs/
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from appliance.errors import UserError
from appliance.files import atomic, fingerprint, sha256, write_json
from appliance.version import __version__
from provisioning import debs, wheels
from provisioning.targets import PROJECT, Target, parse_settings, profile_variables


def make_bundle(
    path: Path,
    profile: str,
    *,
    settings: Sequence[str],
    sources: Path | None,
    packages: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write a bundle; returns its manifest.

    `sources` is a file of apt sources instead of this machine's own, `packages` further Debian
    packages. Raises MachineError for missing tools, UserError for what cannot be had.
    """
    debs.require_tools()
    python = wheels.python_version()
    variables = {**profile_variables(profile), **parse_settings(settings)}
    target = Target("bundle", profile, variables)
    with tempfile.TemporaryDirectory(prefix="bundle-", dir=path.absolute().parent) as scratch:
        room = Path(scratch) / "bundle"
        room.mkdir()
        say("the project, as a wheel")
        (room / "project").mkdir()
        project = wheels.project_wheel(room / "project")
        say(f"a Python {python} that can be carried")
        carried = wheels.relocatable_python(room / "python.tar.gz")
        say("wheels" if carried else f"wheels, for the host's own Python {python}")
        locks = add_wheels(room, target)
        say("Debian packages")
        libraries = wheels.libraries_of_python() if carried else []
        extra = [*packages, *libraries]
        names = add_debs(room, Path(scratch), target, python, extra, sources)
        manifest = {
            "version": __version__,
            "profile": profile,
            "system": debs.this_system(),
            "python": "python.tar.gz" if carried else "",
            "python_version": python,
            "python_packages": libraries,
            "driver": target.get("nvidia_driver", "nvidia_driver_version") if target.cards else "",
            "packages": names,
            "locks": locks,
            "project": str(project.relative_to(room)),
            "key": "keys/bundle.asc",
            "files": hashes(room),
        }
        manifest["seal"] = fingerprint(manifest)
        write_json(room / "manifest.json", manifest)
        say(f"writing {path}")
        pack(room, path)
    return manifest


def hashes(room: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path in the bundle."""
    files = (file for file in sorted(room.rglob("*")) if file.is_file())
    return {str(file.relative_to(room)): sha256(file) for file in files}


def add_wheels(room: Path, target: Target) -> dict[str, str]:
    """Wheels of all locks, and a lock of each kind that names just those."""
    (room / "wheels").mkdir()
    (room / "locks").mkdir()
    written = {}
    variables = target.variables
    wanted = {"train": variables["provision_lock"], "data": variables.get("provision_data_lock")}
    for kind, name in wanted.items():
        if not name:
            continue
        lock = PROJECT / str(name)
        if not lock.is_file():
            raise UserError(f"the lock {lock} is not there")
        with tempfile.TemporaryDirectory(dir=room) as folder:
            wheels.download(lock, Path(folder))
            if kind == "train":
                vendor(target, Path(folder))
            written[kind] = keep(Path(folder), room, kind)
    if target.get("venv_serve", "venv_serve_fastdeploy2"):
        with tempfile.TemporaryDirectory(dir=room) as folder:
            packages = target.get("venv_serve", "venv_serve_packages")
            wheels.download_whole(
                packages, target.get("venv_serve", "venv_serve_index"), Path(folder)
            )
            written["serve"] = keep(Path(folder), room, "serve")
    return written


def keep(folder: Path, room: Path, kind: str) -> str:
    """Move wheels into the bundle and write the lock of just them; returns its path.

    Of a wheel that another lock has too, that one's is kept: built twice, its bytes may differ.
    """
    kept = []
    for wheel in folder.glob("*.whl"):
        kept.append(room / "wheels" / wheel.name)
        if not kept[-1].exists():
            shutil.move(str(wheel), kept[-1])
    (room / "locks" / f"{kind}.txt").write_text(wheels.lock_of(kept))
    return f"locks/{kind}.txt"


def vendor(target: Target, folder: Path) -> None:
    """Add the wheels of Paddle's own index; its FastDeploy for cards replaces the one without."""
    named = target.variables.get("provision_vendor_wheels") or []
    wheels.download_vendor(
        named,
        target.get("venv_train", "venv_train_vendor_index"),
        target.get("venv_train", "venv_train_vendor_links"),
        folder,
    )
    if any(name.startswith("fastdeploy-gpu") for name in named):
        for wheel in folder.glob("fastdeploy_python-*.whl"):
            wheel.unlink()


def add_debs(
    room: Path,
    scratch: Path,
    target: Target,
    python: str,
    extra: Sequence[str],
    sources: Path | None,
) -> list[str]:
    """Debian packages and the key of their source."""
    names = debs.packages_for(target, python, extra)
    optional = target.get("monitoring", "monitoring_dcgm_packages") if target.cards else []
    pins = debs.pins_of(target)
    apt = scratch / "apt"
    found = debs.download(names, optional, pins, apt, room / "debs", sources)
    (room / "keys").mkdir()
    (room / "keys/bundle.asc").write_text(debs.sign(room / "debs", scratch / "gpg"))
    return found


def pack(room: Path, path: Path) -> None:
    """One tar, the manifest first, whole or not at all; what is in it is compressed already."""
    with atomic(path) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(room / "manifest.json", "manifest.json")
        for file in sorted(room.rglob("*")):
            if file.is_file() and file.name != "manifest.json":
                tar.add(file, str(file.relative_to(room)), filter=owned_by_root)


def owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Readable by all, written by root: apt reads as a user of its own."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o644
    return member


def describe(manifest: dict[str, Any]) -> str:
    """What a bundle holds, for people."""
    lines = {
        "profile": manifest["profile"],
        "system": manifest["system"],
        "Python": manifest["python_version"]
        + (" (carried)" if manifest["python"] else " (the host's)"),
        "Debian packages": len(manifest["packages"]),
        "wheels": sum(1 for name in manifest["files"] if name.startswith("wheels/")),
        "seal": manifest["seal"],
    }
    return str(yaml.safe_dump(lines, sort_keys=False)).strip()
