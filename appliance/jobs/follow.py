"""Files that grow: read on from where one stopped, whole lines only; and the job's log."""

from __future__ import annotations

import os
import time
from pathlib import Path


class Follower:
    """Gives the lines that were appended to a file since the last call; it need not exist yet."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self.path = path
        self.offset = path.stat().st_size if from_end and path.exists() else 0

    def lines(self) -> list[str]:
        """The whole lines appended since the last call, without their line ends."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                block = stream.read()
        except FileNotFoundError:
            return []
        whole = block[: block.rfind(b"\n") + 1]
        self.offset += len(whole)
        # A progress bar of a library's rewrites its line: only what it wrote last counts.
        lines = whole.decode(errors="replace").split("\n")[:-1]
        return [line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines]


class Log:
    """A job's log.txt: every line with its time, UTC, one `write` call for each."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, text: str) -> None:
        """Append `text`, which may be several lines."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
        lines = "".join(f"{stamp} {line.rstrip()}\n" for line in text.splitlines())
        os.write(self._fd, lines.encode(errors="replace"))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def last_lines(path: Path, offset: int, count: int) -> list[str]:
    """The last `count` lines of `path` beyond `offset` bytes that are not empty."""
    follower = Follower(path)
    follower.offset = offset
    return [line for line in follower.lines() if line.strip()][-count:]
