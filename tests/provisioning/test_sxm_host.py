"""T1: a server with eight cards behind NVSwitch, from bare to proven, without a route out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.provisioning.conftest import Command, Provisioned
from tests.provisioning.hosts import Host, Lab, Settings

PROFILE = ("--profile", "a100-80g-x8")


@pytest.fixture(scope="module")
def host(lab: Lab) -> Host:
    return lab.add("sxm", Settings(cards=8, card_id="20b2", switches=6))


@pytest.fixture(scope="module")
def first(command: Command, host: Host, gpu_bundle: tuple[Path, str]) -> Provisioned:
    """The first run on a bare host."""
    return command([host], *PROFILE, "--from-bundle", str(gpu_bundle[0]), "--yes")


def test_first_run_ends_well_with_one_reboot(first: Provisioned, host: Host) -> None:
    assert first.code == 0, first.output
    assert first.host("sxm")["status"] == "ok"
    assert first.host("sxm")["rebooted"] is True
    assert host.reboots() == 1
