"""A folder served over HTTP on the bridge, which can be taken down."""

from __future__ import annotations

import functools
import http.server
import threading
from pathlib import Path
from types import TracebackType
from typing import Any


class Mirror:
    """Serves `folder` at `url` within the block. `down`: every request is refused. `asked` counts
    requests; with `fail_after` set, those beyond that many are refused."""

    def __init__(self, folder: Path, host: str) -> None:
        self.folder = folder
        self.down = False
        self.asked: list[str] = []
        self.fail_after: int | None = None
        mirror = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                if mirror.refuses():
                    self.close_connection = True
                    self.connection.close()
                    return
                super().do_GET()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        handler = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer((host, 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://{host}:{self.server.server_address[1]}"

    def refuses(self) -> bool:
        """Whether the request just counted is to be refused."""
        return self.down or (self.fail_after is not None and len(self.asked) > self.fail_after)

    def __enter__(self) -> Mirror:
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
