"""T2: each fault ends in a clear verdict, and the next run heals it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.files import fingerprint, read_json, sha256, write_json
from provisioning import debs
from provisioning.source import wanted_here
from tests.provisioning.conftest import Command, Provisioned, Vendor, unpacked
from tests.provisioning.hosts import Host, Lab, Settings
from tests.provisioning.hosts.base import run
from tests.provisioning.hosts.lab import GATEWAY
from tests.provisioning.hosts.mirror import Mirror
from tests.provisioning.hosts.nvidia import NEW, OLD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SXM = Settings(cards=8, card_id="20b2", switches=6)


@pytest.fixture(scope="module")
def folder(
    gpu_bundle: tuple[Path, str], vendor: Vendor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The bundle unpacked, to be served as a mirror; with an older driver in it too."""
    path = unpacked(gpu_bundle[0], tmp_path_factory.mktemp("mirror"))
    for older in (vendor.folder / "nvidia").glob(f"*_{OLD}-1_*.deb"):
        shutil.copy(older, path / "debs")
    (path / "keys/bundle.asc").write_text(debs.sign(path / "debs", path / "gpg"))
    reseal(path, "keys/bundle.asc")
    return path


def reseal(folder: Path, *changed: str) -> None:
    """Make the manifest say what these files are now."""
    manifest = read_json(folder / "manifest.json")
    manifest["files"] |= {name: sha256(folder / name) for name in changed}
    del manifest["seal"]
    manifest["seal"] = fingerprint(manifest)
    write_json(folder / "manifest.json", manifest)


@pytest.fixture(scope="module")
def later(folder: Path, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    """A mirror whose locks are other ones, so that its environments are too."""
    path = tmp_path_factory.mktemp("later") / "mirror"
    shutil.copytree(folder, path)
    locks = ("locks/train.txt", "locks/serve.txt")
    for name in locks:
        (path / name).write_text((path / name).read_text() + "# later\n")
    reseal(path, *locks)
    with Mirror(path, GATEWAY) as running:
        yield running


@pytest.fixture(scope="module")
def mirror(folder: Path, lab: Lab) -> Iterator[Mirror]:
    with Mirror(folder, GATEWAY) as running:
        yield running


@pytest.fixture
def bare(lab: Lab) -> Iterator[Host]:
    """A host of the test's own that nothing was done to."""
    host = lab.add(f"bare{len(lab.hosts)}", SXM)
    yield host
    lab.remove(host)


@pytest.fixture(scope="module")
def ready(lab: Lab, provision: FromMirror) -> Iterator[Host]:
    """A host whose first run lost its power while dpkg was at work, and whose second ended well."""
    host = lab.add("ready", SXM)
    process = provision.start([host])
    wait_for(host, "pgrep -x dpkg")
    host.stop()
    lost = provision.finish(process)
    host.start()
    verdict(lost, host, "unreachable", "does not answer over ssh", "run the same command again")
    heals(provision([host]), host)
    yield host
    lab.remove(host)


class FromMirror:
    """The command, from the mirror, as a call or in the background."""

    def __init__(self, command: Command, mirror: Mirror) -> None:
        self.command = command
        self.words = ("--profile", "a100-80g-x8", "--mirror", mirror.url, "--yes")

    def __call__(self, hosts: list[Host], *options: str, **variables: Any) -> Provisioned:
        return self.command(hosts, *self.words, *options, **variables)

    def start(self, hosts: list[Host], **variables: Any) -> subprocess.Popen[str]:
        return self.command.start(hosts, *self.words, **variables)

    def finish(self, process: subprocess.Popen[str], patience: float = 240) -> Provisioned:
        output, _ = process.communicate(timeout=patience)
        return self.command.result(process.returncode, output)


@pytest.fixture(scope="module")
def provision(command: Command, mirror: Mirror) -> FromMirror:
    return FromMirror(command, mirror)


def verdict(done: Provisioned, host: Host, status: str, *words: str) -> None:
    """The run failed for this host, and says why and what to do."""
    assert done.code == 1, done.output
    seen = done.host(host.name)
    assert seen["status"] == status, done.output
    said = " ".join((seen["cause"] + " " + seen["remedy"]).split())
    for word in words:
        assert word in said, said


def heals(done: Provisioned, host: Host) -> None:
    """The next run ended well."""
    assert done.code == 0, done.output
    assert done.host(host.name)["status"] == "ok"


def fit(done: Provisioned, host: Host) -> bool:
    """Whether preflight found nothing to stop for."""
    stops = [f for f in done.host(host.name)["findings"] if f["level"] == "stop" and not f["ok"]]
    return done.code == 0 and not stops


def replug(host: Host, **hardware: object) -> None:
    """Pull the plug, change the hardware, and boot."""
    host.stop()
    host.start(**hardware)


def untouched(host: Host) -> bool:
    """Whether nothing of ours is on the host."""
    return (
        host.root("ls -d /opt/appliance /etc/apt/appliance.conf /etc/appliance", check=False) == ""
    )


def test_wrong_card_count(bare: Host, provision: FromMirror) -> None:
    replug(bare, cards=7)
    verdict(provision([bare]), bare, "refused", "shows 7 cards", "the profile has 8", "reseated")
    assert untouched(bare)
    replug(bare, cards=8)
    heals(provision([bare]), bare)


def test_secure_boot_on(bare: Host, provision: FromMirror) -> None:
    replug(bare, secure_boot=True)
    verdict(provision([bare]), bare, "refused", "Secure Boot is on", "off in the firmware")
    assert untouched(bare)
    replug(bare, secure_boot=False)
    heals(provision([bare]), bare)


def test_disk_too_small_is_refused_before_any_change(bare: Host, provision: FromMirror) -> None:
    replug(bare, small_disk="/opt:512m")
    verdict(provision([bare]), bare, "refused", "/opt has 0.5 GiB free", "put it on a larger disk")
    assert untouched(bare)
    replug(bare, small_disk="")
    heals(provision([bare]), bare)


def test_wrong_sudo_password(bare: Host, provision: FromMirror) -> None:
    right, bare.sudo_password = bare.sudo_password, "wrong"
    done = provision([bare])
    bare.sudo_password = right
    verdict(done, bare, "failed", "sudo refused the password", "Give the right one")
    assert untouched(bare)
    heals(provision([bare]), bare)


def test_unknown_host_key(bare: Host, provision: FromMirror, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.touch()
    ssh = f"-o UserKnownHostsFile={known} -o GlobalKnownHostsFile=/dev/null -F none"
    strict = {"ansible_ssh_common_args": f"{ssh} -o StrictHostKeyChecking=yes"}
    done = provision([bare], **strict)
    verdict(done, bare, "unreachable", "ssh key is not the one known", "ssh-keyscan -H ADDRESS")
    assert untouched(bare)
    known.write_text(run(["ssh-keyscan", "-H", bare.address]))
    assert bare.known_host.split()[-1] in known.read_text()
    heals(provision([bare], **strict), bare)


def test_a_damaged_bundle_is_refused(
    bare: Host, command: Command, gpu_bundle: tuple[Path, str], tmp_path: Path
) -> None:
    bundle = tmp_path / "gpu.tar"
    words = ("--profile", "a100-80g-x8", "--from-bundle", str(bundle), "--yes")
    shutil.copyfile(gpu_bundle[0], bundle)
    with bundle.open("r+b") as stream:
        stream.seek(bundle.stat().st_size // 2)
        stream.write(b"\0" * 64)
    done = command([bare], *words)
    assert done.code == 2
    assert "is not what the manifest says" in done.output
    assert "Copy it anew" in done.output
    assert untouched(bare)
    shutil.copyfile(gpu_bundle[0], bundle)
    heals(command([bare], *words), bare)


def test_a_module_that_was_not_built_stops_before_the_reboot(
    bare: Host, provision: FromMirror
) -> None:
    bare.root("mkdir -p /var/lib/fakegpu; touch /var/lib/fakegpu/unbuilt")
    verdict(provision([bare]), bare, "failed", f"DKMS has no module {NEW}", "was not rebooted")
    assert bare.reboots() == 0
    bare.root("rm /var/lib/fakegpu/unbuilt")
    heals(provision([bare]), bare)


def test_check_shows_the_difference_and_changes_nothing(bare: Host, provision: FromMirror) -> None:
    done = provision([bare], "--check")
    assert fit(done, bare)
    assert "base: Keep unattended upgrades off the driver" in done.host(bare.name)["changes"]
    assert f"driver none → {NEW}" in done.output
    assert untouched(bare)


def test_power_lost_while_dpkg_worked(ready: Host) -> None:
    """The fixture lost it, and saw the next run heal it."""
    assert ready.root("dpkg --audit") == ""
    assert ready.root("systemctl is-active nvidia-fabricmanager") == "active"


def test_fabric_manager_drifts(ready: Host, provision: FromMirror) -> None:
    apt = "APT_CONFIG=/etc/apt/appliance.conf apt-get install -y --allow-downgrades"
    ready.root(f"{apt} --allow-change-held-packages nvidia-fabricmanager={OLD}-1", timeout=120)
    ready.root("systemctl restart nvidia-fabricmanager", check=False)
    time.sleep(1)
    said = ready.root("journalctl -u nvidia-fabricmanager -n 5 --no-pager")
    assert "don't match with driver version" in said
    done = provision([ready])
    heals(done, ready)
    assert f"fabric manager {OLD} → {NEW}" in done.output
    assert ready.root("systemctl is-active nvidia-fabricmanager") == "active"
    assert done.host("ready")["rebooted"] is False


def test_driver_upgraded_without_reboot(ready: Host, provision: FromMirror) -> None:
    apt = "APT_CONFIG=/etc/apt/appliance.conf apt-get install -y --allow-downgrades"
    driver = ("nvidia-driver-cuda", "libcuda1", "nvidia-kernel-open-dkms")
    packages = " ".join(f"{name}={OLD}-1" for name in driver)
    ready.root(f"{apt} --allow-change-held-packages {packages}", timeout=120)
    assert "version mismatch" in ready.root("nvidia-smi || true")
    boots = ready.reboots()
    stopped = provision([ready], "--no-reboot", nvidia_driver_version=OLD)
    verdict(stopped, ready, "failed", f"driver {OLD} is installed but not loaded", "--no-reboot")
    assert ready.reboots() == boots
    healed = provision([ready])
    heals(healed, ready)
    assert f"driver {OLD} → {NEW}" in healed.output
    ready.root("nvidia-smi --query-gpu=index --format=csv,noheader")


def test_rollback_goes_to_the_former_pins_and_back(
    ready: Host, command: Command, provision: FromMirror, later: Mirror
) -> None:
    def links() -> list[str]:
        return ready.root("cd /opt/appliance && readlink train serve fastdeploy2").split()

    before = links()
    words = ("--profile", "a100-80g-x8", "--mirror", later.url, "--yes")
    heals(command([ready], *words, nvidia_driver_version=OLD), ready)
    assert OLD in ready.root("cat /proc/driver/nvidia/version")
    assert not set(links()) & set(before)
    back = command([ready], *words, "--rollback", nvidia_driver_version=OLD)
    heals(back, ready)
    assert f"driver {OLD} → {NEW}" in back.output
    assert NEW in ready.root("cat /proc/driver/nvidia/version")
    assert links() == before
    heals(provision([ready]), ready)


def test_mirror_down_mid_run(ready: Host, mirror: Mirror, provision: FromMirror) -> None:
    # The command fetches the manifest and what it names for itself; the host then finds it down.
    fetched = wanted_here(read_json(mirror.folder / "manifest.json"))
    mirror.fail_after = len(mirror.asked) + 1 + len(fetched)
    try:
        done = provision([ready], nvidia_driver_version=OLD)
    finally:
        mirror.fail_after = None
    verdict(done, ready, "failed", "a package source does not answer", "run again")
    heals(provision([ready]), ready)


def test_ssh_cut(lab: Lab, ready: Host, provision: FromMirror) -> None:
    process = provision.start([ready], nvidia_driver_version=OLD)
    wait_for(ready, f"grep -q {OLD} /etc/apt/preferences.d/appliance-nvidia")
    lab.unplug(ready)
    try:
        done = provision.finish(process, patience=180)
    finally:
        lab.unplug(ready, back=True)
    verdict(done, ready, "unreachable", "does not answer over ssh", "run the same command again")
    heals(provision([ready]), ready)


def test_a_run_past_its_deadline_is_ended(ready: Host, provision: FromMirror) -> None:
    done = provision([ready], "--deadline", "0.15", nvidia_driver_version=OLD)
    verdict(done, ready, "failed", "deadline", "run again to go on")
    heals(provision([ready]), ready)


def test_interrupted_and_run_again(ready: Host, provision: FromMirror) -> None:
    process = provision.start([ready], nvidia_driver_version=OLD)
    wait_for(ready, f"grep -q {OLD} /etc/apt/preferences.d/appliance-nvidia")
    process.send_signal(signal.SIGINT)
    done = provision.finish(process, patience=120)
    assert done.code == 130, done.output
    assert done.report["status"] == "interrupted"
    heals(provision([ready]), ready)


def test_broken_firewall_rule(ready: Host, provision: FromMirror) -> None:
    before = ready.root("nft list table inet appliance")
    done = provision([ready], firewall_extra_rules=["tcp dport nonsense acccept"])
    verdict(done, ready, "failed", "nft refuses", "firewall_extra_rules")
    assert ready.root("nft list table inet appliance") == before
    heals(provision([ready]), ready)


def test_a_rule_that_shuts_ssh_out_is_taken_back(ready: Host, provision: FromMirror) -> None:
    before = ready.root("nft list table inet appliance")
    done = provision([ready], firewall_ssh_clients=["192.0.2.0/24"], firewall_revert_seconds=25)
    verdict(done, ready, "failed", "shut ssh out", "firewall_ssh_clients")
    ready.wait(60)
    assert ready.root("nft list table inet appliance") == before
    heals(provision([ready]), ready)


def test_held_package(ready: Host, provision: FromMirror) -> None:
    ready.root("apt-mark hold datacenter-gpu-manager-4-cuda12")
    done = provision([ready])
    verdict(
        done, ready, "refused", "held by someone else: datacenter", "apt-mark unhold datacenter"
    )
    ready.root("apt-mark unhold datacenter-gpu-manager-4-cuda12")
    heals(provision([ready]), ready)


def test_a_slow_board_does_not_pass_burn_in(ready: Host, provision: FromMirror) -> None:
    ready.root("touch /var/lib/fakegpu/slow")
    done = provision([ready])
    verdict(done, ready, "failed", "all_reduce reaches 11.74 GB/s", "should give 200", "ACS")
    ready.root("rm /var/lib/fakegpu/slow")
    heals(provision([ready]), ready)


def test_disk_full(ready: Host, provision: FromMirror) -> None:
    replug(ready, small_disk="/opt/appliance:20m")
    done = provision([ready], preflight_disk_gib=0)
    verdict(done, ready, "failed", "a disk is full", "df -h")
    replug(ready, small_disk="")
    heals(provision([ready]), ready)


def wait_for(host: Host, command: str, patience: float = 180) -> None:
    """Wait until a command on the host succeeds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if host.ssh(command, check=False).returncode == 0:
            return
        time.sleep(0.2)
    raise AssertionError(f"{command} did not come true on {host.name}")
