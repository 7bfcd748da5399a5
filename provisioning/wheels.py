"""The wheelhouse of a bundle: wheels by hash-locked lists, and an interpreter to go with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from appliance.errors import MachineError, UserError
from appliance.files import sha256
from provisioning.targets import PROJECT

PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")
WHEELS_SECONDS = 3600
LEFT_OUT = ("test", "idlelib", "tkinter", "turtledemo", "lib2to3", "__pycache__", "site-packages")
PROBE = "import bz2, ctypes, ensurepip, hashlib, lzma, readline, sqlite3, ssl, sys, zlib"


def run(command: list[str], seconds: float) -> str:
    """A command's output. Raises UserError with its last words where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise UserError(f"{Path(command[0]).name} did not end within {seconds:.0f} s") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip()[-1500:]
        raise UserError(f"{' '.join(command[:6])} … failed: {words}")
    return done.stdout


def project_wheel(folder: Path) -> Path:
    """The project itself as a wheel. Raises UserError outside a checkout."""
    if not (PROJECT / "pyproject.toml").is_file():
        raise UserError(
            "provisioning needs the project's checkout, to bring it to the hosts",
            hint="Run it from a clone.",
        )
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    # The same sources give the same bytes, so that a host is changed by a change alone.
    os.environ.setdefault("SOURCE_DATE_EPOCH", "1700000000")
    with tempfile.TemporaryDirectory() as scratch:
        clean = Path(scratch) / "project"
        copy_sources(clean)
        run([sys.executable, *PIP, "wheel", *options, str(clean)], 600)
    return next(folder.glob("llm_appliance-*.whl"))


def copy_sources(target: Path) -> None:
    """What the wheel is made of, away from the build folders of a checkout."""
    import shutil

    target.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (PROJECT / name).exists():
            shutil.copyfile(PROJECT / name, target / name)
    for package in ("appliance", "serving", "provisioning"):
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(PROJECT / package, target / package, ignore=ignored)


def download(lock: Path, folder: Path) -> None:
    """Wheels of a hash-locked list, into a folder; what has no wheel is built into one."""
    options = ["--require-hashes", "--no-deps", "--wheel-dir", str(folder), "-r", str(lock)]
    run([sys.executable, *PIP, "wheel", *options], WHEELS_SECONDS)


def download_vendor(wheels: Iterable[str], index: str, links: str, folder: Path) -> None:
    """Wheels that Paddle's own index alone has, by version."""
    for wheel in wheels:
        where = ["--find-links", links] if "fastdeploy" in wheel else ["--index-url", index]
        options = ["--no-deps", "--wheel-dir", str(folder), *where, wheel]
        run([sys.executable, *PIP, "wheel", *options], WHEELS_SECONDS)


def download_whole(packages: Iterable[str], index: str, folder: Path) -> None:
    """Packages with all that they ask for, from Paddle's own index beside pip's."""
    options = ["--wheel-dir", str(folder), "--extra-index-url", index, *packages]
    run([sys.executable, *PIP, "wheel", *options], WHEELS_SECONDS)


def lock_of(wheels: Iterable[Path]) -> str:
    """A hash-locked list of exactly these wheels."""
    lines = []
    for wheel in sorted(wheels):
        name, version = wheel.name.split("-")[:2]
        lines.append(f"{name.replace('_', '-')}=={version} --hash=sha256:{sha256(wheel)}\n")
    return "".join(lines)


def python_version() -> str:
    """The version that the wheels are for: that of the Python that runs us, 3.10 or 3.11."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if version not in ("3.10", "3.11"):
        raise MachineError(
            f"bundles are made with Python 3.10 or 3.11, not {version}",
            hint="Hosts have 3.10 (Ubuntu 22.04, or the bundle's own) or 3.11 (Debian 12).",
        )
    return version


def relocatable_python(archive: Path) -> bool:
    """Put this machine's Python 3.10 into an archive, if a copy of it runs elsewhere.

    False where it does not, or where this is not 3.10: the host then uses its own Python.
    """
    prefix = Path(sys.base_prefix)
    if python_version() != "3.10" or prefix == Path("/usr"):
        return False
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz", compresslevel=3) as tar:
        for part in ("bin", "lib"):
            tar.add(prefix / part, f"python/{part}", filter=needed)
    with tempfile.TemporaryDirectory() as elsewhere:
        with tarfile.open(archive) as tar:
            tar.extractall(elsewhere, filter="fully_trusted")
        python = Path(elsewhere) / "python/bin/python3.10"
        # On the host the loader is told of python/lib; the role tries the interpreter again there.
        loader = {"LD_LIBRARY_PATH": f"{elsewhere}/python/lib"}
        command = [str(python), "-c", f"{PROBE}; print(sys.base_prefix)"]
        done = subprocess.run(command, env=loader, capture_output=True, text=True, timeout=60)
        if done.returncode == 0 and done.stdout.strip().startswith(elsewhere):
            return True
    archive.unlink()
    return False


def needed(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what no environment uses: tests, editors, other people's packages."""
    parts = Path(member.name).parts
    if any(part in LEFT_OUT for part in parts) or member.name.endswith((".a", ".pyc")):
        return None
    if len(parts) > 2 and parts[1] == "bin" and not re.fullmatch(r"python3(\.10)?", parts[2]):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def libraries_of_python() -> list[str]:
    """Debian packages of the shared libraries that this Python opens."""
    prefix = Path(sys.base_prefix)
    found: set[str] = set()
    for path in [Path(sys.executable).resolve(), *prefix.glob("lib/python3.10/lib-dynload/*.so")]:
        for line in run(["ldd", str(path)], 60).splitlines():
            match = re.search(r"=> (/\S+)", line)
            if match and not match.group(1).startswith(str(prefix)):
                found.add(os.path.realpath(match.group(1)))
    packages = set()
    for library in found:
        done = subprocess.run(["dpkg", "-S", library], capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            packages.add(done.stdout.split(":")[0])
    return sorted(packages)
