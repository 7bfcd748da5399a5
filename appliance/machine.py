"""The machine: what one host has, measured or by the name of a profile."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from appliance.errors import MachineError

GIB = 1 << 30


@dataclass(frozen=True)
class Card:
    """One accelerator. `memory` in bytes."""

    name: str
    memory: int


@dataclass(frozen=True)
class Machine:
    """Cards, cores, memory and disk. `memory` and `disk_free` in bytes."""

    cards: tuple[Card, ...]
    cores: int
    memory: int
    disk_free: int


PROFILES = {
    "a100-80g-x8": Machine((Card("A100-SXM4-80GB", 80 * GIB),) * 8, 128, 1024 * GIB, 4096 * GIB),
    "a100-40g-x4": Machine((Card("A100-PCIE-40GB", 40 * GIB),) * 4, 64, 512 * GIB, 2048 * GIB),
    "cpu": Machine((), 2, 16 * GIB, 64 * GIB),
}


def profile(name: str) -> Machine:
    """A named machine. Raises MachineError for a name that is none."""
    if name not in PROFILES:
        raise MachineError(
            f"no machine profile is called {name!r}", hint=f"Profiles: {', '.join(PROFILES)}."
        )
    return PROFILES[name]


def measure(folder: Path) -> Machine:
    """Measure this host; `folder` says which disk."""
    return Machine(
        cards=cards(),
        cores=len(os.sched_getaffinity(0)),
        memory=psutil.virtual_memory().total,
        disk_free=psutil.disk_usage(str(folder)).free,
    )


def cards() -> tuple[Card, ...]:
    """The NVIDIA cards that the driver shows; none where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return tuple(
            Card(str(pynvml.nvmlDeviceGetName(h)), int(pynvml.nvmlDeviceGetMemoryInfo(h).total))
            for h in handles
        )
    finally:
        pynvml.nvmlShutdown()
