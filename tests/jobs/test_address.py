"""Which server `appliance chat` talks to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.errors import DeployError
from appliance.jobs.address import address_of
from appliance.jobs.store import Store


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_HOME", str(tmp_path))


def record(name: str, port: int, host: str = "127.0.0.1") -> None:
    """A deployment whose server lives: this process stands for it."""
    store = Store()
    options = {"name": name, "host": host, "rest_port": port, "grpc_port": port + 1}
    store.put_deployment(
        bundle=Path("/bundle"), job="job", pid=os.getpid(), options=options, previous=None
    )
    store.close()


def test_nothing_runs() -> None:
    assert address_of(None, grpc=False) is None
    assert address_of("10.0.0.1:80", grpc=False) == "10.0.0.1:80"


def test_the_only_one() -> None:
    record("one", 9000, "0.0.0.0")
    assert address_of(None, grpc=False) == "http://127.0.0.1:9000"
    assert address_of(None, grpc=True) == "127.0.0.1:9001"
    assert address_of("10.0.0.1:80", grpc=True) == "10.0.0.1:80"


def test_one_of_several() -> None:
    record("one", 9000)
    record("two", 9100)
    assert address_of("two", grpc=False) == "http://127.0.0.1:9100"
    with pytest.raises(DeployError, match="one, two"):
        address_of(None, grpc=False)
