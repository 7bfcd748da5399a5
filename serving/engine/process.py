"""An Engine in a process of its own.

FastDeploy's Runtime holds Python's lock for as long as a step lasts, so that in one process the
REST and gRPC threads could only run between steps; and a failed check inside it ends the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from appliance.errors import MachineError
from serving.engine.base import Logits
from serving.engine.worker import Settings

LOAD_DEADLINE = 600.0  # seconds to load the graph
STEP_DEADLINE = 300.0  # seconds for one call
CLOSE_DEADLINE = 10.0  # seconds to end
ROOT = Path(__file__).resolve().parents[2]

logger = logging.getLogger(__name__)


class ProcessEngine:
    """See serving/engine/base.py for the methods. A worker that died is started again by the next
    call; sequences that it held raise RuntimeError until they are released."""

    def __init__(self, settings: Settings) -> None:
        self.slots = settings.slots
        self.max_length = settings.max_length
        self.vocab_size = settings.graph.vocab_size
        self._settings = settings
        self._used: set[int] = set()
        self._lost: set[int] = set()
        self._logits = np.empty((self.slots, self.vocab_size), np.float32)
        self._start()

    def prefill(self, slot: int, ids: Sequence[int]) -> Logits:
        """Append ids `[S]` to a slot; logits `[V]` after the last."""
        return self._call("prefill", [slot], slot, list(ids))[slot]

    def decode(self, tokens: Mapping[int, int]) -> dict[int, Logits]:
        """Append one token to each slot in one step; slot → logits `[V]`."""
        return self._call("decode", list(tokens), dict(tokens))

    def release(self, slot: int) -> None:
        """Empty a slot."""
        try:
            if slot in self._used and self._process.poll() is None:
                self._call("release", [], slot)
        finally:
            self._used.discard(slot)
            self._lost.discard(slot)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        try:
            self._process.wait(CLOSE_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(CLOSE_DEADLINE)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.engine.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what the runtimes print belongs in the server's log
                env=_environment(),
            )
        self._connection: Connection[Any, Any] = Connection(ours.detach())
        try:
            self._connection.send(self._settings)
            status, *answer = self._receive(LOAD_DEADLINE)
        except (RuntimeError, OSError) as error:
            self._connection.close()
            raise MachineError(
                f"FastDeploy's {self._settings.backend} backend did not load: {error}",
                hint="The log above says why. The engine onnxruntime runs the same graph.",
            ) from error
        if status == "error":
            self.close()
            raise MachineError(answer[0], hint=answer[1])
        self.name = str(answer[0])

    def _call(self, method: str, slots: Sequence[int], *args: Any) -> dict[int, Logits]:
        """Call the worker's engine; `slots` are those whose sequences the call goes on with."""
        if self._process.poll() is not None:
            self._restart()
        if self._lost.intersection(slots):
            raise RuntimeError("the sequence was lost when the engine's process ended")
        self._used.update(slots)
        with self._talking():
            self._connection.send((method, *args))
        status, answer = self._receive(STEP_DEADLINE)
        if status == "refused":
            raise ValueError(answer)
        if status == "error":
            raise RuntimeError(answer)
        if answer:
            with self._talking():
                self._connection.recv_bytes_into(self._logits.data.cast("B"))
        return {slot: self._logits[row] for row, slot in enumerate(answer)}

    def _receive(self, deadline: float) -> Any:
        """The worker's answer. Raises RuntimeError where it died or, killed then, was too slow."""
        with self._talking():
            if self._connection.poll(deadline):
                return self._connection.recv()
        self._process.kill()
        self._process.wait(CLOSE_DEADLINE)
        raise RuntimeError(f"the engine did not answer within {deadline:g} seconds")

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """Within the block a connection that breaks means that the process ended: RuntimeError."""
        try:
            yield
        except (EOFError, OSError):
            code = self._process.wait(CLOSE_DEADLINE)
            raise RuntimeError(f"the engine's process ended with exit code {code}") from None

    def _restart(self) -> None:
        logger.warning(
            "starting the engine's process again: it ended with %d", self._process.poll()
        )
        self._connection.close()
        self._lost |= self._used
        self._used.clear()
        self._start()


def _environment() -> dict[str, str]:
    """The worker finds our packages, and MKL its fast path on AMD processors."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        "MKL_DEBUG_CPU_TYPE": "5",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
