"""Where packages come from: the internet, a bundle (one file) or a mirror (a bundle over HTTP)."""

from __future__ import annotations

import hashlib
import json
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from appliance.errors import UserError
from appliance.files import fingerprint, sha256
from provisioning.targets import PROJECT, Target

ON_HOST = PurePosixPath("/var/cache/appliance/bundles")
MIRROR_SECONDS = 30


@dataclass(frozen=True)
class Source:
    """What the roles are told: `extra` are their variables; `locks` files on this machine."""

    name: str
    extra: Mapping[str, Any]
    locks: Mapping[str, str]
    release: str
    mib: float | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)


def online(folder: Path) -> Source:
    """The distribution's, NVIDIA's and Python's own indexes; the project is built from here."""
    from provisioning.wheels import project_wheel

    wheel = project_wheel(folder)
    return made("online", wheel, {}, {})


def made(name: str, wheel: Path, locks: dict[str, str], extra: dict[str, Any]) -> Source:
    """A Source with all variables that the roles always need."""
    release = sha256(wheel)[:16]
    base = {
        "provision_source": "",
        "provision_project": str(PROJECT),
        "provision_locks": locks,
        "provision_wheel": str(wheel),
        "provision_release": release,
    }
    return Source(name, {**base, **extra}, locks, release)


def from_bundle(path: Path, folder: Path) -> Source:
    """A bundle file, every byte of it checked against its manifest.

    Raises UserError where it is not whole. What this machine needs of it goes to `folder`.
    """
    manifest = read_manifest(path)
    check_bundle(path, manifest)
    with tarfile.open(path) as tar:
        for name in wanted_here(manifest):
            tar.extract(name, folder, filter="data")
    on_host = str(ON_HOST / manifest["seal"][:16])
    extra = {
        "provision_source": f"file://{on_host}",
        "provision_bundle_file": str(path.absolute()),
        "provision_bundle_folder": on_host,
    }
    source = local("bundle", manifest, folder, extra)
    return Source(
        source.name,
        source.extra,
        source.locks,
        source.release,
        path.stat().st_size / 2**20,
        manifest,
    )


def from_mirror(url: str, folder: Path) -> Source:
    """A bundle's folder served over HTTP. Raises UserError where it does not answer."""
    url = url.rstrip("/")
    manifest = checked_seal(json.loads(fetch(f"{url}/manifest.json")), url)
    for name in wanted_here(manifest):
        data = fetch(f"{url}/{name}")
        if hashlib.sha256(data).hexdigest() != manifest["files"][name]:
            raise UserError(f"{url}/{name} is not what the manifest says", hint="Unpack it anew.")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return local("mirror", manifest, folder, {"provision_source": url})


def local(name: str, manifest: dict[str, Any], folder: Path, extra: dict[str, Any]) -> Source:
    """The Source of a manifest whose small files lie in `folder`."""
    locks = {kind: str(folder / path) for kind, path in manifest["locks"].items()}
    locks.setdefault("data", "")
    known = {
        "provision_source_key": (folder / manifest["key"]).read_text(),
        "provision_debs": manifest["packages"],
        "provision_bundle_system": manifest["system"],
        "provision_python": manifest["python"],
        "provision_python_packages": manifest["python_packages"],
    }
    source = made(name, folder / manifest["project"], locks, {**known, **extra})
    return Source(source.name, source.extra, source.locks, source.release, 0.0, manifest)


def require(source: Source, targets: Iterable[Target]) -> None:
    """Raise UserError where a bundle lacks what some host is to get."""
    if not source.manifest:
        return
    for target in targets:
        remade = f"Make one: appliance provision --bundle FILE --profile {target.profile}"
        if target.cards and not source.manifest["driver"]:
            made_for = source.manifest["profile"]
            raise UserError(
                f"{target.name} has cards, and the bundle, made for {made_for}, has no driver",
                hint=remade,
            )
        if target.get("venv_serve", "venv_serve_fastdeploy2") and "serve" not in source.locks:
            raise UserError(
                f"the bundle has no FastDeploy 2 for {target.name}",
                hint=f"{remade}, or leave it out: --set venv_serve_fastdeploy2=false",
            )


def wanted_here(manifest: Mapping[str, Any]) -> list[str]:
    """The files that this machine reads."""
    return [manifest["project"], manifest["key"], *manifest["locks"].values()]


def read_manifest(path: Path) -> dict[str, Any]:
    """A bundle's manifest, the first file of it."""
    remedy = "Make one with: appliance provision --bundle FILE --profile NAME"
    try:
        with tarfile.open(path) as tar:
            first = tar.next()
            stream = tar.extractfile(first) if first and first.name == "manifest.json" else None
            if stream is None:
                raise UserError(f"{path} is no provisioning bundle", hint=remedy)
            return checked_seal(json.load(stream), str(path))
    except (OSError, tarfile.TarError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a bundle: {error}", hint=remedy) from None


def checked_seal(manifest: dict[str, Any], where: str) -> dict[str, Any]:
    """The manifest, if its seal fits it."""
    bare = {name: value for name, value in manifest.items() if name != "seal"}
    if manifest.get("seal") != fingerprint(bare):
        raise UserError(f"{where}: the manifest was changed", hint="Copy or make the bundle anew.")
    return manifest


def check_bundle(path: Path, manifest: Mapping[str, Any]) -> None:
    """Compare every file of a bundle with the manifest."""
    missing = set(manifest["files"])
    with tarfile.open(path) as tar:
        for member in tar:
            if not member.isfile() or member.name == "manifest.json":
                continue
            stream = tar.extractfile(member)
            digest = hashlib.sha256()
            while stream and (block := stream.read(1 << 20)):
                digest.update(block)
            if manifest["files"].get(member.name) != digest.hexdigest():
                raise UserError(
                    f"{path}: {member.name} is not what the manifest says", hint="Copy it anew."
                )
            missing.discard(member.name)
    if missing:
        raise UserError(f"{path} lacks {', '.join(sorted(missing)[:3])}", hint="Copy it anew.")


def fetch(url: str) -> bytes:
    """What an address answers. Raises UserError where it does not."""
    try:
        with urllib.request.urlopen(url, timeout=MIRROR_SECONDS) as answer:
            return bytes(answer.read())
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise UserError(
            f"{url} does not answer: {error}", hint="Unpack a bundle there and serve the folder."
        ) from None
