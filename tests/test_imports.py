"""The import graph: a room depends only on the rooms below it (docs/design.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

BASE = {"appliance.errors", "appliance.files", "appliance.home", "appliance.version"}
INPUTS = BASE | {"appliance.recipe", "appliance.machine"}
# Longest prefix wins: what each room may import of the project, itself aside.
MAY_IMPORT = {
    "appliance.errors": set(),
    "appliance.version": set(),
    "appliance.files": {"appliance.errors"},
    "appliance.home": {"appliance.errors"},
    "appliance.recipe": BASE | {"appliance.data", "appliance.bundle", "appliance.machine"},
    "appliance.machine": BASE,
    "appliance.recipes": set(),
    "appliance.doctor": INPUTS,
    "appliance.crash": BASE,
    "appliance.plan": INPUTS,
    "appliance.bundle": BASE,
    "appliance.data": BASE | {"appliance.bundle", "appliance.recipe"},
    "appliance.jobs": INPUTS | {"appliance.plan", "serving.client"},
    "appliance.training": INPUTS
    | {
        "appliance.bundle",
        "appliance.data",
        "appliance.jobs.artifacts",
        "appliance.jobs.events",
        "serving",
    },
    "serving": BASE | {"appliance.bundle"},
    "serving.client": {
        "appliance.errors",
        "serving.rpc.v1",
        "serving.rpc.wire",
        "serving.table",
    },
    "provisioning": BASE,
}
FREE = {"appliance.cli", "appliance.provision_cli", "appliance.serve_cli"}


def modules():
    """Our modules, by name; not the programs that roles copy onto hosts."""
    for package in ("appliance", "serving", "provisioning"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.stem.endswith(("_pb2", "_pb2_grpc")) or "roles" in path.parts:
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, path


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name, rooms):
    return any(name == room or name.startswith(room + ".") for room in rooms)


def room_of(name):
    rooms = [room for room in MAY_IMPORT if within(name, {room})]
    return max(rooms, key=len) if rooms else None


def test_no_arrow_goes_up():
    wrong = []
    for name, path in modules():
        if name in FREE or name in ("appliance", "serving"):
            continue
        room = room_of(name)
        assert room, f"{name} has no room in docs/design.md's table"
        allowed = MAY_IMPORT[room] | {room}
        wrong += [
            f"{name} imports {target}"
            for target in imports(path)
            if within(target, {"appliance", "serving", "provisioning"})
            and not within(target, allowed)
        ]
    assert not wrong, "\n".join(wrong)


def test_paddle_is_imported_by_training_and_bundle_alone():
    wrong = [
        f"{name} imports {target}"
        for name, path in modules()
        for target in imports(path)
        if within(target, {"paddle", "paddlenlp"})
        and not within(name, {"appliance.training", "appliance.bundle"})
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "module",
    ["appliance.cli", "appliance.bundle.read", "appliance.bundle.chat", "serving.server"],
)
def test_never_brings_paddle_in(module):
    code = f"import sys, {module}; print([m for m in sys.modules if m.startswith('paddle')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_check_sees_an_arrow_up(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from appliance.jobs import store\n")
    targets = list(imports(bad))
    assert targets == ["appliance.jobs.store"]
    assert not within(targets[0], MAY_IMPORT["appliance.plan"] | {"appliance.plan"})
