"""One process that serves a bundle: both doors over one core, until SIGTERM."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.bundle.read import Bundle, open_bundle
from appliance.errors import ApplianceError, DeployError
from serving.core import Core
from serving.engine import load_engine
from serving.rest.door import RestDoor
from serving.rpc.door import RpcDoor
from serving.scheduler import Scheduler

DRAIN = 30.0
"""Seconds that running requests get to end after SIGTERM."""

FLUSH = 2.0
"""Seconds to write out what is generated already."""

LONGEST = 1024
"""Default context, in tokens, of bundles whose graph allows more."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How a bundle is served."""

    bundle: Path
    host: str = "127.0.0.1"
    rest_port: int = 8000
    """0: any free port, named in the ready line."""
    grpc_port: int = 8001
    """0: any free port, named in the ready line."""
    engine: str = "fastdeploy"
    backend: str = "onnxruntime"
    slots: int = 4
    max_length: int | None = None
    max_queue: int = 64
    request_timeout: float = 300.0
    threads: int | None = None
    name: str | None = None
    drain: float = DRAIN


@dataclass(frozen=True)
class Running:
    """An open deployment."""

    core: Core
    host: str
    """The address that both doors listen on."""
    rest_port: int
    grpc_port: int
    rpc: RpcDoor

    def look(self) -> None:
        """Let gRPC's health service say whether the engine works."""
        self.rpc.report(serving=self.core.ready)


def serve(options: Options) -> None:
    """Serve until SIGTERM or Ctrl-C, then drain. Prints one line when both doors are open.

    Raises DeployError for a port that cannot be had, BundleError for a bundle that is not whole.
    """
    stop = threading.Event()
    with running(options) as doors:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        host = f"[{doors.host}]" if ":" in doors.host else doors.host
        rest, rpc = f"http://{host}:{doors.rest_port}", f"{host}:{doors.grpc_port}"
        print(f"ready: {doors.core.name} on {rest} (REST) and {rpc} (gRPC)", flush=True)
        while not stop.wait(1.0):
            doors.look()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        grace = f"running requests have {options.drain:g} seconds"
        print(f"stopping: {grace}; Ctrl-C ends them at once", flush=True)


@contextlib.contextmanager
def running(options: Options) -> Iterator[Running]:
    """Both doors, open within the block; at its end requests drain. Raises as `serve` does."""
    _check(options)
    host = resolve(options.host)
    requests = options.slots + options.max_queue
    # Ports first: a taken one is an error at once, not after the model is loaded.
    with listen(host, options.rest_port) as listening:
        # gRPC itself does not say why it cannot have a port.
        listen(host, options.grpc_port, door="gRPC").close()
        rpc = RpcDoor(host, options.grpc_port, requests=requests)
        try:
            logger.info("checking the seal of %s", options.bundle)
            bundle = open_bundle(options.bundle)
            logger.info("loading %s into %s", bundle.name, options.engine)
            core = make_core(bundle, options)
            rest = RestDoor(core, listening, requests=requests)
            rpc.open(core)
        except BaseException:
            rpc.close(grace=0)
            raise
        try:
            yield Running(core, host, listening.getsockname()[1], rpc.port, rpc)
        finally:
            rest.refuse()
            rpc.refuse()
            core.close(drain=options.drain)
            rpc.close(grace=FLUSH)
            rest.close(grace=FLUSH)


def make_core(bundle: Bundle, options: Options) -> Core:
    """Load the engine and put a scheduler and the core over it."""
    longest = options.max_length or min(LONGEST, bundle.graph.max_length)
    engine = load_engine(
        bundle,
        engine=options.engine,
        backend=options.backend,
        slots=options.slots,
        max_length=longest,
        threads=options.threads,
    )
    return Core(
        bundle,
        Scheduler(engine, max_queue=options.max_queue),
        name=options.name or bundle.name,
        request_timeout=options.request_timeout,
    )


def resolve(host: str) -> str:
    """The one address of a host's name on which both doors listen, IPv4 where it has both kinds.

    Given a name, each door would choose for itself, and gRPC would be content with one of two
    addresses where another server has the other. Raises DeployError.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DeployError(
            f"--host {host!r} is no address: {error}",
            hint="Name an address of this machine, 127.0.0.1, or 0.0.0.0 for all of them.",
        ) from error
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def listen(host: str, port: int, *, door: str = "REST") -> socket.socket:
    """A listening socket. Raises DeployError naming the door and the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise DeployError(
            f"{door} cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}",
            hint=f"`ss -ltnp 'sport = :{port}'` shows who has it; "
            f"stop that, or choose another port with --{door.lower()}-port.",
        ) from error


def _check(options: Options) -> None:
    """Raises DeployError naming the option that cannot be."""
    bounds: tuple[tuple[str, float | None, float, float], ...] = (
        ("rest-port", options.rest_port, 0, 65535),
        ("grpc-port", options.grpc_port, 0, 65535),
        ("slots", options.slots, 1, 1024),
        ("max-length", options.max_length, 1, float("inf")),
        ("max-queue", options.max_queue, 0, 10_000),
        ("request-timeout", options.request_timeout, 0.001, float("inf")),
        ("threads", options.threads, 1, 1024),
        ("drain", options.drain, 0, 3600),
    )
    for name, value, low, high in bounds:
        if value is not None and not low <= value <= high:
            raise DeployError(f"--{name} is {value}", hint=f"Allowed: {low:g} to {high:g}.")
    if options.rest_port == options.grpc_port != 0:
        raise DeployError(
            f"--rest-port and --grpc-port are both {options.rest_port}",
            hint="Each door needs a port of its own.",
        )
    if options.name is not None and not options.name.strip():
        raise DeployError("--name is empty", hint="Name the model, or leave --name out.")


def parse_options(arguments: Sequence[str]) -> Options:
    """Options of `python -m serving`."""
    fields = Options.__dataclass_fields__
    parser = argparse.ArgumentParser(
        "python -m serving",
        description="Serve a bundle over REST and gRPC.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    for name, kind, text in (
        ("host", str, "address to listen on; 0.0.0.0 opens the server to the network"),
        ("rest_port", int, "port of REST; 0: any free one"),
        ("grpc_port", int, "port of gRPC; 0: any free one"),
        ("engine", str, "fastdeploy or onnxruntime"),
        ("backend", str, "what runs the graph inside FastDeploy"),
        ("slots", int, "sequences that are generated at once"),
        ("max_length", int, f"longest prompt and answer, in tokens; None: at most {LONGEST}"),
        ("max_queue", int, "requests that may wait for a slot"),
        ("request_timeout", float, "seconds after which a request is ended"),
        ("threads", int, "threads of the engine; None: all cores"),
        ("name", str, "name of the model; None: the bundle's"),
        ("drain", float, "seconds that running requests get after SIGTERM"),
    ):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=kind, default=fields[name].default, help=text)
    return Options(**vars(parser.parse_args(arguments)))


def log_to_stderr() -> None:
    """Show what the server logs."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("waitress").setLevel(logging.WARNING)


def main() -> None:
    """`python -m serving`: errors as a message and a hint, with the exit code of their class."""
    log_to_stderr()
    try:
        serve(parse_options(sys.argv[1:]))
    except ApplianceError as error:
        print("\n".join(filter(None, (f"error: {error.message}", error.hint))), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
