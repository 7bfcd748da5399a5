"""What preflight reads, and how it judges: the parsers alone."""

from __future__ import annotations

import importlib.util
import struct
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from provisioning.targets import FOLDER


def load(path: str) -> ModuleType:
    """A script that roles run on hosts, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, FOLDER / "roles" / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


preflight = load("preflight/files/preflight.py")
burnin = load("burnin/files/burnin.py")


def facts(**changes: Any) -> dict[str, Any]:
    """A host of eight cards as it should be."""
    cards = [{"slot": f"0000:{n:02x}:00.0", "id": "20b2"} for n in range(8)]
    return {
        "os": "debian 12",
        "architecture": "x86_64",
        "kernel": "6.1.0-40-amd64",
        "headers": True,
        "cards": cards,
        "switches": [{"slot": f"0000:c{n}:00.0", "id": "1af1"} for n in range(6)],
        "secure_boot": False,
        "cmdline": [],
        "acs": [],
        "disk_gib": {"opt": 500.0, "var": 500.0},
        "memory_gib": 1000.0,
        "run_driver": "",
        "held": [],
        "ours": {},
        "pinned": False,
        "unfinished": False,
        "clock": time.time(),
        "synchronized": "yes",
        "ports": {"22": "sshd"},
        **changes,
    }


def wants(**changes: Any) -> dict[str, Any]:
    """What a profile of eight cards asks."""
    return {
        "cards": 8,
        "card_ids": ["20b2"],
        "switches": 6,
        "disk_gib": 100,
        "memory_gib": 256,
        "ports": [8000, 8001],
        "systems": ["debian 12", "ubuntu 22.04"],
        "clock_seconds": 600,
        "now": time.time(),
        "debs": [],
        "managed": ["nvidia-driver-cuda"],
        "bundle_system": "",
        "secure_boot_enrolled": False,
        "offline": False,
        **changes,
    }


def bad(found: list[dict[str, Any]]) -> dict[str, str]:
    """What is not as it should be: check → level."""
    return {f["check"]: f["level"] for f in found if not f["ok"]}


def test_a_sound_host_is_fit() -> None:
    assert bad(preflight.judge(facts(), wants())) == {}


@pytest.mark.parametrize(
    ("seen", "asked", "check", "level", "words"),
    [
        ({"cards": []}, {}, "cards", "stop", "0 cards"),
        ({"cards": facts()["cards"][:7]}, {}, "cards", "stop", "shows 7"),
        (
            {"cards": [*facts()["cards"][:7], {"slot": "x", "id": "20b5"}]},
            {},
            "cards",
            "stop",
            "20b5",
        ),
        ({"switches": []}, {}, "NVSwitch", "stop", "0 NVSwitches"),
        ({"secure_boot": True}, {}, "Secure Boot", "stop", "mokutil"),
        (
            {"secure_boot": True},
            {"secure_boot_enrolled": True},
            "Secure Boot",
            "warn",
            "firmware",
        ),
        ({"os": "fedora 42"}, {}, "system", "stop", "fedora 42"),
        ({"architecture": "aarch64"}, {}, "architecture", "stop", "aarch64"),
        ({}, {"bundle_system": "ubuntu 22.04"}, "bundle", "stop", "made for ubuntu 22.04"),
        ({"clock": 0}, {}, "clock", "stop", "s off"),
        ({"synchronized": "no"}, {}, "time sync", "warn", "chrony"),
        ({"disk_gib": {"opt": 3.0, "var": 500.0}}, {}, "disk /opt", "stop", "3.0 GiB free"),
        ({"memory_gib": 64.0}, {}, "memory", "stop", "64.0 GiB"),
        ({"ports": {"8000": "nginx"}}, {}, "port 8000", "stop", "taken by nginx"),
        (
            {"run_driver": "/usr/bin/nvidia-uninstall"},
            {},
            "earlier .run driver",
            "stop",
            "--silent",
        ),
        ({"held": ["libnvidia-ml1"]}, {}, "held packages", "stop", "apt-mark unhold libnvidia-ml1"),
        ({"held": ["nvidia-driver-cuda"]}, {}, "held packages", "stop", "unhold"),
        ({"headers": False}, {}, "kernel headers", "stop", "linux-headers-6.1.0-40-amd64"),
        ({}, {"offline": True}, "kernel headers", "stop", "--package linux-headers-6.1.0-40-amd64"),
        ({"cmdline": ["intel_iommu=on"]}, {}, "IOMMU", "warn", "intel_iommu=on"),
        ({"acs": ["0000:00:01.0"]}, {}, "ACS", "warn", "0000:00:01.0"),
        ({"unfinished": True}, {}, "package state", "warn", "dpkg"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(
    seen: dict[str, Any], asked: dict[str, Any], check: str, level: str, words: str
) -> None:
    found = preflight.judge(facts(**seen), wants(**asked))
    assert bad(found) == {check: level}
    assert words in next(f["message"] for f in found if not f["ok"])


@pytest.mark.parametrize(
    ("seen", "asked"),
    [
        ({"held": ["nvidia-driver-cuda"], "pinned": True}, {}),
        ({"held": ["chrony"]}, {}),
        ({"ports": {"8000": "python"}}, {}),
        ({"headers": False}, {"offline": True, "debs": ["linux-headers-6.1.0-40-amd64"]}),
        ({"cmdline": ["amd_iommu=on", "iommu=pt"]}, {}),
    ],
)
def test_what_is_ours_or_harmless_is_let_be(seen: dict[str, Any], asked: dict[str, Any]) -> None:
    assert bad(preflight.judge(facts(**seen), wants(**asked))) == {}


def test_cards_under_a_profile_without_are_told_but_not_refused() -> None:
    asked = wants(cards=0, card_ids=[], switches=0)
    assert bad(preflight.judge(facts(), asked)) == {"cards": "warn"}


def test_access_control_is_read_from_configuration_space() -> None:
    config = bytearray(4096)
    struct.pack_into("<I", config, 0x100, 0x0001 | 1 << 16 | 0x140 << 20)
    struct.pack_into("<I", config, 0x140, 0x000D | 1 << 16)
    assert preflight.acs_on(bytes(config)) is False
    struct.pack_into("<H", config, 0x146, 0b0000_0100)
    assert preflight.acs_on(bytes(config)) is True
    assert preflight.acs_on(b"\0" * 256) is False
    struct.pack_into("<I", config, 0x100, 0x0001 | 0x100 << 20)
    assert preflight.acs_on(bytes(config)) is False, "a list that points at itself ends"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.309.01  Mon\nGCC version: 12",
            "535.309.01",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.105.08  Rel", "580.105.08"),
        ("", ""),
    ],
)
def test_the_loaded_version_is_read(text: str, version: str) -> None:
    assert preflight.loaded_version(text) == version


def test_listening_ports_are_read_with_their_process() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        name = Path("/proc/self/comm").read_text().strip()
        assert preflight.listening(Path("/"))[port] == name
    assert port not in preflight.listening(Path("/"))


DRIVER = {"driver": "580.105.08", "temperature": 85}
CARD = "0, 580.105.08, Enabled, Disabled, Enabled, 0, 34, 4, 16, 16"


def test_a_sound_card_passes_burn_in() -> None:
    (card,) = burnin.parse_cards(CARD)
    assert all(
        ok for _, ok, _ in burnin.judge_card(card, {"driver": "580.105.08", "temperature": 85})
    )


@pytest.mark.parametrize(
    ("old", "new", "check"),
    [
        ("580.105.08", "580.95.05", "driver"),
        ("Enabled, Disabled, Enabled", "Disabled, Disabled, Enabled", "persistence"),
        ("Disabled, Enabled", "Enabled, Enabled", "MIG"),
        ("Disabled, Enabled, 0", "Disabled, Disabled, 0", "ECC"),
        ("Enabled, 0, 34", "Enabled, 3, 34", "memory errors"),
        (" 34,", " 91,", "temperature"),
        ("16, 16", "8, 16", "link width"),
    ],
)
def test_an_unsound_card_is_named(old: str, new: str, check: str) -> None:
    (card,) = burnin.parse_cards(CARD.replace(old, new, 1))
    judged = burnin.judge_card(card, DRIVER)
    assert [name for name, ok, _ in judged if not ok] == [check]


def test_cards_at_work_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, free in (("", True), ("4711\n4712\n", False)):
        monkeypatch.setattr(burnin, "run", lambda *_, said=words: (0, said))
        found: list[dict[str, Any]] = []
        assert burnin.idle(found) is free
        assert bad(found) == ({} if free else {"idle": "warn"})


def test_what_a_card_does_not_know_is_no_fault() -> None:
    (card,) = burnin.parse_cards(CARD.replace(" 0, 34", " [N/A], [N/A]"))
    assert all(
        ok for _, ok, _ in burnin.judge_card(card, {"driver": "580.105.08", "temperature": 85})
    )
