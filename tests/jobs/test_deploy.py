"""Deployments: real servers of a tiny bundle, replaced, broken, interrupted, stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from pathlib import Path

import httpx
import psutil
import pytest

from appliance.errors import DeployError, Interrupted
from appliance.jobs import deploy
from appliance.jobs.events import Events
from appliance.jobs.store import Store, running_deployments
from tests.jobs.test_verbs import appliance


def free_ports(count=2):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture(scope="module")
def ports():
    return free_ports()


class Served:
    """Deploys under the name `tiny` in the test's home."""

    def __init__(self, home, ports):
        self.home = home
        self.store = Store()
        self.events = Events(home / "events.jsonl", "deploy")
        self.options = {
            "host": "127.0.0.1",
            "rest_port": ports[0],
            "grpc_port": ports[1],
            "engine": "onnxruntime",
            "slots": 1,
            "max_length": 64,
            "threads": None,
            "name": "tiny",
        }

    def deploy(self, bundle, pulse=lambda: None, **options):
        target = deploy.Target(Path(bundle), {**self.options, **options})
        return deploy.deploy(self.store, "job-1", target, "Does it print?", self.events, pulse)

    def said(self, kind):
        lines = (self.home / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["kind"] == kind]

    @property
    def row(self):
        return self.store.deployment("tiny")

    def health(self):
        url = f"http://127.0.0.1:{self.options['rest_port']}/health"
        return httpx.get(url, timeout=5).status_code


@pytest.fixture
def served(home, ports):
    made = Served(home, ports)
    yield made
    deploy.processes.end_carrying(deploy.VARIABLE, str(deploy.folder("tiny")), 5.0)
    made.store.close()


def test_a_bundle_is_served_asked_through_both_doors_and_recorded(served, tiny_bundle):
    assert served.deploy(tiny_bundle) is True
    (table,) = served.said("table")
    assert [row[0] for row in table["rows"]] == ["REST", "gRPC"]
    rest, grpc = (row[2] for row in table["rows"])
    assert rest == grpc and rest, "greedy answers of one model"
    assert served.row.status == "running" and served.row.job == "job-1"
    (found,) = running_deployments()
    assert (found.name, found.rest_port) == ("tiny", served.options["rest_port"])
    pid = served.row.pid
    assert served.deploy(tiny_bundle) is False, "it is served already"
    assert served.row.pid == pid

    assert "tiny" in appliance("ps").stdout
    assert "ready: tiny" in appliance("logs", "tiny").stdout
    done = appliance("down", "tiny")
    assert done.returncode == 0 and "tiny is stopped" in done.stdout
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert running_deployments() == []
    assert "tiny was not running" in appliance("down", "tiny").stdout


def test_another_bundle_replaces_and_a_broken_one_is_rolled_back(served, tiny_bundle, tmp_path):
    served.deploy(tiny_bundle)
    first = served.row.pid
    other = Path(shutil.copytree(tiny_bundle, tmp_path / "other"))
    assert served.deploy(other) is True
    second = served.row.pid
    assert (served.row.bundle, served.row.previous) == (str(other), None)
    assert second != first and served.health() == 200

    broken = Path(shutil.copytree(tiny_bundle, tmp_path / "broken"))
    with (broken / "config.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(DeployError, match="ended while it started") as error:
        served.deploy(broken)
    assert "config.json" in error.value.message, "its last words are shown"
    assert (served.row.bundle, served.row.status) == (str(other), "running")
    assert served.health() == 200
    assert "started again" in served.said("warning")[-1]["text"]


def test_a_first_bundle_that_is_broken_leaves_nothing_running(served, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DeployError, match="ended while it started"):
        served.deploy(tmp_path / "empty")
    assert served.row.status == "failed" and not served.row.lives
    assert running_deployments() == []


def test_a_port_of_another_program_is_named_and_nothing_is_started(served, tiny_bundle):
    with (
        socket.create_server(("127.0.0.1", served.options["grpc_port"])),
        pytest.raises(DeployError, match=r"serve\.grpc_port: port \d+ .* is in use") as error,
    ):
        served.deploy(tiny_bundle)
    assert "`grpc_port`" in error.value.hint
    assert served.row is None


def test_what_is_served_goes_on_where_the_new_port_is_taken(served, tiny_bundle):
    served.deploy(tiny_bundle)
    pid = served.row.pid
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(DeployError, match=f"port {port} on 127.0.0.1 is in use"):
            served.deploy(tiny_bundle, rest_port=port)
    assert served.row.pid == pid and served.health() == 200


def test_a_replacement_killed_half_way_still_knows_what_was_served_before(
    served, tiny_bundle, tmp_path
):
    served.deploy(tiny_bundle)
    deploy.end_servers("tiny")  # as far as a controller came that was killed then
    (tmp_path / "empty").mkdir()
    with pytest.raises(DeployError, match="ended while it started"):
        served.deploy(tmp_path / "empty")
    assert (served.row.bundle, served.row.status) == (str(tiny_bundle), "running")
    assert served.health() == 200


def test_an_interrupted_start_is_found_again(served, tiny_bundle):
    def stop():
        raise Interrupted("stopped by Ctrl-C")

    with pytest.raises(Interrupted):
        served.deploy(tiny_bundle, pulse=stop)
    assert served.row.status == "starting" and served.row.lives
    assert "`appliance down tiny` stops it" in served.said("note")[-1]["text"]
    pid = served.row.pid
    assert served.deploy(tiny_bundle) is False
    assert served.row.pid == pid and served.row.status == "running"


def test_a_server_that_hangs_is_replaced(served, tiny_bundle, monkeypatch):
    monkeypatch.setattr(deploy, "STOP_SECONDS", 2.0)
    served.deploy(tiny_bundle)
    hung = served.row.pid
    os.kill(hung, signal.SIGSTOP)
    assert served.deploy(tiny_bundle) is True
    assert served.row.pid != hung and served.health() == 200


def test_other_options_are_a_reason_to_start_anew(served, tiny_bundle):
    served.deploy(tiny_bundle)
    pid = served.row.pid
    assert served.deploy(tiny_bundle, slots=2) is True
    assert served.row.pid != pid
