"""ps, logs, cancel, down and crash reports, as a user types them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from appliance import cli
from tests.jobs.conftest import wait_until, workers
from tests.jobs.test_controller import at_step


def appliance(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "appliance.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "100", **environment},
    )


def test_cancel_ends_a_running_job_and_its_worker(control, home):
    process = control.start_up(TINY_STEPS="400")
    wait_until(lambda: at_step(home, 3))
    job = control.job
    done = appliance("cancel", job.id)
    assert done.returncode == 0, done.stderr
    assert "is cancelled" in done.stdout
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert control.job.status == "cancelled"
    assert workers(job, home) == []
    refused = appliance("resume", job.id)
    assert refused.returncode == 2 and "is cancelled and cannot be resumed" in refused.stderr


def test_cancel_ends_what_a_dead_controller_left(control, home):
    process = control.start_up(TINY_STEPS="400")
    wait_until(lambda: at_step(home, 3))
    (worker, *_) = workers(control.job, home)
    worker.suspend()
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = appliance("cancel", "latest")
    assert done.returncode == 0, done.stderr
    assert control.job.status == "cancelled"
    assert workers(control.job, home) == []


def test_ps_shows_a_job_whose_controller_died_as_interrupted(control, home):
    assert "No job is unfinished" in appliance("ps").stdout
    process = control.start_up(TINY_STEPS="400")
    wait_until(lambda: at_step(home, 3))
    shown = appliance("ps").stdout
    assert control.job.id in shown and "running" in shown and "train (2/7)" in shown
    process.send_signal(signal.SIGKILL)
    process.wait()
    shown = appliance("ps").stdout
    assert "interrupted" in shown and "its controller is gone" in shown


def test_logs_follow_until_the_job_ends(control, home):
    process = control.start_up(TINY_STEPS="40")
    wait_until(lambda: at_step(home, 3))
    followed = appliance("logs", "-f", "tiny")
    assert followed.returncode == 0, followed.stderr
    assert process.wait(10) == 0, "it had ended, or was about to"
    assert "train: started" in followed.stdout
    assert followed.stdout.splitlines()[-1].endswith(f"{control.job.id}: succeeded")
    assert appliance("logs", "latest").stdout == followed.stdout


def test_logs_of_a_failed_job_say_why(control):
    control.up(TINY_TROUBLE="train:data")
    shown = appliance("logs", "-f", "latest")
    assert "is failed: train: rows.jsonl:3: no messages" in shown.stderr


def test_unknown_names_are_a_users_mistake(home):
    for verb in ("resume", "logs", "cancel"):
        done = appliance(verb, "nothing")
        assert done.returncode == 2, verb
        assert "no job is called 'nothing'" in done.stderr
    done = appliance("down", "nothing")
    assert done.returncode == 2 and "no deployment is called 'nothing'" in done.stderr


def test_a_defect_saves_a_report(home):
    (home / "jobs.sqlite").write_bytes(b"this is no database, and long enough to be seen as none")
    done = appliance("ps")
    assert done.returncode == 70
    assert "DatabaseError" in done.stderr and "Traceback" not in done.stderr
    (report,) = (home / "crashes").iterdir()
    assert str(report) in done.stderr.replace("\n", "")
    text = report.read_text()
    assert "Traceback" in text and "command" in text and "python" in text


def test_a_home_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    done = appliance("ps", APPLIANCE_HOME=str(tmp_path / "file" / "home"))
    assert done.returncode == 2 and "cannot be made" in done.stderr
    assert "APPLIANCE_HOME" in done.stderr


def test_help_is_quick():
    began = time.monotonic()
    assert appliance("--help").returncode == 0
    assert time.monotonic() - began < 2.0


def test_a_full_disk_is_no_defect(home, monkeypatch, capsys):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "jobs.sqlite")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    assert "the disk is full" in capsys.readouterr().err
    assert not (home / "crashes").exists()
