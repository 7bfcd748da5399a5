"""Test hosts, stand-ins for NVIDIA's packages, bundles, and the command as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.provisioning.hosts import Host, Lab, base
from tests.provisioning.hosts.lab import GATEWAY
from tests.provisioning.hosts.mirror import Mirror
from tests.provisioning.hosts.nvidia import package_source, paddle_index, wheelhouse

# A test host is as small as the machine that carries it.
SMALL = {
    "preflight_memory_gib": 1,
    "preflight_disk_gib": 1,
    "repo_tries": 2,
    "repo_pause": 1,
}


@dataclass(frozen=True)
class Provisioned:
    """One call of the command: exit code, what it printed, and its report."""

    code: int
    output: str
    report: dict[str, Any]

    def host(self, name: str) -> dict[str, Any]:
        """What became of one host."""
        return dict(self.report["hosts"][name])


class Command:
    """`appliance provision` over hosts of the lab, with a home and inventory of its own."""

    def __init__(self, folder: Path, key: Path) -> None:
        self.folder = folder
        self.key = key
        self.password = folder / "sudo"
        self.known = folder / "known_hosts"
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(
        self, hosts: Sequence[Host], *options: str, timeout: float = 600, **variables: object
    ) -> Provisioned:
        """Run to its end."""
        process = self.start(hosts, *options, **variables)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"no end within {timeout} s: {process.communicate()[0]}") from None
        return self.result(process.returncode, output)

    def start(
        self, hosts: Sequence[Host], *options: str, **variables: object
    ) -> subprocess.Popen[str]:
        """Run in the background."""
        self.known.write_text("".join(host.known_host for host in hosts))
        self.password.write_text(f"{hosts[0].sudo_password}\n" if hosts else "\n")
        self.password.chmod(0o600)
        inventory = self.folder / "inventory.yaml"
        inventory.write_text(yaml.safe_dump(self.inventory(hosts, variables)))
        return self.run(str(inventory), "--sudo-password-file", str(self.password), *options)

    def inventory(self, hosts: Sequence[Host], variables: dict[str, object]) -> dict[str, Any]:
        """As a user writes one."""
        ssh = f"-o UserKnownHostsFile={self.known} -o GlobalKnownHostsFile=/dev/null -F none"
        shared = {
            "ansible_user": "ops",
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": ssh,
            **SMALL,
            **variables,
        }
        profiles = shared.pop("profiles", {})
        named: dict[str, dict[str, Any]] = {h.name: {"ansible_host": h.address} for h in hosts}
        for name, profile in profiles.items():
            if name in named:
                named[name]["provision_profile"] = profile
        return {"all": {"hosts": named, "vars": shared}}

    def run(self, *words: str) -> subprocess.Popen[str]:
        """Any words after `appliance provision`."""
        return subprocess.Popen(
            [sys.executable, "-m", "appliance.cli", "provision", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                "APPLIANCE_HOME": str(self.folder / "home"),
                "COLUMNS": "160",
                "PIP_TRUSTED_HOST": GATEWAY,  # the lab's package index has no certificate
            },
        )

    def words(self, *words: str, timeout: float = 600) -> tuple[int, str]:
        """Exit code and output of such a call."""
        process = self.run(*words)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            raise
        return process.returncode, output

    def result(self, code: int, output: str) -> Provisioned:
        """The call's outcome, with the newest report."""
        reports = sorted((self.folder / "home/provision/runs").glob("*/report.json"))
        report = json.loads(reports[-1].read_text()) if reports else {}
        return Provisioned(code, output, report)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab") / "hosts") as running:
        yield running


@pytest.fixture(scope="session")
def command(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Command:
    return Command(tmp_path_factory.mktemp("command"), lab.key)


@dataclass(frozen=True)
class Vendor:
    """Stand-ins for what vendors publish: `folder` has nvidia/, wheelhouse/ and paddle/, served at
    `url`."""

    folder: Path
    url: str
    lock: Path

    @property
    def key(self) -> Path:
        """The public key of nvidia/."""
        return self.folder / "nvidia.asc"

    @property
    def settings(self) -> dict[str, str]:
        """The variables that say where Paddle's own index is."""
        return {
            "venv_train_vendor_index": f"{self.url}/paddle/cu118/",
            "venv_train_vendor_links": f"{self.url}/paddle/links/",
            "venv_serve_index": f"{self.url}/paddle/cu126/",
        }


@pytest.fixture(scope="session")
def vendor(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vendor]:
    folder = tmp_path_factory.mktemp("vendor")
    (folder / "nvidia.asc").write_text(package_source(folder / "nvidia"))
    lock = wheelhouse(folder / "wheelhouse")
    paddle_index(folder / "paddle")
    with Mirror(folder, GATEWAY) as serving:
        yield Vendor(folder, serving.url, lock)


@pytest.fixture(scope="session")
def gpu_bundle(
    vendor: Vendor, command: Command, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A bundle for hosts with cards, made by the command; and what the command said."""
    path = tmp_path_factory.mktemp("bundle") / "gpu.tar"
    return path, make_gpu_bundle(command, vendor, path, "a100-80g-x8", "main")


def make_gpu_bundle(
    command: Command, vendor: Vendor, path: Path, profile: str, parts: str, **settings: object
) -> str:
    """Make a bundle from the stand-ins and these parts of Debian; what the command said."""
    sources = path.with_suffix(".list")
    sources.write_text(
        f"deb [signed-by={vendor.key}] {vendor.url}/nvidia ./\n"
        f"deb {base.mirror()} {base.SUITE} {parts}\n"
    )
    settings = {"provision_lock": vendor.lock, **vendor.settings, **settings}
    code, output = command.words(
        "--bundle", str(path), "--profile", profile,
        "--apt-sources", str(sources), "--package", f"linux-headers-{os.uname().release}",
        *(word for name, value in settings.items() for word in ("--set", f"{name}={value}")),
        timeout=1800,
    )  # fmt: skip
    assert code == 0, output
    return output


def unpacked(bundle: Path, folder: Path) -> Path:
    """A bundle's files, to be served as a mirror."""
    with tarfile.open(bundle) as tar:
        tar.extractall(folder, filter="data")
    return folder
