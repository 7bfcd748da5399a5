"""The scheduler over an engine that fails, hangs or is closed."""

import importlib.util
import os
import signal
import threading
import time

import pytest

import serving.generation
from appliance.errors import DeadlineExceeded, EngineFailed, Overloaded
from serving.scheduler import Scheduler
from tests.serving.scheduling import LONG, Wrapped, ask, ids, scheduling


def test_a_reader_does_not_wait_for_an_engine_that_hangs(load, monkeypatch):
    monkeypatch.setattr(serving.generation, "READER_GRACE", 0.1)
    engine = Wrapped(load(1))
    engine.gate.clear()
    with scheduling(engine) as scheduler:
        generation = scheduler.submit(ask(timeout=0.1))
        next(generation)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            next(generation)
        assert time.monotonic() - began < 2
        engine.gate.set()


def test_an_engines_failure_ends_the_requests_it_met_and_the_next_is_served(load):
    engine = Wrapped(load(2))
    with scheduling(engine) as scheduler:
        expected = ids(scheduler.submit(ask()))
        met = [scheduler.submit(ask(max_tokens=LONG)) for _ in range(2)]
        for generation in met:
            next(generation)
        engine.failures = 1
        for generation in met:
            with pytest.raises(EngineFailed, match="the memory is full"):
                ids(generation)
        assert scheduler.healthy
        assert ids(scheduler.submit(ask())) == expected
        assert scheduler.stats()["requests"]["failed"] == 2


def test_repeated_failures_are_bad_health_until_a_step_succeeds(load):
    engine = Wrapped(load(1))
    engine.failures = 3
    with scheduling(engine) as scheduler:
        engine.prefill, good = lambda slot, ids: 1 / 0, engine.prefill
        for _ in range(3):
            assert scheduler.healthy
            with pytest.raises(EngineFailed):
                ids(scheduler.submit(ask()))
        assert not scheduler.healthy
        engine.prefill, engine.failures = good, 0
        assert len(ids(scheduler.submit(ask()))) == 20
        assert scheduler.healthy


def test_logits_that_are_no_numbers_fail_one_request_only(load):
    engine = Wrapped(load(2))
    with scheduling(engine) as scheduler:
        expected = ids(scheduler.submit(ask(max_tokens=LONG)))
        first = scheduler.submit(ask(max_tokens=LONG))
        second = scheduler.submit(ask(max_tokens=LONG))
        next(first), next(second)
        engine.nan_slot = 1
        with pytest.raises(EngineFailed, match="not finite"):
            ids(second)
        assert ids(first) == expected[1:]


def test_closing_lets_running_requests_end_within_the_drain(load):
    engine = Wrapped(load(1))
    scheduler = Scheduler(engine, max_queue=4)
    generations = [scheduler.submit(ask()), scheduler.submit(ask())]
    scheduler.close(drain=30)
    assert [len(ids(generation)) for generation in generations] == [20, 20]
    assert engine.closed and not scheduler.healthy
    with pytest.raises(Overloaded, match="shutting down"):
        scheduler.submit(ask())
    scheduler.close()


def test_closing_without_a_drain_ends_what_is_under_way(load):
    engine = Wrapped(load(1))
    engine.gate.clear()
    scheduler = Scheduler(engine, max_queue=4)
    running, queued = scheduler.submit(ask()), scheduler.submit(ask())
    next(running)
    threading.Timer(0.1, engine.gate.set).start()
    scheduler.close()
    for generation in (running, queued):
        with pytest.raises(EngineFailed, match="shutting down"):
            ids(generation)
    assert engine.closed


@pytest.mark.skipif(importlib.util.find_spec("fastdeploy") is None, reason="no FastDeploy wheel")
def test_a_killed_engine_fails_its_requests_and_serves_the_next(load):
    engine = load(2, "fastdeploy")
    with scheduling(engine) as scheduler:
        expected = ids(scheduler.submit(ask()))
        running = [scheduler.submit(ask(max_tokens=LONG)) for _ in range(2)]
        for generation in running:
            next(generation)
        os.kill(engine._process.pid, signal.SIGKILL)
        for generation in running:
            with pytest.raises(EngineFailed):
                ids(generation)
        assert ids(scheduler.submit(ask())) == expected
