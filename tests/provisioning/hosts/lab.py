"""A bridge with hosts on it; one at a time on a machine, and nothing of it left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import IO

from tests.provisioning.hosts import base, needs
from tests.provisioning.hosts.base import run
from tests.provisioning.hosts.host import Host, Settings

BRIDGE = "applbr0"
PREFIX = "appl-"
NETWORK = "10.77.0"
GATEWAY = f"{NETWORK}.1"


class Lab:
    """Bridge, key and hosts. A context manager: leaving it stops all and clears up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: dict[str, Host] = {}
        self.key = folder / "key"

    def __enter__(self) -> Lab:
        needs.require()
        self.lock = wait_for_lock(base.cache() / "lock")
        clear_leftovers()
        self.base = base.base_root()
        self.folder.mkdir(parents=True, exist_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)])
        if run(["ip", "-json", "route", "show", f"{NETWORK}.0/24"]).strip() not in (
            "[]",
            "[ ]",
            "",
        ):
            raise needs.HostsImpossible(f"a route to {NETWORK}.0/24 is already there")
        run(["ip", "link", "add", BRIDGE, "type", "bridge"])
        run(["ip", "addr", "add", f"{GATEWAY}/24", "dev", BRIDGE])
        run(["ip", "link", "set", BRIDGE, "up"])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for host in self.hosts.values():
            with contextlib.suppress(Exception):
                host.stop()
        clear_leftovers()
        for host in self.hosts.values():
            shutil.rmtree(host.folder, ignore_errors=True)
        self.lock.close()

    def add(self, name: str, settings: Settings | None = None) -> Host:
        """A new host, running and answering over ssh."""
        number = 11 + len(self.hosts)
        netns = f"{PREFIX}{name}"
        wire(netns, f"applv{number}", f"{NETWORK}.{number}", number)
        host = Host(
            name=name,
            address=f"{NETWORK}.{number}",
            folder=self.folder / name,
            netns=netns,
            base=self.base,
            key=self.key,
            settings=settings or Settings(),
        )
        self.hosts[name] = host
        host.create()
        host.start()
        return host

    def namespace(self, name: str) -> list[str]:
        """A bare network namespace on the bridge; the words that run a command in it."""
        netns = f"{PREFIX}{name}"
        number = 200 + len(name)
        wire(netns, f"applv{number}", f"{NETWORK}.{number}", number)
        return ["ip", "netns", "exec", netns]

    def remove(self, host: Host) -> None:
        """Stop a host and forget its files; its address is not given again."""
        host.stop()
        shutil.rmtree(host.folder, ignore_errors=True)


def wire(netns: str, outer: str, address: str, number: int) -> None:
    """A network namespace with one leg on the bridge and no route further."""
    run(["ip", "netns", "add", netns])
    peer = ["peer", "name", "eth0", "address", f"02:00:0a:4d:00:{number:02x}", "netns", netns]
    run(["ip", "link", "add", outer, "type", "veth", *peer])
    run(["ip", "link", "set", outer, "master", BRIDGE, "up"])
    run(["ip", "-n", netns, "addr", "add", f"{address}/24", "dev", "eth0"])
    run(["ip", "-n", netns, "link", "set", "eth0", "up"])
    run(["ip", "-n", netns, "link", "set", "lo", "up"])


def wait_for_lock(path: Path, patience: float = 900) -> IO[str]:
    """Hold the one lock on this machine's test network."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open("w")
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return stream
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise needs.HostsImpossible(f"another test run has held {path} too long") from None
            time.sleep(1)


def clear_leftovers() -> None:
    """End what a killed run left: its processes (by namespace), network and cgroups.

    Only names with this package's prefix are touched, and only under the lock.
    """
    for space in json.loads(run(["ip", "-json", "netns", "list"]) or "[]"):
        if not space["name"].startswith(PREFIX):
            continue
        for pid in run(["ip", "netns", "pids", space["name"]]).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        run(["ip", "netns", "delete", space["name"]])
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True)
    root = needs.cgroup_root()
    for group in root.glob(f"{PREFIX}*") if root else ():
        remove_cgroup(group)


def remove_cgroup(group: Path, patience: float = 10) -> None:
    """Remove a cgroup and those below it, once their processes are gone."""
    deadline = time.monotonic() + patience
    kill = group / "cgroup.kill"
    if kill.exists():
        kill.write_text("1")
    while True:
        try:
            for folder, _, _ in os.walk(group, topdown=False):
                os.rmdir(folder)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
