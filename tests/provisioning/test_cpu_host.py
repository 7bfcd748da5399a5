"""The cpu profile end to end: from bare Debian to a chat answer over both doors, served by systemd.

Real wheels, a real model, and the quickstart as it ships: all its steps, its evaluation, its proof.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioning.targets import PROJECT
from tests.provisioning.conftest import Command, Provisioned
from tests.provisioning.hosts import Host, Lab, base
from tests.provisioning.hosts.lab import NETWORK

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
REST, GRPC = 8000, 8001


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Host]:
    running = lab.add("front")
    yield running
    lab.remove(running)


@pytest.fixture(scope="module")
def bundle(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the real locks; one made before is taken from $APPLIANCE_TEST_CPU_BUNDLE."""
    if made := os.environ.get("APPLIANCE_TEST_CPU_BUNDLE"):
        return Path(made)
    folder = tmp_path_factory.mktemp("cpu")
    sources = folder / "sources.list"
    sources.write_text(f"deb {base.mirror()} {base.SUITE} main\n")
    words = ["--bundle", str(folder / "cpu.tar"), "--profile", "cpu"]
    code, output = command.words(*words, "--apt-sources", str(sources), timeout=1800)
    assert code == 0, output
    return folder / "cpu.tar"


def provision(command: Command, host: Host, bundle: Path) -> Provisioned:
    """The command that brings the quickstart to the host, for clients on the host's network."""
    return command(
        [host],
        "--profile",
        "cpu",
        "--from-bundle",
        str(bundle),
        "--yes",
        timeout=1800,
        appliance_host=host.address,
        appliance_recipes=[str(PROJECT / "appliance/recipes/quickstart.yaml")],
        appliance_serve=["quickstart"],
        firewall_clients=[f"10.{NETWORK}.0.0/24"],
    )


@pytest.fixture(scope="module")
def provisioned(command: Command, host: Host, bundle: Path) -> Provisioned:
    return provision(command, host, bundle)


@pytest.fixture(scope="module")
def elsewhere(lab: Lab) -> list[str]:
    """Runs a command in a network namespace of its own."""
    return lab.namespace("client")


def answer(elsewhere: list[str], host: Host) -> list[str]:
    """What the model says to one question over REST and over gRPC, greedily."""
    program = f"""
import openai
from serving.client.rpc import RpcClient
question = [{{"role": "user", "content": "What is the capital of France?"}}]
rest = openai.OpenAI(base_url="http://{host.address}:{REST}/v1", api_key="none", timeout=120)
options = dict(model="quickstart", max_completion_tokens=12, temperature=0)
print(repr(rest.chat.completions.create(messages=question, **options).choices[0].message.content))
with RpcClient("{host.address}:{GRPC}") as rpc:
    print(repr(rpc.chat(question, **options).text))
"""
    done = subprocess.run(
        [*elsewhere, sys.executable, "-c", program],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def wait_until_served(host: Host, patience: float) -> None:
    """Wait until systemd runs the deployment and its port is open."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        state = host.root("systemctl is-active appliance-serving@quickstart", check=False)
        if state == "active" and f":{REST} " in host.root("ss -Hltn") + " ":
            return
        job = host.root("systemctl is-failed appliance-controller@quickstart", check=False)
        assert job != "failed", host.root("journalctl -u 'appliance-*' -n 80 --no-pager")
        time.sleep(3)
    raise AssertionError(host.root("journalctl -u 'appliance-*' -n 80 --no-pager"))


def test_a_bare_host_is_provisioned_without_driver_roles(provisioned: Provisioned) -> None:
    assert provisioned.code == 0, provisioned.output
    seen = provisioned.host("front")
    assert seen["status"] == "ok" and seen["rebooted"] is False
    ran = {name for name, times in seen["roles"].items() if times["tasks"]}
    assert not any(change.startswith(("nvidia", "kernel", "gpu")) for change in seen["changes"])
    assert "venv_train" in ran


def test_the_quickstart_is_trained_and_answers_both_doors_from_elsewhere(
    provisioned: Provisioned, host: Host, elsewhere: list[str]
) -> None:
    wait_until_served(host, 2400)
    rest, rpc = answer(elsewhere, host)
    assert len(rest) > 4
    assert rest == rpc


def test_the_answer_survives_a_reboot(
    provisioned: Provisioned, host: Host, elsewhere: list[str]
) -> None:
    before = answer(elsewhere, host)
    host.root("systemctl reboot", check=False)
    time.sleep(2)
    host.wait()
    assert host.reboots() == 1
    wait_until_served(host, 300)
    assert answer(elsewhere, host) == before


def test_a_served_host_is_not_changed_again(
    provisioned: Provisioned, command: Command, host: Host, bundle: Path
) -> None:
    again = provision(command, host, bundle)
    assert again.code == 0, again.output
    assert again.host("front")["changes"] == []
