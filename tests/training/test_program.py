"""What every stage program does: exit codes, messages, signals, and no orphans."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from appliance.jobs.artifacts import Stage

PROGRAM = """
import subprocess, sys, time
from pathlib import Path
from appliance.errors import DataError, StageError
from appliance.training.program import run_stage

def work(stage):
    what = stage.spec["what"]
    if what == "data":
        raise DataError("rows.jsonl:3: not JSON", hint="Mend the line.")
    if what == "stage":
        raise StageError("loss is nan")
    if what == "bug":
        raise KeyError("oops")
    if what == "wait":
        silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], **silent)
        (stage.output / "pid").write_text(str(child.pid))
        print("ready", flush=True)
        time.sleep(60)
    (stage.output / "made").write_text("yes")
    stage.publish()

run_stage(work)
"""


def write(folder, what):
    (folder / "program.py").write_text(PROGRAM)
    final = folder / "artifacts" / "prepare" / "fingerprint"
    stage = Stage("prepare", "job", {"what": what}, {}, final, folder / "events.jsonl")
    stage.write(folder / "stage.json")
    return stage


def command(folder):
    return [sys.executable, str(folder / "program.py"), str(folder / "stage.json")]


def run(folder, what):
    write(folder, what)
    return subprocess.run(command(folder), capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("data", 2, "error: rows.jsonl:3: not JSON\nMend the line.\n"),
        ("stage", 1, "error: loss is nan\n"),
    ],
)
def test_errors_end_with_their_code_and_no_traceback(tmp_path, what, code, message):
    done = run(tmp_path, what)
    assert (done.returncode, done.stderr) == (code, message)


def test_a_defect_ends_with_70_and_a_traceback(tmp_path):
    done = run(tmp_path, "bug")
    assert done.returncode == 70
    assert "Traceback" in done.stderr and "KeyError: 'oops'" in done.stderr


def test_a_stage_that_ends_well_is_published(tmp_path):
    done = run(tmp_path, "publish")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "artifacts/prepare/fingerprint/made").read_text() == "yes"


def test_a_second_process_on_the_same_artifact_is_refused(tmp_path):
    stage = write(tmp_path, "publish")
    with stage.open():
        done = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "another process is working on prepare" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_with_130_and_says_how_to_go_on(tmp_path, number):
    write(tmp_path, "wait")
    with started(tmp_path) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "stopped by " + number.name in errors and "appliance resume" in errors


def test_the_controllers_death_ends_the_program_and_its_children(tmp_path):
    stage = write(tmp_path, "wait")
    with started(tmp_path, APPLIANCE_LIFELINE="1") as process:
        child = int((stage.output / "pid").read_text())
        process.stdin.close()
        process.stdin = None
        process.communicate(timeout=20)
    assert process.returncode == 130
    wait_until_gone(child)


def test_without_the_lifeline_the_end_of_stdin_means_nothing(tmp_path):
    write(tmp_path, "wait")
    with started(tmp_path) as process:
        process.stdin.close()
        process.stdin = None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)


class started:
    """The program in a group of its own, once it works; its whole group is killed at the end."""

    def __init__(self, folder, **environment):
        self.process = subprocess.Popen(
            command(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **environment},
        )

    def __enter__(self):
        assert self.process.stdout.readline() == "ready\n"
        return self.process

    def __exit__(self, *error):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def wait_until_gone(pid):
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} still runs")
