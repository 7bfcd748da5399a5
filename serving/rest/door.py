"""The REST door's server: waitress, whose threads stream and which sees a client go away.

`channel_request_lookahead` makes it read from connections whose request is running; that is how it
learns that they were closed, and it tells so in `waitress.client_disconnected`.
"""

from __future__ import annotations

import socket
import threading

from waitress import wasyncore
from waitress.server import create_server

from serving.core import Core
from serving.rest.app import MAX_BODY, make_app
from serving.rest.watch import Watch

SPARE_THREADS = 16
"""Threads beside those that wait for answers: for health, models and refusals."""


IDLE = 512
"""Connections at least that may be open: clients keep theirs for the next request."""


class RestDoor:
    """The REST door, open on a listening socket."""

    def __init__(self, core: Core, listening: socket.socket, *, requests: int) -> None:
        """`requests`: how many may be in work or queue at once."""
        self._watch = Watch()
        self._server = create_server(
            make_app(core, self._watch),
            sockets=[listening],
            threads=requests + SPARE_THREADS,
            channel_request_lookahead=1,
            connection_limit=max(IDLE, 4 * (requests + SPARE_THREADS)),
            max_request_body_size=16 * MAX_BODY,
            asyncore_use_poll=True,
            clear_untrusted_proxy_headers=True,
            ident="llm-appliance",
        )
        self._thread = threading.Thread(target=self._server.run, name="rest", daemon=True)
        self._thread.start()

    def refuse(self) -> None:
        """Take no further connections."""
        self._server.trigger.pull_trigger(lambda: wasyncore.dispatcher.close(self._server))

    def close(self, *, grace: float) -> None:
        """Wait up to `grace` seconds until answers are written, then close all connections."""
        self._server.task_dispatcher.shutdown(timeout=grace)
        self._watch.close()
        self._server.trigger.pull_trigger(lambda: wasyncore.close_all(self._server._map))
        self._thread.join(timeout=grace)
