"""The child process in which FastDeploy runs: `python -m serving.engine.worker FD`.

It reads calls from the socket FD and answers each with ("ok", slots) and one block of logits,
("refused", text) for a ValueError, or ("error", text). It ends when the socket closes, so it
never outlives its parent.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from appliance.bundle.read import Graph
from appliance.errors import ApplianceError
from serving.engine.base import Logits
from serving.engine.slots import SlotEngine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What a worker loads; the first message to it."""

    graph: Graph
    backend: str
    slots: int
    max_length: int
    threads: int


def main() -> int:
    """Load the engine and answer calls until the socket closes."""
    # Ctrl-C and service managers reach the whole group: the parent may still be draining.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    try:
        engine = _load(connection)
        while engine is not None:
            _answer(connection, engine, *connection.recv())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    return 0


def _load(connection: Connection[Any, Any]) -> SlotEngine | None:
    from serving.engine.fastdeploy import FastDeploy

    settings: Settings = connection.recv()
    try:
        runner = FastDeploy(settings.graph, backend=settings.backend, threads=settings.threads)
    except ApplianceError as error:
        connection.send(("error", error.message, error.hint))
        return None
    connection.send(("ok", runner.name))
    return SlotEngine(settings.graph, runner, slots=settings.slots, max_length=settings.max_length)


def _answer(connection: Connection[Any, Any], engine: SlotEngine, method: str, *args: Any) -> None:
    """Run one call. A call that fails is the caller's to judge: the worker goes on."""
    try:
        result = getattr(engine, method)(*args)
    except ValueError as error:
        connection.send(("refused", str(error)))
        return
    except Exception as error:
        logger.exception("%s failed", method)
        connection.send(("error", f"{type(error).__name__}: {error}"))
        return
    rows: Mapping[int, Logits] = result if isinstance(result, Mapping) else {}
    if isinstance(result, np.ndarray):
        rows = {args[0]: result}
    connection.send(("ok", list(rows)))
    if rows:
        connection.send_bytes(np.stack(list(rows.values())).data.cast("B"))


if __name__ == "__main__":
    sys.exit(main())
