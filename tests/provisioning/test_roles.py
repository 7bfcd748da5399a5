"""T0: the playbooks are sound before any host is booted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from provisioning.targets import FOLDER, PROFILES, PROJECT

ROLES = sorted(path.name for path in (FOLDER / "roles").iterdir())
LINT = PROJECT / ".venv-lint/bin/ansible-lint"


def test_ansible_lint_finds_nothing_in_its_strictest_profile(tmp_path: Path) -> None:
    assert LINT.exists(), "ansible-lint is not installed: make lint"
    environment = {**os.environ, "PATH": f"{LINT.parent}:{os.environ['PATH']}", "NO_COLOR": "1"}
    environment["ANSIBLE_HOME"] = environment["XDG_CACHE_HOME"] = str(tmp_path)
    done = subprocess.run(
        [str(LINT), "--offline", "--profile", "production", "--project-dir", str(FOLDER), "."],
        cwd=FOLDER,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passed" in done.stderr, "ansible-lint looked at nothing"


@pytest.mark.parametrize("playbook", ["site.yml", "preflight.yml"])
def test_ansible_reads_the_playbook(playbook: str) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "--syntax-check", playbook],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("role", ROLES)
def test_a_role_uses_builtin_modules_and_names_its_variables_after_itself(role: str) -> None:
    defaults = yaml.safe_load((FOLDER / "roles" / role / "defaults/main.yml").read_text()) or {}
    assert all(name.startswith(f"{role}_") for name in defaults)
    for path in (FOLDER / "roles" / role).glob("*/*.yml"):
        for task in tasks(yaml.safe_load(path.read_text()) or []):
            modules = [key for key in task if "." in key]
            assert all(module.startswith("ansible.builtin.") for module in modules), (path, task)


def tasks(entries: object) -> list[dict[str, object]]:
    """All tasks of a list, those within blocks too."""
    if not isinstance(entries, list):
        return []
    return [task for entry in entries for task in (entry, *tasks(entry.get("block")))]


def test_every_profile_answers_every_question() -> None:
    asked = [yaml.safe_load((FOLDER / f"profiles/{name}.yaml").read_text()) for name in PROFILES]
    needed = {"provision_cards", "provision_card_ids", "provision_switches", "provision_lock"}
    for profile in asked:
        assert needed <= profile.keys()
        assert (PROJECT / profile["provision_lock"]).is_file()


def test_the_example_inventory_is_read_by_ansible_and_by_us() -> None:
    from provisioning.targets import read_targets

    targets = read_targets(str(FOLDER / "inventory.example.yaml"), None, [])
    assert {target.profile for target in targets} == set(PROFILES)
    json.dumps([dict(target.variables) for target in targets])
