"""The gRPC door's server, with health and reflection."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from appliance.errors import DeployError
from serving.core import Core
from serving.rpc.service import LanguageModel
from serving.rpc.v1 import appliance_pb2_grpc as pb_grpc
from serving.rpc.wire import MAX_REQUEST, SERVICE

SPARE_THREADS = 16
"""Threads beside those that wait for answers: for health, models and refusals."""


class RpcDoor:
    """The gRPC door: bound at once, so that a taken port is known early; open from `open` on."""

    def __init__(self, host: str, port: int, *, requests: int) -> None:
        """Bind. `requests`: how many may be in work or queue at once. Raises DeployError."""
        self._server = grpc.server(
            ThreadPoolExecutor(requests + SPARE_THREADS, thread_name_prefix="rpc"),
            options=(
                # With it, a second server could bind the same port and take half of the calls.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_REQUEST),
                ("grpc.max_send_message_length", -1),
            ),
        )
        self._health = health.HealthServicer()
        address = f"[{host}]" if ":" in host else host
        try:
            self.port = self._server.add_insecure_port(f"{address}:{port}")
        except RuntimeError as error:
            raise DeployError(
                f"gRPC cannot listen on {host} port {port}",
                hint="Another program has the port, or this machine does not have the address: "
                f"`ss -ltnp 'sport = :{port}'` shows who; or choose another with --grpc-port.",
            ) from error

    def open(self, core: Core) -> None:
        """Serve."""
        pb_grpc.add_LanguageModelServicer_to_server(LanguageModel(core), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.report(serving=True)
        self._server.start()

    def report(self, *, serving: bool) -> None:
        """What the health service says, of the server and of its service."""
        status = health_pb2.HealthCheckResponse
        for name in ("", SERVICE):
            self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    def refuse(self) -> None:
        """Tell health watchers that this server goes."""
        self._health.enter_graceful_shutdown()

    def close(self, *, grace: float) -> None:
        """Refuse calls; give running ones `grace` seconds."""
        self._server.stop(grace).wait()
