"""`appliance doctor`: what this machine has, what is missing, how to mend it."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from appliance.home import home
from appliance.machine import GIB, Machine, measure

State = Literal["ok", "note", "missing"]

MIN_MEMORY = 8 * GIB  # the quickstart's training holds about 5 GiB
MIN_DISK = 10 * GIB  # the quickstart's artifacts take about 4 GiB
IMPORT_DEADLINE = 180.0  # seconds; a cold disk takes half a minute

SIGNS: dict[State, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "note": ("!", "yellow"),
    "missing": ("✗", "red"),
}
ENGINE_PROBES = {
    "fastdeploy": ["-c", "import fastdeploy; fastdeploy.RuntimeOption(); print('loads')"],
    "onnxruntime": [
        "-c",
        "import onnxruntime; print(', '.join(onnxruntime.get_available_providers()))",
    ],
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report. `remedy` is empty where nothing need be done."""

    subject: str
    state: State
    found: str
    remedy: str = ""


def report(console: Console, *, deep: bool = False) -> bool:
    """Print a line a finding, and below it how to mend it; whether nothing is missing."""
    complete = True
    for finding in examine(deep=deep):
        sign, colour = SIGNS[finding.state]
        complete &= finding.state != "missing"
        line = Text.assemble((sign, colour), f" {finding.subject}: {finding.found}")
        console.print(line, soft_wrap=True)
        if finding.remedy:
            console.print(Text(f"    {finding.remedy}"), soft_wrap=True)
    return complete


def examine(*, deep: bool = False) -> Iterator[Finding]:
    """Look at the machine. `deep` also starts Paddle and the engines (about 20 seconds)."""
    machine = measure(home())
    yield python()
    yield from packages(machine)
    yield from hardware(machine)
    if deep:
        yield probe("Paddle computes", ["-m", "appliance.training.probe"])
        for name, arguments in ENGINE_PROBES.items():
            if importlib.util.find_spec(name):
                yield probe(f"{name} loads", arguments)


def python() -> Finding:
    """Which Python, and what follows for the engines."""
    found = f"{platform.python_version()}, {platform.machine()}, {platform.system()}"
    if sys.version_info[:2] == (3, 10) and platform.machine() == "x86_64":
        return Finding("Python", "ok", found)
    return Finding(
        "Python",
        "note",
        found,
        "FastDeploy 1.0.7 has wheels for Python 3.10 on x86-64 alone: "
        "use `engine: onnxruntime` in recipes, or set up again with Python 3.10.",
    )


def version(package: str) -> str | None:
    """The installed version of a distribution, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def packages(machine: Machine) -> Iterator[Finding]:
    """The libraries that stages and engines stand on."""
    mend = "Run `make setup`."
    gpu, cpu = version("paddlepaddle-gpu"), version("paddlepaddle")
    if gpu:
        yield Finding("Paddle", "ok", f"paddlepaddle-gpu {gpu}")
    elif cpu and machine.cards:
        yield Finding(
            "Paddle",
            "note",
            f"paddlepaddle {cpu}: the CPU build, though there are cards",
            "Install requirements/gpu-cu118.txt (docs/verified.md says how).",
        )
    elif cpu:
        yield Finding("Paddle", "ok", f"paddlepaddle {cpu} (CPU)")
    else:
        yield Finding("Paddle", "missing", "not installed: nothing can be trained", mend)
    for package in ("paddlenlp", "paddle2onnx", "onnxruntime"):
        found = version(package)
        if found:
            yield Finding(package, "ok", found)
        else:
            yield Finding(package, "missing", "not installed", mend)
    fastdeploy = version("fastdeploy-python") or version("fastdeploy-gpu-python")
    if fastdeploy:
        yield Finding("FastDeploy", "ok", fastdeploy)
    else:
        yield Finding(
            "FastDeploy", "note", "not installed", "Use `engine: onnxruntime` in recipes."
        )


def hardware(machine: Machine) -> Iterator[Finding]:
    """Cards, cores, memory and disk."""
    if machine.cards:
        names = ", ".join(f"{card.name} {card.memory / GIB:.0f} GiB" for card in machine.cards)
        yield Finding("Cards", "ok", names)
    else:
        yield Finding(
            "Cards",
            "note",
            "no NVIDIA card or no driver: small models are trained on the CPU",
            "With cards in this machine: `nvidia-smi` must list them.",
        )
    yield Finding("Cores", "ok", f"{machine.cores}, {processor()}")
    yield at_least("Memory", machine.memory, MIN_MEMORY, "Smaller batches need less.")
    if not os.access(home(), os.W_OK):
        yield Finding(
            str(home()),
            "missing",
            "cannot be written to",
            "Set APPLIANCE_HOME to a folder that you may write to.",
        )
    yield at_least(
        f"Disk at {home()}",
        machine.disk_free,
        MIN_DISK,
        "Set APPLIANCE_HOME to a folder on a larger disk.",
    )


def processor() -> str:
    """The processor's name as Linux tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


def at_least(subject: str, have: int, need: int, remedy: str) -> Finding:
    """Compare bytes that are there with bytes that the quickstart needs."""
    found = f"{have / GIB:.1f} GiB"
    if have >= need:
        return Finding(subject, "ok", found)
    return Finding(subject, "note", f"{found}: the quickstart wants {need / GIB:.0f} GiB", remedy)


def probe(subject: str, arguments: list[str]) -> Finding:
    """Run Python with some arguments in a process of its own and report what it says."""
    environment = {**os.environ, "MKL_DEBUG_CPU_TYPE": "5", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *arguments],
            capture_output=True,
            text=True,
            timeout=IMPORT_DEADLINE,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return Finding(subject, "missing", f"no answer in {IMPORT_DEADLINE:.0f} s", "Try again.")
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = lines[-1] if lines else f"exit {done.returncode}"
    if done.returncode == 0:
        return Finding(subject, "ok", last)
    return Finding(subject, "missing", last, "Run `make clean setup`.")
