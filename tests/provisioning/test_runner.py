"""T0: the command's own parts: targets, plans, causes of failures, bundles, reports."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from appliance.errors import UserError
from appliance.files import fingerprint
from provisioning import outcome, runs, show, source, steps, wheels
from provisioning.ansible import Event, handle
from provisioning.bundle import keep
from provisioning.outcome import HostOutcome, RoleTimes
from provisioning.targets import Target, parse_settings, profile_variables, read_targets


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_HOME", str(tmp_path / "home"))


def test_an_address_is_a_target() -> None:
    (target,) = read_targets("ops@10.0.0.5:2222", "cpu", [])
    assert target.variables["ansible_host"] == "10.0.0.5"
    assert target.variables["ansible_user"] == "ops"
    assert target.variables["ansible_port"] == 2222
    (target,) = read_targets("[fd00::1]", "cpu", [])
    assert target.variables["ansible_host"] == "fd00::1"


def test_what_is_set_goes_before_the_inventory_and_that_before_the_profile(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_text(
        "all:\n  children:\n    g:\n      hosts: {a: {provision_profile: cpu}, b: {}}\n"
        "      vars: {preflight_disk_gib: 7, preflight_memory_gib: 5, provision_profile: cpu}\n"
    )
    first, second = read_targets(str(path), None, ["preflight_disk_gib=9"])
    assert (first.name, second.name) == ("a", "b")
    assert first.variables["preflight_disk_gib"] == 9
    assert first.variables["preflight_memory_gib"] == 5
    assert first.variables["provision_cards"] == 0
    assert [t.name for t in read_targets(str(path), None, [], ["b"])] == ["b"]


@pytest.mark.parametrize(
    ("where", "profile", "settings", "words"),
    [
        ("not an address", "cpu", [], "neither an inventory file nor an address"),
        ("missing.yaml", "cpu", [], "missing.yaml is not there"),
        ("ops@host", None, [], "host has no profile"),
        ("ops@host", "h100", [], "no profile is called 'h100'"),
        ("ops@host", "cpu", ["nonsense"], "'nonsense' is not NAME=VALUE"),
    ],
)
def test_bad_input_is_named(
    where: str, profile: str | None, settings: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        read_targets(where, profile, settings)


def test_settings_are_yaml() -> None:
    assert parse_settings(["a=1", "b=[x, y]", "c=", "d=no"]) == {
        "a": 1,
        "b": ["x", "y"],
        "c": None,
        "d": False,
    }


def target(profile: str = "a100-80g-x8", **variables: Any) -> Target:
    return Target("host", profile, {**profile_variables(profile), **variables})


def plan(seen: dict[str, Any], **changes: Any) -> steps.HostPlan:
    known = {"locks": {}, "release": "r1", "bundle_mib": None, "usual": {}, **changes}
    return steps.plan_host(target(), seen, **known)


BARE = {"driver": {"installed": "", "loaded": ""}, "ours": {}, "train": "", "release": ""}


def test_a_bare_hosts_plan_has_everything_and_one_reboot() -> None:
    made = plan(BARE)
    assert made.reboot
    assert [s.role for s in made.steps if s.changes] == steps.roles_of(target())[1:]
    assert made.mib > 3000, "the wheels are gigabytes"
    assert plan(BARE, bundle_mib=900.0).mib == 900.0


def test_a_provisioned_hosts_plan_is_empty() -> None:
    version = target().get("nvidia_driver", "nvidia_driver_version")
    digest = steps.environment_digest(target(), {})
    named = " ".join(target().get("venv_serve", "venv_serve_packages"))
    packages = hashlib.sha256(named.encode()).hexdigest()[:16]
    made = plan(
        {
            "driver": {"installed": version, "loaded": version},
            "fabricmanager": version,
            "ours": {"current": {}},
            "train": f"{digest}-python3.10",
            "fastdeploy2": f"serve-{packages}-python3.10",
            "release": "r1",
        }
    )
    assert not made.reboot
    assert [s.role for s in made.steps if s.changes] == ["burnin"]
    assert made.mib == 0


@pytest.mark.parametrize("manager", ["580.95.05", "580.105.0", "580.105.081", ""])
def test_a_fabric_manager_of_any_other_version_is_changed(manager: str) -> None:
    said = steps.driver_changes(
        target(), {"driver": {"installed": "x", "loaded": "x"}, "fabricmanager": manager}
    )
    assert "fabricmanager" in said


def test_boards_without_switches_have_no_fabric_manager() -> None:
    assert "fabricmanager" not in steps.roles_of(target("a100-40g-x4"))
    assert not {"kernel", "nvidia_driver", "reboot_gate"} & set(steps.roles_of(target("cpu")))


@pytest.mark.parametrize(
    ("kind", "role", "message", "cause"),
    [
        ("unreachable", "", "Failed to connect: Host key verification failed.", "ssh key is not"),
        ("unreachable", "", "ops@h: Permission denied (publickey).", "ssh refused the key or user"),
        ("unreachable", "base", "ssh: connect to host h port 22: No route to host", "not answer"),
        ("failed", "", "Incorrect sudo password", "sudo refused the password"),
        ("failed", "", "Missing sudo password", "sudo asks for a password"),
        ("failed", "venv_train", "OSError: [Errno 28] No space left on device", "a disk is full"),
        ("failed", "repo", "Failed to update apt cache: unknown reason", "source does not answer"),
        ("failed", "firewall", "failed to validate\nx.nft:3: Error: syntax error", "nft refuses"),
        ("failed", "venv_serve", "ERROR: No matching distribution found for fastdeploy-gpu==2.5.0",
         "FastDeploy 2 has no installable set"),
        ("failed", "base", "The command action failed to execute in the expected time frame "
         "(5) and was terminated", "a task ran out of its time"),
        ("failed", "base", "non-zero return code\nsome last words", "some last words"),
    ],
)  # fmt: skip
def test_a_failure_is_said_in_our_words(kind: str, role: str, message: str, cause: str) -> None:
    event = Event(kind, "h", role, "a task", 1.0, {"msg": message})
    said, remedy = outcome.explain(event)
    assert cause in said
    assert remedy


def test_a_connection_that_closes_as_always_is_no_cause() -> None:
    seen: list[Event] = []
    raw = {
        "event": "runner_on_failed",
        "event_data": {
            "host": "h",
            "role": "base",
            "task": "base : Do",
            "duration": 1.5,
            "res": {"msg": "broken", "stderr": "Shared connection to 10.0.0.5 closed.\r\n"},
        },
    }
    handle(raw, seen.append)
    assert seen[0].message == "broken"
    assert seen[0].task == "Do"


def test_changes_and_times_are_counted_by_role() -> None:
    host = HostOutcome("h", "cpu")
    host.see(Event("start", "h", "base", "One", 0.0, {}))
    host.see(Event("changed", "h", "base", "One", 2.0, {"changed": True}))
    host.see(Event("ok", "h", "base", "Two", 1.0, {}))
    host.see(Event("changed", "h", "reboot_gate", "Reboot", 9.0, {"rebooted": True}))
    assert host.changed == 2 and host.rebooted and not host.lost
    assert host.roles["base"] == RoleTimes(3.0, 2, 1)
    host.see(Event("failed", "h", "base", "Three", 0.1, {"msg": "No space left on device"}))
    assert host.lost and host.cause == "a disk is full" and host.task == "Three"


def make_bundle(path: Path, *, damaged: bool = False, manifest: Any = None) -> Path:
    """A bundle file of two small members."""
    members = {"project/p.whl": b"wheel", "keys/bundle.asc": b"key", "locks/train.txt": b"lock"}
    known = {
        "profile": "cpu", "system": "debian 12", "python": "", "python_packages": [],
        "packages": [], "locks": {"train": "locks/train.txt"}, "project": "project/p.whl",
        "key": "keys/bundle.asc",
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in members.items()},
    }  # fmt: skip
    known["seal"] = fingerprint(known)
    known.update(manifest or {})
    with tarfile.open(path, "w") as tar:
        for name, data in {"manifest.json": json.dumps(known).encode(), **members}.items():
            body = data.replace(b"wheel", b"wheal") if damaged else data
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return path


def test_a_whole_bundle_is_taken(tmp_path: Path) -> None:
    taken = source.from_bundle(make_bundle(tmp_path / "b.tar"), tmp_path / "here")
    assert taken.extra["provision_source"].startswith("file:///var/cache/appliance/bundles/")
    assert Path(taken.locks["train"]).read_text() == "lock"


def test_a_changed_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"p\.whl is not what the manifest says"):
        source.from_bundle(make_bundle(tmp_path / "b.tar", damaged=True), tmp_path / "here")
    with pytest.raises(UserError, match="the manifest was changed"):
        path = make_bundle(tmp_path / "c.tar", manifest={"profile": "a100-80g-x8"})
        source.from_bundle(path, tmp_path / "here")
    (tmp_path / "d.tar").write_text("nonsense")
    with pytest.raises(UserError, match="cannot be read as a bundle"):
        source.from_bundle(tmp_path / "d.tar", tmp_path / "here")


def test_a_bundle_that_lacks_what_a_host_is_to_get_is_refused(tmp_path: Path) -> None:
    def taken(driver: str, *locks: str) -> source.Source:
        manifest = {"driver": driver, "profile": "cpu"}
        return source.Source("bundle", {}, dict.fromkeys(locks, ""), "r1", 1.0, manifest)

    with pytest.raises(UserError, match="host has cards, and the bundle, made for cpu, has no"):
        source.require(taken("", "train", "serve"), [target()])
    with pytest.raises(UserError, match="no FastDeploy 2 for host"):
        source.require(taken("580", "train"), [target("cpu"), target()])
    source.require(taken("580", "train"), [target(venv_serve_fastdeploy2=False)])
    source.require(taken("", "train"), [target("cpu")])


def test_a_wheel_of_two_locks_is_kept_once_and_hashed_as_kept(tmp_path: Path) -> None:
    room, first, second = (tmp_path / name for name in ("room", "first", "second"))
    for folder in (room / "wheels", room / "locks", first, second):
        folder.mkdir(parents=True)
    (first / "a-1-py3-none-any.whl").write_text("built once")
    (second / "a-1-py3-none-any.whl").write_text("built twice")
    keep(first, room, "train")
    keep(second, room, "serve")
    locks = [(room / "locks" / f"{kind}.txt").read_text() for kind in ("train", "serve")]
    assert locks[0] == locks[1]
    assert hashlib.sha256(b"built once").hexdigest() in locks[0]


def test_the_projects_wheel_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    one, two = wheels.project_wheel(first), wheels.project_wheel(second)
    assert one.read_bytes() == two.read_bytes(), "every run would change the hosts"


def test_history_and_difference_are_kept() -> None:
    for driver in ("580.95.05", "580.105.08"):
        run = runs.new_run("hosts.yaml", check=False, source="bundle")
        host = HostOutcome("h", "cpu", status="ok", facts={"driver": {"installed": driver}})
        run.hosts["h"] = host
        run.status = "ok"
        run.save()
        page = (run.folder / "report.html").read_text()
        assert "hosts.yaml" in page
    _, _, differing = runs.compare("h")
    assert differing == [("facts.driver.installed", "580.95.05", "580.105.08")]
    console = Console(file=io.StringIO(), width=160)
    show.history(console)
    assert console.file.getvalue().count("h ok") == 2  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="0 run"):
        runs.compare("other")


def test_a_report_page_escapes_what_hosts_say() -> None:
    run = runs.new_run("hosts.yaml", check=False, source="online")
    run.hosts["h"] = HostOutcome("h", "cpu", status="failed", cause="<script>alert(1)</script>")
    run.save()
    assert "<script>" not in (run.folder / "report.html").read_text()
