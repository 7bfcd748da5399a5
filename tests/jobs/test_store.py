"""The store's guards: one controller a job, in real processes; states; leases that run out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from appliance.errors import JobError
from appliance.jobs import processes
from appliance.jobs.store import LeaseLost, Store

STAGES = ["prepare", "train"]


@pytest.fixture
def store(home):
    made = Store()
    yield made
    made.close()


@pytest.fixture
def job(store):
    return store.submit("demo", "{}", "digest", STAGES)[0].id


def try_to_claim(path, job, gate, answers):
    store = Store(path)
    gate.wait()
    try:
        store.claim(job)
        answers.put(os.getpid())
        time.sleep(0.5)
    except JobError:
        answers.put(None)


def test_of_many_controllers_one_gets_the_job(store, job):
    context = multiprocessing.get_context("spawn")
    gate, answers = context.Barrier(6), context.Queue()
    rivals = [
        context.Process(target=try_to_claim, args=(store.path, job, gate, answers))
        for _ in range(6)
    ]
    for rival in rivals:
        rival.start()
    winners = [answer for answer in (answers.get(timeout=60) for _ in rivals) if answer]
    assert len(winners) == 1
    assert store.job(job).lease_pid == winners[0]
    for rival in rivals:
        rival.join(10)


def submit_at_once(path, gate, answers):
    store = Store(path)
    gate.wait()
    answers.put(store.submit("demo", "{}", "digest", STAGES)[0].id)


def test_a_recipe_submitted_many_times_at_once_is_one_job(home, store):
    context = multiprocessing.get_context("spawn")
    gate, answers = context.Barrier(6), context.Queue()
    rivals = [
        context.Process(target=submit_at_once, args=(store.path, gate, answers)) for _ in range(6)
    ]
    for rival in rivals:
        rival.start()
    found = {answers.get(timeout=60) for _ in rivals}
    for rival in rivals:
        rival.join(10)
    assert found == {store.job("latest").id} and len(store.jobs()) == 1


def open_store(path, gate):
    gate.wait()
    Store(path).close()


def test_a_new_file_may_be_opened_by_many_at_once(home):
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(4)
    openers = [
        context.Process(target=open_store, args=(home / "new.sqlite", gate)) for _ in range(4)
    ]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(60)
    assert [opener.exitcode for opener in openers] == [0] * 4


def test_a_held_job_is_refused_to_others(store, job):
    store.claim(job)
    with pytest.raises(JobError, match="is running already"):
        store.claim(job)
    with pytest.raises(JobError, match="is running already"):
        store.requeue(job, None)


def test_a_lease_that_ran_out_is_taken_over_and_its_holder_writes_nothing_more(home, job):
    slow = Store(lease_seconds=0.3)
    late = slow.claim(job)
    slow.reap()
    assert slow.job(job).status == "running"
    time.sleep(0.4)
    slow.reap()
    assert slow.job(job).status == "interrupted"
    slow.requeue(job, None)
    held = slow.claim(job)
    for write in (
        lambda: slow.renew(late),
        lambda: slow.finish(late, "failed"),
        lambda: slow.change_stage(late, "train", "failed"),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert slow.job(job).status == "running"
    slow.change_stage(held, "train", "done")
    slow.finish(held, "succeeded")
    slow.close()


def test_a_renewed_lease_does_not_run_out(home, job):
    store = Store(lease_seconds=0.4)
    lease = store.claim(job)
    for _ in range(4):
        time.sleep(0.2)
        assert store.renew(lease) is False
        store.reap()
    assert store.job(job).status == "running"
    store.close()


CLAIM = "import sys; from appliance.jobs.store import Store; Store().claim(sys.argv[1]); input()"


def test_a_dead_controller_is_seen_before_its_lease_runs_out(store, job):
    holder = subprocess.Popen([sys.executable, "-c", CLAIM, job], stdin=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while store.job(job).status != "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    store.reap()
    assert store.job(job).status == "running"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    store.reap()
    assert store.job(job).status == "interrupted"
    assert store.job(job).lease_expires > time.time(), "it did not wait for the lease"


def test_a_number_used_again_is_not_the_same_process():
    mine = processes.mark(os.getpid())
    assert processes.lives(os.getpid(), mine)
    world, _, started = mine.rpartition("/")
    assert not processes.lives(os.getpid(), f"{world}/{int(started) - 1}")
    assert not processes.surely_gone(os.getpid(), "another-boot/pid:[1]/5"), "one cannot know"


@pytest.mark.parametrize("end", ["succeeded", "cancelled"])
def test_an_ended_job_stays_ended(store, job, end):
    store.finish(store.claim(job), end)
    for verb in (lambda: store.requeue(job, None), lambda: store.claim(job)):
        with pytest.raises(JobError, match=end):
            verb()
    with pytest.raises(JobError, match=end):
        store.cancel(job)


def test_states_that_resume_allows(store, job):
    for end in ("failed", "interrupted"):
        store.finish(store.claim(job), end, "because")
        assert store.job(job).reason == "because"
        store.requeue(job, "train")
        row = store.job(job)
        assert (row.status, row.reason, row.until) == ("queued", "", "train")


def test_a_failed_job_leaves_no_stage_running(store, job):
    lease = store.claim(job)
    store.change_stage(lease, "prepare", "running", pid=1, started=time.time())
    store.finish(lease, "failed")
    assert [stage.status for stage in store.stages(job)] == ["failed", "waiting"]


def test_cancel_asks_a_live_controller_and_ends_other_jobs_itself(store, job):
    lease = store.claim(job)
    assert store.cancel(job) is False
    assert store.renew(lease) is True
    store.finish(lease, "interrupted")
    assert store.cancel(job) is True
    assert store.job(job).status == "cancelled"


def test_jobs_are_named_by_the_start_of_their_id(store):
    first = store.submit("alpha", "{}", "1", STAGES)[0]
    second = store.submit("alpha", "{}", "2", STAGES)[0]
    other = store.submit("beta", "{}", "3", STAGES)[0]
    assert store.job("beta").id == other.id == store.job("latest").id
    assert store.job(first.id).id == first.id
    with pytest.raises(JobError, match="any of 2 jobs") as error:
        store.job("alpha")
    assert first.id in error.value.hint and second.id in error.value.hint
    with pytest.raises(JobError, match="no job is called 'gamma'"):
        store.job("gamma")


def test_a_store_of_a_newer_version_is_refused(store):
    with sqlite3.connect(store.path) as db:
        db.execute("INSERT INTO migrations VALUES ('from_the_future', 0)")
    with pytest.raises(JobError, match="newer version"):
        Store(store.path)


def test_opening_again_keeps_what_is_there(store, job):
    again = Store(store.path)
    assert again.job(job).id == job
    again.close()
