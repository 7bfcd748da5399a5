"""T2: hosts of all kinds in one run, from package sources as if online; one of them is not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.provisioning.conftest import Command, Provisioned, Vendor, unpacked
from tests.provisioning.hosts import Host, Lab, Settings
from tests.provisioning.hosts.lab import GATEWAY
from tests.provisioning.hosts.mirror import Mirror
from tests.provisioning.hosts.nvidia import NEW, served_lock

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

KINDS = {
    "sxm": Settings(cards=8, card_id="20b2", switches=6),
    "pcie": Settings(cards=4, card_id="20f1"),
    "ubuntu": Settings(cards=4, card_id="20b1"),
    "plain": Settings(),
    "lame": Settings(cards=7, card_id="20b2", switches=6),
}
PROFILES = {
    "sxm": "a100-80g-x8",
    "pcie": "a100-40g-x4",
    "ubuntu": "a100-40g-x4",
    "plain": "cpu",
    "lame": "a100-80g-x8",
}
UBUNTU = 'NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID="22.04"\nVERSION_CODENAME=jammy\n'


@pytest.fixture(scope="module")
def archive(
    lab: Lab, gpu_bundle: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mirror]:
    """The distribution's packages, as an archive that the hosts reach."""
    folder = unpacked(gpu_bundle[0], tmp_path_factory.mktemp("archive"))
    with Mirror(folder, GATEWAY) as serving:
        yield serving


@pytest.fixture(scope="module")
def hosts(lab: Lab, archive: Mirror, vendor: Vendor) -> Iterator[dict[str, Host]]:
    running = {name: lab.add(name, settings) for name, settings in KINDS.items()}
    for host in running.values():
        connect(host, archive, vendor)
    running["ubuntu"].root(f"cat > /etc/os-release <<'E'\n{UBUNTU}E")
    running["ubuntu"].root("echo 22.04 > /etc/lsb-release; rm -f /etc/debian_version")
    yield running
    for host in running.values():
        lab.remove(host)


def connect(host: Host, archive: Mirror, vendor: Vendor) -> None:
    """Give a host the package source of its distribution, and a Python index that has nothing."""
    sources = f"deb [signed-by=/etc/apt/keyrings/archive.asc] {archive.url}/debs ./\n"
    key = (Path(archive.folder) / "keys/bundle.asc").read_text()
    host.root(f"cat > /etc/apt/keyrings/archive.asc <<'E'\n{key}E")
    pip = f"[global]\nindex-url = {vendor.url}/paddle/none/\ntrusted-host = {GATEWAY}\n"
    host.root(f"cat > /etc/pip.conf <<'E'\n{pip}E")
    host.root(f"cat > /etc/apt/sources.list <<'E'\n{sources}E\napt-get update", timeout=120)


@pytest.fixture(scope="module")
def variables(vendor: Vendor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    lock = tmp_path_factory.mktemp("lock") / "lock.txt"
    return {
        "provision_lock": str(served_lock(vendor.lock, f"{vendor.url}/wheelhouse", lock)),
        "provision_data_lock": "",
        "provision_vendor_wheels": ["paddlepaddle-gpu==3.1.1", "fastdeploy-gpu-python==1.0.7"],
        **vendor.settings,
        "repo_nvidia_url": f"{vendor.url}/nvidia/",
        "repo_nvidia_key_url": f"{vendor.url}/nvidia.asc",
        "repo_nvidia_suite": "./",
    }


@pytest.fixture(scope="module")
def done(command: Command, hosts: dict[str, Host], variables: dict[str, Any]) -> Provisioned:
    return command(list(hosts.values()), "--yes", timeout=1800, profiles=PROFILES, **variables)


def test_the_unfit_host_is_refused_and_the_others_go_on(done: Provisioned) -> None:
    assert done.code == 1
    statuses = {name: host["status"] for name, host in done.report["hosts"].items()}
    assert statuses == {
        "sxm": "ok",
        "pcie": "ok",
        "ubuntu": "ok",
        "plain": "ok",
        "lame": "refused",
    }, done.output
    assert "shows 7 cards" in done.host("lame")["cause"]


@pytest.mark.parametrize(("name", "cards"), [("sxm", 8), ("pcie", 4), ("ubuntu", 4)])
def test_cards_run_the_pinned_driver(
    done: Provisioned, hosts: dict[str, Host], name: str, cards: int
) -> None:
    query = "nvidia-smi --query-gpu=driver_version --format=csv,noheader"
    assert hosts[name].root(query).splitlines() == [NEW] * cards
    assert hosts[name].reboots() == 1


def test_only_the_board_with_switches_has_a_fabric_manager(
    done: Provisioned, hosts: dict[str, Host]
) -> None:
    ask = "dpkg-query -W -f '${db:Status-Status}' nvidia-fabricmanager 2>/dev/null"
    assert hosts["sxm"].root(ask) == "installed"
    assert hosts["pcie"].root(ask, check=False) != "installed"


def test_ubuntu_takes_the_packages_by_their_names_there(
    done: Provisioned, hosts: dict[str, Host]
) -> None:
    held = set(hosts["ubuntu"].root("apt-mark showhold").split())
    assert {"nvidia-dkms-580-open", "nvidia-utils-580"} <= held
    assert "nvidia-driver-cuda" not in held


def test_paddles_own_wheels_come_from_its_index(done: Provisioned, hosts: dict[str, Host]) -> None:
    version = "-c 'import importlib.metadata as m; print(m.version(\"paddlepaddle-gpu\"))'"
    assert hosts["pcie"].root(f"/opt/appliance/train/bin/python {version}") == "3.1.1"
    assert hosts["pcie"].root(f"/opt/appliance/fastdeploy2/bin/python {version}") == "3.3.1"
    hosts["pcie"].root("/opt/appliance/fastdeploy2/bin/python -c 'import fastdeploy'")
    assert hosts["plain"].root("ls /opt/appliance/fastdeploy2", check=False) == ""


def test_a_host_without_cards_is_neither_driven_nor_rebooted(
    done: Provisioned, hosts: dict[str, Host]
) -> None:
    assert hosts["plain"].reboots() == 0
    assert hosts["plain"].root("ls /etc/modprobe.d | grep appliance", check=False) == ""
    assert hosts["plain"].root("ls /opt/appliance/train/bin/python") != ""


def test_second_run_changes_nothing_anywhere(
    done: Provisioned, command: Command, hosts: dict[str, Host], variables: dict[str, Any]
) -> None:
    fit = [host for name, host in hosts.items() if name != "lame"]
    again = command(fit, "--yes", timeout=1200, profiles=PROFILES, **variables)
    assert again.code == 0, again.output
    assert {name: host["changes"] for name, host in again.report["hosts"].items()} == {
        host.name: [] for host in fit
    }
