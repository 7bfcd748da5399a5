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

NETWORK = int(os.environ.get("APPLIANCE_TEST_NETWORK", "77"))
"""The second number of the hosts' addresses, and part of the name of all that a lab makes."""

GATEWAY = f"10.{NETWORK}.0.1"


class Lab:
    """Bridge, key and hosts. A context manager: leaving it stops all and clears up."""

    def __init__(self, folder: Path, network: int = NETWORK) -> None:
        self.folder = folder
        self.network = network
        self.prefix = f"appl{network}-"
        self.bridge = f"applbr{network}"
        self.hosts: dict[str, Host] = {}
        self.key = folder / "key"

    def __enter__(self) -> Lab:
        needs.require()
        self.lock = wait_for_lock(base.cache() / f"lock-{self.network}")
        self.clear_leftovers()
        self.base, self.held = base.take_base()
        self.folder.mkdir(parents=True, exist_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)])
        network = f"10.{self.network}.0.0/24"
        if run(["ip", "route", "show", network]).strip():
            raise needs.HostsImpossible(f"a route to {network} is already there")
        run(["ip", "link", "add", self.bridge, "type", "bridge"])
        run(["ip", "addr", "add", f"10.{self.network}.0.1/24", "dev", self.bridge])
        run(["ip", "link", "set", self.bridge, "up"])
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
        self.clear_leftovers()
        for host in self.hosts.values():
            shutil.rmtree(host.folder, ignore_errors=True)
        self.held.close()
        self.lock.close()

    def add(self, name: str, settings: Settings | None = None) -> Host:
        """A new host, running and answering over ssh."""
        number = 11 + len(self.hosts)
        netns = self.wire(name, number)
        host = Host(
            name=name,
            address=f"10.{self.network}.0.{number}",
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
        return ["ip", "netns", "exec", self.wire(name, 200 + len(name))]

    def remove(self, host: Host) -> None:
        """Stop a host and forget its files; its address is not given again."""
        host.stop()
        shutil.rmtree(host.folder, ignore_errors=True)

    def wire(self, name: str, number: int) -> str:
        """A network namespace with one leg on the bridge and no route further; its name."""
        netns, outer = f"{self.prefix}{name}", f"appl{self.network}v{number}"
        run(["ip", "netns", "add", netns])
        peer = ["peer", "name", "eth0", "address", f"02:00:0a:{self.network:02x}:00:{number:02x}"]
        run(["ip", "link", "add", outer, "type", "veth", *peer, "netns", netns])
        run(["ip", "link", "set", outer, "master", self.bridge, "up"])
        run(["ip", "-n", netns, "addr", "add", f"10.{self.network}.0.{number}/24", "dev", "eth0"])
        run(["ip", "-n", netns, "link", "set", "eth0", "up"])
        run(["ip", "-n", netns, "link", "set", "lo", "up"])
        return netns

    def unplug(self, host: Host, *, back: bool = False) -> None:
        """Cut a host's cable, or mend it."""
        outer = f"appl{self.network}v{host.address.rsplit('.', 1)[1]}"
        run(["ip", "link", "set", outer, "up" if back else "down"])

    def clear_leftovers(self) -> None:
        """End what a killed run left: its processes (by namespace), network and cgroups.

        Only names with this lab's prefix are touched, and only under the lock.
        """
        for space in json.loads(run(["ip", "-json", "netns", "list"]) or "[]"):
            if not space["name"].startswith(self.prefix):
                continue
            for pid in run(["ip", "netns", "pids", space["name"]]).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            run(["ip", "netns", "delete", space["name"]])
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True)
        root = needs.cgroup_root()
        for group in root.glob(f"{self.prefix}*") if root else ():
            remove_cgroup(group)


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
