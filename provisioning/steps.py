"""What provisioning a host will do, told before it is done: pure, from the preflight's facts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provisioning.targets import PROJECT, Target

# Seconds by role on a first run, measured on test hosts (docs/provisioning.md); the wheels and the
# driver's build on a real board take longer. A host's earlier runs replace them.
SECONDS = {
    "preflight": 3,
    "repo": 5,
    "base": 20,
    "kernel": 15,
    "nvidia_driver": 180,
    "reboot_gate": 240,
    "fabricmanager": 15,
    "gpu_state": 5,
    "venv_train": 300,
    "cuda_runtime": 5,
    "venv_serve": 5,
    "appliance": 20,
    "firewall": 10,
    "monitoring": 10,
    "burnin": 60,
    "rollback": 2,
}
DOWNLOAD_MIB = {
    "base": 20,
    "kernel": 15,
    "nvidia_driver": 450,
    "fabricmanager": 10,
    "monitoring": 5,
}
# The cpu lock's 140 wheels; cu118's by their index; FastDeploy 2's with CUDA 12.6, an estimate.
WHEELS_MIB = {"cpu": 720, "gpu": 3400, "serve": 5000}


@dataclass(frozen=True)
class Step:
    """One role's part. `changes` is empty where all is as wanted already."""

    role: str
    changes: str
    seconds: float
    mib: float = 0.0


@dataclass(frozen=True)
class HostPlan:
    """All steps of a host, in order."""

    host: str
    steps: tuple[Step, ...]

    @property
    def reboot(self) -> bool:
        """Whether the host will be rebooted."""
        return any(step.role == "reboot_gate" and step.changes for step in self.steps)

    @property
    def seconds(self) -> float:
        """About how long it will take."""
        return sum(step.seconds for step in self.steps)

    @property
    def mib(self) -> float:
        """About how much will be downloaded or copied."""
        return sum(step.mib for step in self.steps)


def roles_of(target: Target) -> list[str]:
    """The roles that apply to a host, in the order of site.yml."""
    switches = int(target.variables["provision_switches"])
    driver = ("kernel", "nvidia_driver", "reboot_gate", "gpu_state", "cuda_runtime")
    return [
        role
        for role in SECONDS
        if (role not in driver or target.cards) and (role != "fabricmanager" or switches)
    ]


def environment_digest(target: Target, locks: Mapping[str, str]) -> str:
    """The part of the environment's name that comes from its locks, as role venv_train makes it."""
    lock = locks.get("train") or str(
        PROJECT
        / str(
            target.get("venv_train", "venv_train_lock")
            if "venv_train_lock" in target.variables
            else target.variables["provision_lock"]
        )
    )
    data = locks.get("data")
    if data is None:
        named = target.variables.get("provision_data_lock")
        data = str(PROJECT / named) if named else ""
    text = Path(lock).read_text(encoding="utf-8")
    text += Path(data).read_text(encoding="utf-8") if data else ""
    text += " ".join(target.variables.get("provision_vendor_wheels") or [])
    return f"train-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def plan_host(
    target: Target,
    facts: Mapping[str, Any],
    *,
    locks: Mapping[str, str],
    release: str,
    bundle_mib: float | None,
    usual: Mapping[str, float],
) -> HostPlan:
    """The steps for a host as preflight saw it. `usual`: seconds by role of its last run."""
    said = changes(target, facts, locks, release)
    steps = []
    for role in roles_of(target):
        change = said.get(role, "")
        first = not facts.get("ours")
        seconds = SECONDS[role] if change or first else usual.get(role, 2.0)
        mib = 0.0
        if bundle_mib is None and change:
            mib = download_mib(role, target, change)
        elif bundle_mib is not None and role == "repo" and change:
            mib = bundle_mib
        steps.append(Step(role, change, seconds if change else min(seconds, 5), mib))
    return HostPlan(target.name, tuple(steps))


def download_mib(role: str, target: Target, change: str) -> float:
    """About what a role downloads, in MiB, where no bundle brings it."""
    if role == "venv_train":
        return WHEELS_MIB["gpu" if target.cards else "cpu"]
    if role == "venv_serve" and change.startswith("FastDeploy 2"):
        return WHEELS_MIB["serve"]
    return DOWNLOAD_MIB.get(role, 0)


def changes(
    target: Target, facts: Mapping[str, Any], locks: Mapping[str, str], release: str
) -> dict[str, str]:
    """What each role will change; a role that is not named only checks."""
    said: dict[str, str] = {}
    if not facts.get("ours"):
        said["repo"] = "package sources and their keys"
        said["base"] = "time, limits, kernel settings, unattended upgrades kept off the driver"
        said["firewall"] = "drops what comes in, except ssh and the clients named"
        said["monitoring"] = "node exporter, and DCGM's where it is packaged"
        said["rollback"] = "the record of what is installed"
        if target.cards:
            said["kernel"] = "headers, nouveau kept out, iommu=pt"
            said["gpu_state"] = "persistence on, MIG off, ECC on"
    if target.cards:
        said.update(driver_changes(target, facts))
    environment = str(target.variables.get("rollback_train") or environment_digest(target, locks))
    release = str(target.variables.get("rollback_release", release))
    if not str(facts.get("train", "")).startswith(environment):
        said["venv_train"] = f"{facts.get('train') or 'none'} → {environment}"
        said["venv_serve"] = "the same"
        if target.cards:
            said["cuda_runtime"] = "links to the CUDA libraries of the wheels"
    said.update(serve_changes(target, facts, locks))
    if facts.get("release") != release:
        said["appliance"] = f"{facts.get('release') or 'none'} → {release}"
    said["burnin"] = "changes nothing; loads the cards" if target.cards else "changes nothing"
    return said


def serve_changes(
    target: Target, facts: Mapping[str, Any], locks: Mapping[str, str]
) -> dict[str, str]:
    """FastDeploy 2's environment, named as role venv_serve names it."""
    if not target.get("venv_serve", "venv_serve_fastdeploy2"):
        return {}
    lock = locks.get("serve")
    packages = " ".join(target.get("venv_serve", "venv_serve_packages"))
    text = Path(lock).read_text(encoding="utf-8") if lock else packages
    digest = f"serve-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    wanted = str(target.variables.get("rollback_serve") or digest)
    found = str(facts.get("fastdeploy2", ""))
    if found.startswith(wanted):
        return {}
    return {"venv_serve": f"FastDeploy 2: {found or 'none'} → {wanted}"}


def driver_changes(target: Target, facts: Mapping[str, Any]) -> dict[str, str]:
    """Driver, reboot and fabric manager."""
    said = {}
    wanted = str(target.get("nvidia_driver", "nvidia_driver_version"))
    driver = facts["driver"]
    if driver["installed"] != wanted:
        said["nvidia_driver"] = f"driver {driver['installed'] or 'none'} → {wanted}, held"
    if driver["loaded"] != wanted:
        said["reboot_gate"] = f"ONE REBOOT: loaded {driver['loaded'] or 'none'} → {wanted}"
    manager = facts.get("fabricmanager", "")
    if int(target.variables["provision_switches"]) and manager != wanted:
        said["fabricmanager"] = f"fabric manager {manager or 'none'} → {wanted}, held"
    return said
