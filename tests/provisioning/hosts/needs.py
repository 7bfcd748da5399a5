"""What test hosts ask of the machine; says what is missing instead of skipping."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

TOOLS = {
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "gpg": "gnupg",
    "apt-ftparchive": "apt-utils",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}


class HostsImpossible(AssertionError):
    """This machine cannot carry test hosts; the message lists all that is missing."""


def require() -> None:
    """Raise HostsImpossible unless hosts can be booted here."""
    missing = []
    if os.geteuid() != 0:
        missing.append("root: run the tests as root (namespaces, overlay mounts, debootstrap)")
    tools = [tool for tool in TOOLS if not shutil.which(tool)]
    if tools:
        packages = sorted({TOOLS[tool] for tool in tools})
        missing.append(f"tools {', '.join(tools)}: apt-get install {' '.join(packages)}")
    missing += lacks_namespaces() if not missing else []
    if missing:
        lines = "\n  - ".join(missing)
        raise HostsImpossible(f"test hosts cannot run on this machine; it lacks:\n  - {lines}")


def lacks_namespaces() -> list[str]:
    """What the kernel or a container around us refuses."""
    missing = []
    flags = ["--mount", "--uts", "--ipc", "--pid", "--cgroup", "--net", "--fork"]
    done = subprocess.run(["unshare", *flags, "true"], capture_output=True, text=True)
    if done.returncode:
        missing.append(
            f"namespaces: {done.stderr.strip()} (in a container: give it --privileged, or run on "
            "a machine of its own)"
        )
    if "overlay" not in Path("/proc/filesystems").read_text():
        missing.append("overlayfs: modprobe overlay")
    if cgroup_root() is None:
        missing.append("cgroup v2: mount -t cgroup2 none /sys/fs/cgroup/unified")
    elif not os.access(str(cgroup_root()), os.W_OK):
        missing.append(f"a writable {cgroup_root()}")
    return missing


def cgroup_root() -> Path | None:
    """Where cgroup v2 is mounted, if it is."""
    for line in Path("/proc/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    return None
