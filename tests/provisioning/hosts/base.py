"""The root folder that all test hosts share: debootstrapped once, kept in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import IO

from tests.provisioning.hosts.needs import HostsImpossible

SUITE = "bookworm"
PACKAGES = (
    "systemd,systemd-sysv,dbus,openssh-server,python3,sudo,iproute2,ca-certificates,python3-apt,"
    "procps,kmod,pciutils,libpam-systemd,initramfs-tools-core"
)
GUEST = Path(__file__).parent / "guest"


def cache() -> Path:
    """The folder, outside the repository, that outlives test runs."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "llm-appliance" / "test-hosts"


def take_base() -> tuple[Path, IO[str]]:
    """A finished base, made (about 80 s) where there is none of this kind yet.

    Nobody removes it while the file that comes with it is open.
    """
    recipe = [SUITE, PACKAGES, *(path.read_text() for path in sorted((GUEST / "bin").iterdir()))]
    recipe.append(Path(__file__).read_text())
    key = hashlib.sha256("\n".join(recipe).encode()).hexdigest()[:16]
    done = cache() / f"base-{key}"
    cache().mkdir(parents=True, exist_ok=True)
    held = (cache() / "lock-base").open("w")
    fcntl.flock(held, fcntl.LOCK_SH)
    if not done.is_dir():
        fcntl.flock(held, fcntl.LOCK_EX)
        if not done.is_dir():
            make(done, cache() / f"making-{key}")
        fcntl.flock(held, fcntl.LOCK_SH)
    return done, held


def make(done: Path, making: Path) -> None:
    """Make the base under a name of its own, then give it its own; older ones go."""
    for old in [*cache().glob("base-*"), *cache().glob("making-*")]:
        shutil.rmtree(old)
    debootstrap(making)
    finish(making)
    making.rename(done)


def debootstrap(root: Path) -> None:
    """Put a bare Debian under `root`, from the mirror that this machine's apt uses."""
    plain = (
        cache() / f"debootstrap-{SUITE}-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:16]}.tar"
    )
    plain.parent.mkdir(parents=True, exist_ok=True)
    root.mkdir()
    if not plain.exists():
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root)]
        run([*command, mirror()], timeout=900, env=os.environ | apt_proxy())
        shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
        run(["tar", "-C", str(root), "-cf", f"{plain}.part", "."], timeout=300)
        os.rename(f"{plain}.part", plain)
    else:
        run(["tar", "-C", str(root), "-xf", str(plain)], timeout=300)


def mirror() -> str:
    """The Debian mirror of this machine's own apt configuration."""
    listed = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"])
    for line in listed.splitlines():
        uri, release, component = line.rsplit(" ", 2)
        if (release, component) == (SUITE, "main"):
            return uri
    raise HostsImpossible(
        f"test hosts need a Debian mirror with {SUITE}: this machine's apt sources name none"
    )


def apt_proxy() -> dict[str, str]:
    """The proxy of apt's configuration, as the variable that debootstrap reads."""
    shown = run(["apt-config", "shell", "proxy", "Acquire::http::Proxy"]).strip()
    return {"http_proxy": shown.removeprefix("proxy=").strip("'")} if shown else {}


def finish(root: Path) -> None:
    """The operator's account, the commands that stand for hardware, and units kept harmless."""
    run(["chroot", str(root), "useradd", "-m", "-s", "/bin/bash", "ops"])
    run(["chroot", str(root), "chpasswd"], input="ops:correct horse\n")
    (root / "etc/sudoers.d/ops").write_text("ops ALL=(ALL) ALL\n")
    (root / "etc/sudoers.d/ops").chmod(0o440)
    for command in (GUEST / "bin").iterdir():
        target = root / "usr/local/sbin" / command.name
        shutil.copy(command, target)
        target.chmod(0o755)
    drop_ins = {
        # The host's clock is the machine's clock: chrony runs, but must not steer it.
        "chrony": "[Unit]\nConditionCapability=\n[Service]\nExecStart=\n"
        "ExecStart=!/usr/sbin/chronyd -x -F 1\n",
        # /proc/sys is read-only but for private copies, which this unit is to write.
        "systemd-sysctl": "[Unit]\nConditionPathIsReadWrite=\n",
    }
    for unit, text in drop_ins.items():
        folder = root / f"etc/systemd/system/{unit}.service.d"
        folder.mkdir(parents=True)
        (folder / "test-host.conf").write_text(text)
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer"):
        (root / "etc/systemd/system" / timer).symlink_to("/dev/null")
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()


def run(command: list[str], *, timeout: float = 60, **options: object) -> str:
    """Run a command; its output when it ends well, an error that shows its words when not."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
    if done.returncode:
        tail = (done.stdout + done.stderr)[-2000:]
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{tail}")
    return done.stdout
