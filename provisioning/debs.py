"""The Debian packages of a bundle: a full closure, in a signed source of its own."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from appliance.errors import MachineError, UserError
from provisioning.targets import Target
from provisioning.wheels import run

APT_SECONDS = 3600
TOOLS = {"apt-get": "apt", "apt-ftparchive": "apt-utils", "gpg": "gnupg"}


def require_tools() -> None:
    """Raise MachineError naming what making a bundle lacks."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        packages = " ".join(TOOLS[tool] for tool in missing)
        raise MachineError(
            f"making a bundle needs {', '.join(missing)}", hint=f"apt-get install {packages}"
        )


def this_system() -> str:
    """`debian 12`: the system that apt here serves, and the bundle is for."""
    release = platform.freedesktop_os_release()
    return f"{release['ID']} {release.get('VERSION_ID', '')}".strip()


def packages_for(target: Target, python: str, extra: Sequence[str]) -> list[str]:
    """All packages that the roles install on a host of this profile; versions where pinned."""
    system = this_system()
    family = "Ubuntu" if system.startswith("ubuntu") else "Debian"
    names = [*target.get("base", "base_packages"), "prometheus-node-exporter", *extra]
    names += target.get("venv_train", "venv_train_packages")
    names += [f"python{python}", f"python{python}-venv"] if family == "Ubuntu" else []
    names += ["python3.11", "python3.11-venv"] if family == "Debian" else []
    if target.cards:
        version = target.get("nvidia_driver", "nvidia_driver_version")
        pinned = list(target.get("nvidia_driver", "nvidia_driver_packages")[family])
        if int(target.variables["provision_switches"]):
            pinned.append(target.get("fabricmanager", "fabricmanager_package"))
        names += [f"{name}={version}-*" for name in pinned]
        if target.get("cuda_runtime", "cuda_runtime_toolkit"):
            names += target.get("cuda_runtime", "cuda_runtime_toolkit_packages")[family]
    return names


def download(
    names: Sequence[str],
    optional: Sequence[str],
    pins: str,
    scratch: Path,
    target: Path,
    sources: Path | None,
) -> list[str]:
    """Put packages with all they depend on into `target`; returns the packages' names.

    apt works as on a machine with nothing installed, so that the set is whole for any host.
    `optional` are taken where the package sources have them. Raises UserError in apt's words.
    """
    options = empty_apt(scratch, pins, sources)
    run(["apt-get", *options, "--quiet", "update"], APT_SECONDS)
    known = run(["apt-cache", *options, "pkgnames"], 300).split()
    wanted = [*names, *sorted(set(optional) & set(known))]
    fetch = ["install", "--download-only", "--yes", "--quiet", *wanted]
    run(["apt-get", *options, *fetch], APT_SECONDS)
    found = sorted((scratch / "archives").glob("*.deb"))
    if not found:
        raise UserError("apt downloaded nothing", hint="Look at the package sources.")
    target.mkdir(parents=True)
    for deb in found:
        # apt writes an epoch's colon as %3a, which a file's address would mean otherwise.
        shutil.move(str(deb), target / deb.name.replace("%3a", "_"))
    return sorted(deb.name.split("_")[0] for deb in found)


def empty_apt(scratch: Path, pins: str, sources: Path | None) -> list[str]:
    """Options that let apt work in `scratch` as on a machine with nothing installed."""
    for name in ("lists/partial", "archives/partial"):
        (scratch / name).mkdir(parents=True)
    (scratch / "status").touch()
    (scratch / "preferences").write_text(pins)
    settings = {
        "Dir::State::status": scratch / "status",
        "Dir::State::lists": f"{scratch}/lists/",
        "Dir::State::extended_states": scratch / "extended_states",
        "Dir::Cache::archives": f"{scratch}/archives/",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Dir::Etc::preferences": scratch / "preferences",
        "Dir::Etc::preferencesparts": "-",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
        "Acquire::Retries": "3",
        "Acquire::http::Timeout": "30",
    }
    if sources:
        settings |= {"Dir::Etc::sourcelist": sources.absolute(), "Dir::Etc::sourceparts": "-"}
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def sign(folder: Path, scratch: Path) -> str:
    """Make `folder` a package source, signed by a throw-away key; returns the public key."""
    for old in ("Packages", "Release", "InRelease"):
        (folder / old).unlink(missing_ok=True)
    index = run(["sh", "-c", 'cd "$1" && apt-ftparchive packages .', "sh", str(folder)], 600)
    (folder / "Packages").write_text(index)
    options = ["-o", "APT::FTPArchive::Release::Origin=llm-appliance"]
    release = run(
        [
            "sh",
            "-c",
            'cd "$1" && shift && apt-ftparchive "$@" release .',
            "sh",
            str(folder),
            *options,
        ],
        600,
    )
    (folder / "Release").write_text(release)
    scratch.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(scratch), "--batch", "--quiet"]
    try:
        key = [
            "--passphrase",
            "",
            "--quick-generate-key",
            "LLM Appliance bundle",
            "ed25519",
            "sign",
        ]
        run([*gpg, *key, "never"], 120)
        signed = ["--clearsign", "--output", str(folder / "InRelease"), str(folder / "Release")]
        run([*gpg, *signed], 120)
        return run([*gpg, "--armor", "--export"], 60)
    finally:
        agent = ["gpgconf", "--homedir", str(scratch), "--kill", "gpg-agent"]
        subprocess.run(agent, capture_output=True, timeout=60)
        shutil.rmtree(scratch, ignore_errors=True)


def pins_of(target: Target) -> str:
    """apt's preferences for the driver's family, as role nvidia_driver writes them."""
    if not target.cards:
        return ""
    family = target.get("nvidia_driver", "nvidia_driver_family")
    version = target.get("nvidia_driver", "nvidia_driver_version")
    if not re.fullmatch(r"\d+(\.\d+)+", str(version)):
        raise UserError(f"nvidia_driver_version {version!r} is no version like 580.173.02")
    return f"Package: {family}\nPin: version {version}-*\nPin-Priority: 1001\n"
