"""Deployments of a real tiny bundle, on free ports of this machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.bundle.read import Bundle, open_bundle
from serving.core import Core
from serving.engine import load_engine
from serving.engine.base import Engine
from serving.rest.door import RestDoor
from serving.rpc.door import RpcDoor
from serving.scheduler import Scheduler
from serving.server import Options, Running, listen, running
from tests.models import make_bundle, make_tiny_model
from tests.serving.scheduling import CONTEXT
from tests.serving.scripted import Scripted

NEVER_ENDS = {2: -100.0}
"""Logit bias that keeps the tiny model from ending its answer."""


@pytest.fixture(scope="session")
def long_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a context of 4,096 tokens, so that an answer lasts for seconds."""
    folder = tmp_path_factory.mktemp("long")
    model = make_tiny_model(folder / "model", max_length=4096)
    return make_bundle(folder / "bundle", model, name="tiny")


@pytest.fixture(scope="session")
def opened(long_bundle: Path) -> Bundle:
    return open_bundle(long_bundle)


@pytest.fixture
def load(tiny_bundle: Path) -> Callable[..., Engine]:
    """Loads the tiny model into an engine of some slots."""
    bundle = open_bundle(tiny_bundle)

    def load(slots: int, engine: str = "onnxruntime") -> Engine:
        return load_engine(bundle, engine=engine, slots=slots, max_length=CONTEXT, threads=1)

    return load


@pytest.fixture(scope="session")
def deployment(long_bundle: Path) -> Iterator[Running]:
    """The bundle served by the onnxruntime engine through both doors: two slots, a queue of two."""
    options = Options(
        bundle=long_bundle,
        rest_port=0,
        grpc_port=0,
        engine="onnxruntime",
        slots=2,
        max_length=4096,
        max_queue=2,
        threads=1,
        drain=0.0,
    )
    with running(options) as doors:
        yield doors


@pytest.fixture(scope="session")
def rest_address(deployment: Running) -> str:
    return f"http://127.0.0.1:{deployment.rest_port}"


@pytest.fixture(scope="session")
def rpc_address(deployment: Running) -> str:
    return f"127.0.0.1:{deployment.grpc_port}"


@contextlib.contextmanager
def scripted_core(
    bundle: Bundle, text: str, *, max_queue: int = 8, timeout: float = 60.0, **engine: object
) -> Iterator[Core]:
    """A core whose engine says `text`, byte tokens and all."""
    script = bundle.tokenizer.encode(text)
    vocab_size = bundle.graph.vocab_size
    scripted = Scripted(script, vocab_size=vocab_size, **engine)  # type: ignore[arg-type]
    scheduler = Scheduler(scripted, max_queue=max_queue)
    core = Core(bundle, scheduler, name="tiny", request_timeout=timeout)
    try:
        yield core
    finally:
        core.close(drain=0)


@contextlib.contextmanager
def doors_over(core: Core) -> Iterator[tuple[str, str]]:
    """Both doors over a core: the addresses of REST and of gRPC."""
    with listen("127.0.0.1", 0) as listening:
        rest = RestDoor(core, listening, requests=8)
        rpc = RpcDoor("127.0.0.1", 0, requests=8)
        rpc.open(core)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", f"127.0.0.1:{rpc.port}"
        finally:
            rest.refuse()
            core.close(drain=0)
            rpc.close(grace=1)
            rest.close(grace=1)


def until(condition: Callable[[], bool], *, within: float = 5.0) -> None:
    """Wait for a condition; fails where it does not come true in time."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def idle(core: Core) -> bool:
    """Whether no request holds a slot or waits."""
    stats = core.stats()
    return stats["active"] == 0 and stats["queued"] == 0
