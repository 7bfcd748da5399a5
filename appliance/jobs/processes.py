"""Processes of ours: told apart from later ones with the same number, found again, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import psutil

LAST_GRACE = 2.0  # seconds for what its parent should have ended
KILL_WAIT = 5.0  # seconds for the kernel to take a killed process away


@cache
def world() -> str:
    """What process numbers of this boot and this PID namespace have in common."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.readlink('/proc/self/ns/pid')}"


def mark(pid: int) -> str | None:
    """What tells a process from any other that ever had its number; None where none lives.

    The start time is field 22 of proc_pid_stat(5), in clock ticks since boot: unlike a time of
    day it does not move when the clock is set.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else f"{world()}/{fields[19]}"


def lives(pid: int | None, known: str | None) -> bool:
    """Whether the process that was marked `known` still lives."""
    return pid is not None and known is not None and mark(pid) == known


def surely_gone(pid: int | None, known: str | None) -> bool:
    """Whether a process of this boot and PID namespace is gone; False where one cannot know."""
    ours = known is not None and known.startswith(world() + "/")
    return ours and not lives(pid, known)


def carrying(variable: str, value: str) -> list[psutil.Process]:
    """The living processes, this one aside, whose environment says `variable=value`.

    A child inherits its parent's environment, so this finds workers that outlived their parent
    or left its process group, and needs no record of them.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(variable) == value:
                found.append(process)
    return found


def end_carrying(variable: str, value: str, grace: float) -> int:
    """End the processes that `carrying` finds; how many there were.

    The topmost are asked first and have `grace` seconds to end their children in good order, a
    server its engine for one. What is left then is asked once more, and killed.
    """
    found = carrying(variable, value)
    numbers = {process.pid for process in found}
    tops = [process for process in found if parent(process) not in numbers]
    ask_to_end(found, tops)
    living(tops, grace)
    rest = carrying(variable, value)
    ask_to_end(rest, rest)
    stubborn = living(rest, min(grace, LAST_GRACE))
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    living(stubborn, KILL_WAIT)
    return len(found)


def living(waited: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """The processes that still live when `seconds` have passed; it waits no longer than it must.

    A process whose parent has not asked for its exit code yet does not live.
    """
    deadline = time.monotonic() + seconds
    left = list(waited)
    while left := [process for process in left if mark(process.pid) and process.is_running()]:
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    return left


def ask_to_end(stopped: Sequence[psutil.Process], asked: Sequence[psutil.Process]) -> None:
    """SIGTERM for `asked`; SIGCONT for `stopped`, for a stopped process hears nothing."""
    for process in asked:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in stopped:
        with contextlib.suppress(psutil.Error):
            process.resume()


def parent(process: psutil.Process) -> int | None:
    """The number of a process's parent; None where the process is gone."""
    with contextlib.suppress(psutil.Error):
        return int(process.ppid())
    return None


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process group that `pid` leads, if it still exists."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
