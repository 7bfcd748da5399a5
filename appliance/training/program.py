"""What every stage program does around its work: errors, signals, and the controller's lifeline."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from appliance.errors import ApplianceError, Interrupted, UserError
from appliance.jobs.artifacts import Stage

LIFELINE = "APPLIANCE_LIFELINE"
GRACE_SECONDS = 10.0  # between being asked to stop and being made to


def run_stage(work: Callable[[Stage], None]) -> NoReturn:
    """Run `work` on the stage whose stage.json is the only argument, under the stage's lock.

    `work` must not call `stage.open()` itself. Exit codes as `run_program` says.
    """
    run_program(lambda: _work_on_stage(work))


def run_program(work: Callable[[], None]) -> NoReturn:
    """Run `work`, then leave with its exit code; for processes that do not take a stage's lock.

    An ApplianceError ends with its own code, message and hint on stderr, any other error with 70
    and a traceback. SIGTERM and Ctrl-C raise Interrupted (130) in the main thread. Where the
    environment has APPLIANCE_LIFELINE=1, the end of stdin (its writer died) ends the process group.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    if os.environ.get(LIFELINE) == "1":
        threading.Thread(target=_hold_lifeline, daemon=True).start()
    sys.exit(_exit_code(work))


def _work_on_stage(work: Callable[[Stage], None]) -> None:
    if len(sys.argv) != 2:
        raise UserError(f"usage: python -m {_module()} STAGE_JSON")
    stage = Stage.read(Path(sys.argv[1]))
    try:
        with stage.open():
            work(stage)
    except Interrupted:
        raise
    except ApplianceError as error:
        stage.events.error(error)
        raise


def _exit_code(work: Callable[[], None]) -> int:
    try:
        work()
    except ApplianceError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(error.hint, file=sys.stderr)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return 70
    return 0


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).stem


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(
        f"stopped by {signal.Signals(number).name}", hint="Go on with `appliance resume`."
    )


def _hold_lifeline() -> None:
    """Wait until every writer of stdin is gone, then end this process group."""
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)
