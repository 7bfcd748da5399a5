"""The controller, on real processes: tiny stage programs, killed, stopped, failing."""

from __future__ import annotations

import os
import re
import signal
import time

import psutil
import pytest

from appliance.jobs.store import Store
from tests.jobs.conftest import DEADLINE, wait_until, workers
from tests.jobs.programs.tiny import HELD_AT

ALL = ["prepare", "train", "evaluate", "merge", "export", "verify"]


def has_ended(process):
    """Whether a process has ended; whether its new parent has reaped it is not our matter."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def runs(home):
    """From which step each run of `train` went on."""
    (log,) = home.glob("artifacts/train/*/log.txt")
    return [int(line.split()[1]) for line in log.read_text().splitlines()]


def held(home):
    """Whether `train` waits behind its third step."""
    (checkpoint,) = home.glob("artifacts/train/*.partial/scratch/step")
    return int(checkpoint.read_text()) == HELD_AT


def test_a_job_runs_and_the_second_time_every_stage_is_skipped_and_says_so(control, home):
    first = control.up()
    assert first.returncode == 0, first.stderr
    for stage in ALL:
        assert f"{stage}: done" in first.stdout
    assert control.job.status == "succeeded"
    bundle = (home / "bundles" / "tiny").resolve()
    assert (bundle / "manifest.json").exists() and bundle.parent.name == "verify"
    maker = control.job.id
    second = control.up()
    assert second.returncode == 0, second.stderr
    for stage in ALL:
        assert f"{stage}: skipped: done by {maker}" in second.stdout
    assert all(row.skipped for row in control.stages().values() if row.name != "deploy")


def test_a_changed_data_file_is_prepared_anew_and_equal_content_goes_no_further(control):
    control.up()
    control.data.write_text('{"more": "rows"}\n')
    second = control.up()
    assert "prepare: done" in second.stdout
    assert "train: skipped" in second.stdout, "the tiny prepare writes the same content"


def test_an_artifact_with_a_file_missing_is_made_anew(control, home):
    control.up()
    (made,) = home.glob("artifacts/merge/*/merge.txt")
    made.unlink()
    second = control.up()
    assert "merge: done" in second.stdout and "train: skipped" in second.stdout
    assert "is made anew" in second.stdout
    assert made.read_text() == "made by merge\n"


def test_the_controller_killed_while_it_trains_ends_the_worker_and_resume_goes_on(control, home):
    process = control.start_up(TINY_HOLD="1")
    wait_until(lambda: held(home))
    (worker, *_) = workers(control.job, home)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: has_ended(worker))
    assert control.job.status == "running", "nobody wrote that it ended"
    done = control.run("resume", "latest")
    assert done.returncode == 0, done.stderr
    assert "prepare: skipped: done before" in done.stdout
    assert runs(home) == [0, HELD_AT]


def test_up_goes_on_with_the_job_that_was_interrupted(control, home):
    process = control.start_up(TINY_HOLD="1")
    wait_until(lambda: held(home))
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = control.job.id
    done = control.up()
    assert done.returncode == 0, done.stderr
    assert control.job.id == before
    assert f"{before} has the same recipe" in done.stdout
    assert runs(home) == [0, HELD_AT]


def test_a_worker_that_outlived_its_lifeline_is_ended_by_resume(control, home):
    """Stopped, a worker cannot see its lifeline close; the next controller must end it."""
    process = control.start_up(TINY_HOLD="1")
    wait_until(lambda: held(home))
    (worker, *_) = workers(control.job, home)
    worker.suspend()
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    assert worker.is_running()
    done = control.run("resume", "latest")
    assert done.returncode == 0, done.stderr
    assert "ended 1 process(es) that an earlier controller left behind" in done.stdout
    assert has_ended(worker)
    assert runs(home) == [0, HELD_AT]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_cleanly_and_says_how_to_resume(control, home, number):
    process = control.start_up(TINY_HOLD="1")
    wait_until(lambda: held(home))
    process.send_signal(number)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    job = control.job
    assert job.status == "interrupted"
    assert f"appliance resume {job.id}" in err
    assert "Traceback" not in err
    assert err.splitlines()[0] == f"stopped by {'Ctrl-C' if number == 2 else number.name}"
    assert workers(job, home) == []
    assert control.stages()["train"].status == "interrupted"


def test_a_second_ctrl_c_does_not_wait_for_a_worker_that_does_not_hear(control, home):
    process = control.start_up(TINY_HOLD="1", TINY_TROUBLE="train:deaf")
    wait_until(lambda: held(home))
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None, "the first one waits"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 130 and time.monotonic() - began < 10
    assert workers(control.job, home) == []


def test_a_killed_worker_fails_the_job_and_resume_goes_on(control, home):
    process = control.start_up(TINY_HOLD="1")
    wait_until(lambda: held(home))
    (worker, *_) = workers(control.job, home)
    worker.kill()
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert "train was killed (SIGKILL)" in err and "memory" in err
    assert control.job.status == "failed"
    assert control.stages()["train"].exit_code == -9
    assert control.run("resume", control.job.id).returncode == 0
    assert runs(home) == [0, HELD_AT]


def test_a_users_mistake_is_shown_as_it_stands(control):
    done = control.up(TINY_TROUBLE="prepare:data")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "error: prepare: rows.jsonl:3: no messages"
    assert "Mend line 3." in done.stderr and "output/prepare.txt" in done.stderr
    assert "with a changed recipe, `appliance up` does." in done.stderr
    assert "Traceback" not in done.stderr
    assert control.job.reason == "prepare: rows.jsonl:3: no messages"


def test_a_defect_in_a_stage_shows_its_cause_and_where_the_rest_is(control):
    done = control.up(TINY_TROUBLE="merge:crash")
    assert done.returncode == 70
    assert "ZeroDivisionError: the tiny stage divides by nothing" in done.stderr
    assert "Traceback" not in done.stderr
    path = re.search(r"Its output: (\S+)", done.stderr).group(1)
    with open(path) as output:
        assert "Traceback" in output.read()
    again = control.run("resume", "latest")
    assert again.returncode == 0, again.stderr
    assert "export: done" in again.stdout and "train: skipped" in again.stdout


def test_a_stage_without_its_artifact_has_failed(control):
    done = control.up(TINY_TROUBLE="export:silent")
    assert done.returncode == 1
    assert "export ended without its artifact" in done.stderr


def test_processes_that_leave_the_workers_group_are_ended_too(control, home):
    done = control.up(TINY_TROUBLE="train:stray")
    assert done.returncode == 0, done.stderr
    assert workers(control.job, home) == []


def test_two_controllers_of_one_recipe_do_not_both_run(control, home):
    first = control.start_up(TINY_HOLD="1")
    wait_until(lambda: held(home))
    second = control.up()
    assert second.returncode == 2
    assert f"{control.job.id} is running already" in second.stderr
    assert f"appliance logs -f {control.job.id}" in second.stderr
    (home / "go").touch()
    assert first.wait(DEADLINE) == 0
    assert runs(home) == [0]


def test_a_controller_that_lost_its_lease_ends_its_worker_and_stops(control, home):
    process = control.start_up(TINY_HOLD="1")
    wait_until(lambda: held(home))
    os.kill(process.pid, signal.SIGSTOP)
    store = Store()
    with store._transaction() as db:  # what the clock would do within 15 seconds
        db.execute("UPDATE jobs SET lease_expires = 0")
    store.reap()
    assert store.job("latest").status == "interrupted"
    os.kill(process.pid, signal.SIGCONT)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2
    assert f"no longer holds {control.job.id}" in err
    assert workers(control.job, home) == []
    assert control.job.status == "interrupted", "the loser wrote nothing"
    store.close()


def test_every_line_of_the_log_has_its_time(control, home):
    control.up()
    lines = (home / "jobs" / control.job.id / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ ", line) for line in lines)
    text = "\n".join(lines)
    assert "train: step 6/6 · loss 0.3333 · 99 tokens/s" in text
    assert "train | train works as" in text, "what the program prints is there too"


def test_a_reader_that_goes_away_does_not_stop_the_job(control, home):
    process = control.start_up(TINY_HOLD="1")
    wait_until(lambda: held(home))
    process.stdout.close()
    (home / "go").touch()
    assert process.wait(DEADLINE) == 0
    assert control.job.status == "succeeded"
    log = (home / "jobs" / control.job.id / "log.txt").read_text()
    assert "verify: done" in log
    process.stdout = None
