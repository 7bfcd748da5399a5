"""Why a stage's program ended: the error to raise for its exit code and its last words."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from appliance import errors
from appliance.errors import ApplianceError, Interrupted, StageError

SHOWN_LINES = 4
INTERRUPTED = Interrupted.exit_code
# The last line of a traceback: "package.SomeError: why", or the error's name alone.
CAUSE = re.compile(r"^(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit|NotFound)\b")


def failure(
    name: str, code: int, error: Mapping[str, Any] | None, printed: Sequence[str]
) -> ApplianceError:
    """The error of a stage that ended with `code`, not 0.

    `error` is the stage's last event of that kind, which is shown as it stands; `printed` is what
    the program printed.
    """
    if error is not None:
        kind = getattr(errors, str(error["type"]), StageError)
        said: ApplianceError = kind(f"{name}: {error['message']}", hint=str(error["hint"]))
        return said
    if code in (INTERRUPTED, -signal.SIGTERM, -signal.SIGINT):
        return Interrupted(f"{name} was stopped from outside")
    if code == -signal.SIGKILL:
        return StageError(
            f"{name} was killed (SIGKILL)",
            hint="The kernel does that when memory runs out: `dmesg` tells. A smaller batch or a"
            " shorter max_length needs less.",
        )
    words = "".join(f"\n  {line}" for line in last_words(printed))
    if os.strerror(errno.ENOSPC) in words:
        return StageError(
            f"{name} found the disk full{words}",
            hint="Make room, or set APPLIANCE_HOME to a folder on a larger disk.",
        )
    if code < 0:
        return StageError(f"{name} was ended by {signal.Signals(-code).name}{words}")
    return ApplianceError(
        f"{name} ended with exit code {code}{words}",
        hint="This looks like a defect of the appliance.",
    )


def last_words(printed: Sequence[str]) -> list[str]:
    """The lines that tell a cause: those from the last error's name on, else the last few."""
    lines = [line for line in printed if line.strip()]
    causes = [index for index, line in enumerate(lines) if CAUSE.match(line)]
    start = causes[-1] if causes else max(0, len(lines) - SHOWN_LINES)
    return lines[start : start + SHOWN_LINES]
