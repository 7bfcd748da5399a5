"""Which hosts to provision, as what: an address or an inventory, and a profile for each host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from appliance.errors import UserError

FOLDER = Path(__file__).parent
PROJECT = FOLDER.parent
PROFILES = tuple(sorted(path.stem for path in (FOLDER / "profiles").glob("*.yaml")))
INVENTORY_SECONDS = 60


@dataclass(frozen=True)
class Target:
    """One host. `variables` holds its profile's, then the inventory's, then those of `--set`."""

    name: str
    profile: str
    variables: Mapping[str, Any]

    def get(self, role: str, name: str) -> Any:
        """A role's variable: as set for this host, else the role's default."""
        return self.variables[name] if name in self.variables else role_defaults(role)[name]

    @property
    def cards(self) -> int:
        """How many cards the host has by its profile."""
        return int(self.variables["provision_cards"])


def tool(name: str) -> str:
    """A command of Ansible, beside the Python that runs us."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise UserError(
            f"{name} is not installed beside {sys.executable}", hint="make setup installs it."
        )
    return str(path)


def role_defaults(role: str) -> dict[str, Any]:
    """A role's public face."""
    text = (FOLDER / "roles" / role / "defaults/main.yml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text) or {})


def profile_variables(name: str) -> dict[str, Any]:
    """What a profile says. Raises UserError for a name that is none."""
    if name not in PROFILES:
        raise UserError(f"no profile is called {name!r}", hint=f"Profiles: {', '.join(PROFILES)}.")
    text = (FOLDER / "profiles" / f"{name}.yaml").read_text(encoding="utf-8")
    return {"provision_profile": name, **yaml.safe_load(text)}


def read_targets(
    where: str, profile: str | None, settings: Sequence[str], limit: Sequence[str] = ()
) -> list[Target]:
    """The hosts of an inventory file or an address. Raises UserError naming what is wrong."""
    given = parse_settings(settings)
    hosts = read_inventory(Path(where)) if is_file(where) else parse_address(where)
    if unknown := set(limit) - set(hosts):
        raise UserError(
            f"not in {where}: {', '.join(sorted(unknown))}", hint=f"Hosts: {', '.join(hosts)}."
        )
    targets = []
    for name, variables in hosts.items():
        if limit and name not in limit:
            continue
        chosen = profile or variables.get("provision_profile")
        if not chosen:
            raise UserError(
                f"{name} has no profile",
                hint=f"Pass --profile, or set provision_profile in the inventory: "
                f"{', '.join(PROFILES)}.",
            )
        merged = {**profile_variables(chosen), **variables, **given, "provision_profile": chosen}
        targets.append(Target(name, chosen, merged))
    return targets


def is_file(where: str) -> bool:
    """Whether a target names an inventory rather than an address."""
    return where.endswith((".yaml", ".yml", ".ini")) or os.path.exists(where)


def parse_address(where: str) -> dict[str, dict[str, Any]]:
    """`[USER@]HOST[:PORT]` as the one host of an inventory."""
    match = re.fullmatch(r"(?:([\w.-]+)@)?([\w.-]+|\[[0-9a-fA-F:]+\])(?::(\d+))?", where)
    if not match:
        raise UserError(
            f"{where!r} is neither an inventory file nor an address",
            hint="Write USER@HOST, USER@HOST:PORT or the path of a YAML inventory.",
        )
    user, host, port = match.groups()
    variables: dict[str, Any] = {"ansible_host": host.strip("[]")}
    if user:
        variables["ansible_user"] = user
    if port:
        variables["ansible_port"] = int(port)
    return {host: variables}


def read_inventory(path: Path) -> dict[str, dict[str, Any]]:
    """Hosts of an Ansible inventory with their variables, as Ansible itself reads it."""
    if not path.is_file():
        raise UserError(
            f"{path} is not there", hint="See provisioning/inventory.example.yaml for one."
        )
    done = subprocess.run(
        [tool("ansible-inventory"), "-i", str(path), "--list"],
        capture_output=True,
        text=True,
        timeout=INVENTORY_SECONDS,
        env={**os.environ, "ANSIBLE_INVENTORY_UNPARSED_FAILED": "true", "ANSIBLE_NOCOLOR": "1"},
    )
    if done.returncode:
        raise UserError(f"{path} is no inventory that Ansible can read: {done.stderr.strip()}")
    listed = json.loads(done.stdout)
    hostvars = listed.get("_meta", {}).get("hostvars", {})
    groups = [group for name, group in listed.items() if name != "_meta"]
    names = [host for group in groups for host in group.get("hosts", [])]
    hosts = {name: dict(hostvars.get(name, {})) for name in dict.fromkeys(names)}
    if not hosts:
        raise UserError(f"{path} names no host", hint="See provisioning/inventory.example.yaml.")
    return hosts


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` pairs; a value is read as YAML."""
    given = {}
    for setting in settings:
        name, sign, value = setting.partition("=")
        if not sign or not name.isidentifier():
            raise UserError(f"--set {setting!r} is not NAME=VALUE")
        try:
            given[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {name}: the value is not YAML: {error}") from None
    return given
