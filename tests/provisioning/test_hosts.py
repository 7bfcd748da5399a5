"""The test hosts themselves: they say what they need, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from provisioning.targets import PROJECT
from tests.provisioning.hosts import Lab

OTHER = 78  # a network beside that of the other tests


def python(program: str, *before: str) -> subprocess.Popen[str]:
    """A Python of its own, perhaps started through another command."""
    command = [*before, sys.executable, "-c", program]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=PROJECT, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def test_a_machine_that_forbids_namespaces_is_told_what_it_lacks() -> None:
    program = "from tests.provisioning.hosts import needs; needs.require()"
    process = python(program, "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "test hosts cannot run on this machine; it lacks:" in output
    assert "namespaces: unshare" in output and "--privileged" in output


def test_a_killed_run_is_cleared_up_by_the_next(tmp_path: Path) -> None:
    process = python(
        "import pathlib, time\n"
        "from tests.provisioning.hosts import Lab\n"
        f"with Lab(pathlib.Path({str(tmp_path / 'killed')!r}), {OTHER}) as lab:\n"
        "    host = lab.add('left')\n"
        "    print(host.ssh('uname -n').stdout, flush=True)\n"
        "    time.sleep(600)\n"
    )
    assert process.stdout and process.stdout.readline().strip() == "left"
    assert left() != []
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with Lab(tmp_path / "next", OTHER):
        assert [name for name in left() if "left" in name] == []
    assert left() == []


def left() -> list[str]:
    """Namespaces, links, cgroups and processes of the lab on this machine."""
    found = []
    for command in (["ip", "netns"], ["ip", "-brief", "link"]):
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found += [line for line in lines.splitlines() if f"appl{OTHER}" in line]
        found += [line for line in lines.splitlines() if f"applbr{OTHER}" in line]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/appl{OTHER}-*")]
    time.sleep(0.2)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().replace("\0", " ")
        except OSError:
            continue
        if f"appl{OTHER}-" in words:
            found.append(words)
    return found
