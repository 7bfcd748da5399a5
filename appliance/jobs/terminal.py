"""The terminal that a job is shown on, or whatever stands in for one."""

from __future__ import annotations

import contextlib
import os
import termios
from collections.abc import Iterator

from rich.console import Console


class Screen(Console):
    """A console whose reader may go away, `appliance up … | head` for one: the job goes on."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on."""
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


@contextlib.contextmanager
def no_control_echo(console: Console) -> Iterator[None]:
    """Keep the terminal from writing ^C into a live display, which it would put out of line.

    A process in the background leaves the terminal alone: to change it would stop the process.
    """
    try:
        terminal = console.file.fileno()
        before = termios.tcgetattr(terminal)
        ours = os.tcgetpgrp(terminal) == os.getpgrp()
    except (OSError, termios.error):
        ours = False
    if not ours:
        yield
        return
    silent = [*before]
    silent[3] &= ~termios.ECHOCTL
    termios.tcsetattr(terminal, termios.TCSANOW, silent)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, termios.error):
            if os.tcgetpgrp(terminal) == os.getpgrp():
                termios.tcsetattr(terminal, termios.TCSANOW, before)
