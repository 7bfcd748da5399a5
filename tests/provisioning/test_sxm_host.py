"""T1: a server with eight cards behind NVSwitch, from bare to proven, without a route out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pexpect
import pytest

from tests.provisioning.conftest import SMALL, Command, Provisioned
from tests.provisioning.hosts import Host, Lab, Settings
from tests.provisioning.hosts.nvidia import NEW

PROFILE = ("--profile", "a100-80g-x8")
OURS = Path("/proc/sys/vm/swappiness").read_text()


@pytest.fixture(scope="module")
def host(lab: Lab) -> Host:
    return lab.add("sxm", Settings(cards=8, card_id="20b2", switches=6))


def test_an_address_is_shown_its_plan_and_left_alone_without_a_yes(
    command: Command, host: Host, gpu_bundle: tuple[Path, str]
) -> None:
    known = command.folder / "known_by_address"
    known.write_text(host.known_host)
    ssh = f"-o UserKnownHostsFile={known} -o GlobalKnownHostsFile=/dev/null -F none"
    settings = {
        "ansible_ssh_private_key_file": command.key,
        "ansible_ssh_common_args": ssh,
        **SMALL,
    }
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    program = ["-m", "appliance.cli", "provision", f"ops@{host.address}", *PROFILE]
    with pexpect.spawn(
        sys.executable,
        [*program, "--from-bundle", str(gpu_bundle[0]), "--ask-sudo-password", *words],
        env={**os.environ, "APPLIANCE_HOME": str(command.folder / "asked")},
        encoding="utf-8",
        timeout=120,
        dimensions=(50, 160),
    ) as terminal:
        terminal.expect("sudo password on the hosts:")
        terminal.sendline(host.sudo_password)
        terminal.expect("ONE REBOOT")
        terminal.expect("Go on")
        terminal.sendline("n")
        terminal.expect(pexpect.EOF)
    assert terminal.exitstatus == 1
    assert host.root("ls -d /opt/appliance /etc/appliance", check=False) == ""


@pytest.fixture(scope="module")
def first(command: Command, host: Host, gpu_bundle: tuple[Path, str]) -> Provisioned:
    """The first run on a bare host."""
    return command([host], *PROFILE, "--from-bundle", str(gpu_bundle[0]), "--yes")


def test_the_bundle_says_what_it_holds(gpu_bundle: tuple[Path, str]) -> None:
    assert "profile: a100-80g-x8" in gpu_bundle[1]
    assert "system: debian 12" in gpu_bundle[1]
    assert "wheels: 9" in gpu_bundle[1]


def test_first_run_ends_well_with_one_reboot(first: Provisioned, host: Host) -> None:
    assert first.code == 0, first.output
    assert first.host("sxm")["status"] == "ok"
    assert first.host("sxm")["rebooted"] is True
    assert host.reboots() == 1


def test_the_plan_is_shown_before_anything_is_done(first: Provisioned) -> None:
    plan, work = first.output.split("converging", 1)
    assert f"driver none → {NEW}" in plan
    assert "ONE REBOOT" in plan
    assert "MiB to copy" in plan
    assert "left" in work, "no progress with time left"


def test_driver_modes_and_links_are_as_wanted(first: Provisioned, host: Host) -> None:
    query = "nvidia-smi --query-gpu=driver_version,persistence_mode,mig.mode.current"
    assert (
        host.root(f"{query} --format=csv,noheader").splitlines()
        == [f"{NEW}, Enabled, Disabled"] * 8
    )
    assert host.root("systemctl is-active nvidia-fabricmanager") == "active"
    assert "inactive" not in host.root("nvidia-smi nvlink --status")
    held = host.root("apt-mark showhold").split()
    assert {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-fabricmanager"} <= set(held)
    assert "iommu=pt" in host.root("cat /proc/cmdline").split()


def test_paddles_unversioned_libraries_open_through_one_folder(
    first: Provisioned, host: Host
) -> None:
    opened = "import ctypes; [ctypes.CDLL(f'lib{n}.so') for n in ('cudnn', 'nccl', 'nvrtc')]"
    host.root(f'LD_LIBRARY_PATH=/opt/appliance/cuda /opt/appliance/train/bin/python -c "{opened}"')


def test_burn_in_measured_the_cards(first: Provisioned) -> None:
    seen = first.host("sxm")
    assert len(seen["figures"]["cards"]) == 8
    assert seen["figures"]["busbw_gbps"] == 234.88  # the stand-in's 2 ms for 256 MiB, 2 * 7/8
    checks = {f["check"]: f["ok"] for f in seen["findings"] if f["part"] == "burnin"}
    assert checks["dcgmi diag"] and checks["paddle run_check"] and checks["NVLink"]
    assert checks["FastDeploy 2"]


def test_a_carried_python_serves_with_fastdeploy_the_hosts_own_with_onnxruntime(
    first: Provisioned, host: Host, gpu_bundle: tuple[Path, str]
) -> None:
    carried = "Python: 3.10 (carried)" in gpu_bundle[1]
    engine, version = ("fastdeploy", "3.10") if carried else ("onnxruntime", "3.11")
    assert version in host.root("/opt/appliance/train/bin/python -V")
    assert f"serves with {engine}" in first.output


def test_fastdeploy_2_has_an_environment_of_its_own(first: Provisioned, host: Host) -> None:
    versions = "import importlib.metadata as m; print(m.version('paddlepaddle-gpu'))"
    assert host.root(f'/opt/appliance/train/bin/python -c "{versions}"') == "3.1.1"
    assert host.root(f'/opt/appliance/fastdeploy2/bin/python -c "{versions}"') == "3.3.1"
    host.root('/opt/appliance/fastdeploy2/bin/python -c "import fastdeploy"')


def test_the_cards_metrics_are_read_on_the_host_alone(first: Provisioned, host: Host) -> None:
    assert host.root("ss -Hltn 'sport = 9400'").split()[3] == "127.0.0.1:9400"
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9400/metrics').read().decode())"
    assert host.root(f'python3 -c "{ask}"').count("DCGM_FI_DEV_GPU_TEMP") == 8
    assert "sxm:9400" in host.root("cat /etc/appliance/prometheus-scrape.yaml")


def test_the_base_keeps_time_limits_and_upgrades_off_the_driver(
    first: Provisioned, host: Host
) -> None:
    upgrades = host.root("unattended-upgrade --dry-run --debug 2>&1 | grep -i blacklist")
    assert "nvidia-" in upgrades and "linux-image" in upgrades
    assert host.root("sysctl -n vm.swappiness vm.max_map_count").split() == ["10", "1048576"]
    assert "* hard memlock unlimited" in host.root("cat /etc/security/limits.d/60-appliance.conf")
    assert host.root("systemctl is-enabled chrony") == "enabled"


def test_logs_are_rotated(first: Provisioned, host: Host) -> None:
    log = "/var/log/appliance/try.log"
    host.root(f"runuser -u appliance -- sh -c 'echo line > {log}'")
    host.root("logrotate --force /etc/logrotate.d/appliance")
    assert host.root(f"cat {log}.1") == "line"
    assert host.root(f"cat {log}") == ""


def test_the_firewall_lets_ssh_in_and_drops_the_rest(first: Provisioned, host: Host) -> None:
    rules = host.root("nft list table inet appliance")
    assert "policy drop" in rules and "tcp dport 22 accept" in rules
    assert host.root("systemctl list-timers --no-legend 'appliance-*'") == "", "a revert is pending"


def test_services_are_confined_and_the_user_has_no_shell(first: Provisioned, host: Host) -> None:
    names = ("NoNewPrivileges", "ProtectSystem", "DevicePolicy", "User", "CapabilityBoundingSet")
    asked = " ".join(f"-p {name}" for name in names)
    shown = host.root(f"systemctl show {asked} appliance-serving@x appliance-controller@x")
    for unit in shown.split("\n\n"):
        values = dict(line.split("=", 1) for line in unit.splitlines())
        assert values == {
            "NoNewPrivileges": "yes",
            "ProtectSystem": "strict",
            "DevicePolicy": "closed",
            "User": "appliance",
            "CapabilityBoundingSet": "",
        }
    assert host.root("getent passwd appliance").endswith("/usr/sbin/nologin")


def test_the_report_is_kept_and_listed(first: Provisioned, command: Command) -> None:
    code, listed = command.words("history")
    assert code == 0
    assert first.report["id"] in listed and "sxm ok" in listed
    page = command.folder / "home/provision/runs" / first.report["id"] / "report.html"
    assert "nvidia_driver" in page.read_text()


def test_second_run_changes_nothing(
    first: Provisioned, command: Command, host: Host, gpu_bundle: tuple[Path, str]
) -> None:
    second = command([host], *PROFILE, "--from-bundle", str(gpu_bundle[0]), "--yes")
    assert second.code == 0, second.output
    assert second.host("sxm")["changes"] == []
    assert second.host("sxm")["rebooted"] is False
    assert host.reboots() == 1
    code, differing = command.words("diff", "sxm")
    assert code == 0
    assert f"facts.driver.installed: - → {NEW}" in differing
    json.dumps(second.report)


def test_this_machine_was_left_alone(first: Provisioned) -> None:
    assert Path("/proc/sys/vm/swappiness").read_text() == OURS
