"""One test host: files, power, and a shell on it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.provisioning.hosts import needs
from tests.provisioning.hosts.base import GUEST, run

PR_SET_PDEATHSIG = 1
PRIVATE_SYSCTLS = ("vm.swappiness", "vm.max_map_count", "kernel.numa_balancing")


@dataclass(frozen=True)
class Settings:
    """A host's hardware. `small_disk` is FOLDER:SIZE."""

    cards: int = 0
    card_id: str = "20b2"
    switches: int = 0
    secure_boot: bool = False
    small_disk: str = ""


@dataclass
class Host:
    """A host of a Lab. `sudo_password` is the one of the account `ops`."""

    name: str
    address: str
    folder: Path
    netns: str
    base: Path
    key: Path
    settings: Settings
    user: str = "ops"
    sudo_password: str = "correct horse"
    supervisor: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def create(self) -> None:
        """An empty layer over the base, with ssh keys of its own and the operator's key let in."""
        for part in ("upper", "work", "root"):
            (self.folder / part).mkdir(parents=True)
        ssh = self.folder / "upper/etc/ssh"
        ssh.mkdir(parents=True)
        run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / "ssh_host_ed25519_key")]
        )
        home = self.folder / "upper/home/ops"
        (home / ".ssh").mkdir(parents=True)
        shutil.copy(f"{self.key}.pub", home / ".ssh/authorized_keys")
        for path in (home, home / ".ssh", home / ".ssh/authorized_keys"):
            os.chown(path, 1000, 1000)
            path.chmod(0o700 if path.is_dir() else 0o600)

    @property
    def known_host(self) -> str:
        """The line of a known_hosts file for this host."""
        public = (self.folder / "upper/etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
        return f"{self.address} {public[0]} {public[1]}\n"

    def start(self, **changes: object) -> None:
        """Power on, with other hardware if told, and wait until ssh answers."""
        self.settings = replace(self.settings, **changes)  # type: ignore[arg-type]
        values = {
            "NAME": self.name,
            "BASE": str(self.base),
            "PYTHON": sys.executable,
            "CARDS": self.settings.cards,
            "CARD_ID": self.settings.card_id,
            "SWITCHES": self.settings.switches,
            "SECURE_BOOT": "enabled" if self.settings.secure_boot else "disabled",
            "SMALL_DISK": self.settings.small_disk,
            "PRIVATE_SYSCTLS": " ".join(PRIVATE_SYSCTLS),
        }
        lines = [f"{name}={shlex.quote(str(value))}\n" for name, value in values.items()]
        (self.folder / "settings").write_text("".join(lines))
        cgroup = needs.cgroup_root()
        assert cgroup, "checked by needs.require"
        command = [
            "bash",
            str(GUEST / "supervise.sh"),
            self.folder,
            self.netns,
            cgroup / self.netns,
        ]
        self.supervisor = subprocess.Popen(command, preexec_fn=die_with_parent)
        self.wait()

    def stop(self) -> None:
        """Pull the plug: no shutdown, as at a power cut."""
        if self.supervisor and self.supervisor.poll() is None:
            self.supervisor.send_signal(signal.SIGTERM)
            self.supervisor.wait(10)
        deadline = time.monotonic() + 10
        while run(["ip", "netns", "pids", self.netns]).split() and time.monotonic() < deadline:
            time.sleep(0.05)

    def wait(self, patience: float = 60) -> None:
        """Wait until the host has booted."""
        deadline = time.monotonic() + patience
        words = ""
        while time.monotonic() < deadline and self.supervisor and self.supervisor.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = self.ssh("systemctl is-system-running --wait", check=False, timeout=20)
                words = done.stdout + done.stderr
                if done.stdout.strip() in ("running", "degraded"):
                    return
            time.sleep(0.2)
        console = (self.folder / "console.log").read_text()[-2000:]
        raise AssertionError(f"{self.name} did not boot within {patience} s: {words}\n{console}")

    def ssh(
        self, command: str, *, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host as the operator, over the real ssh."""
        known = self.folder / "known_hosts"
        known.write_text(self.known_host)
        options = [
            "-o",
            f"UserKnownHostsFile={known}",
            "-o",
            "ConnectTimeout=3",
            "-o",
            "BatchMode=yes",
        ]
        line = ["ssh", "-F", "none", "-i", str(self.key), *options, f"{self.user}@{self.address}"]
        done = subprocess.run([*line, command], capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(
                f"{self.name}: {command!r}: {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def root(self, command: str, *, check: bool = True, timeout: float = 60) -> str:
        """Run a shell command on the host as root; its output."""
        quoted = shlex.quote(command)
        line = f"echo {shlex.quote(self.sudo_password)} | sudo -S -p '' sh -c {quoted}"
        return self.ssh(line, check=check, timeout=timeout).stdout.strip()

    def reboots(self) -> int:
        """How often the host rebooted itself."""
        boots = self.folder / "boots"
        return len(boots.read_text().splitlines()) if boots.exists() else 0


def die_with_parent() -> None:
    """In a child: be ended when the test run ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
