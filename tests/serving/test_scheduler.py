"""The scheduler over a real engine, which a wrapper makes dawdle where it must."""

import threading
import time

import pytest

import serving.generation
import serving.scheduler
from appliance.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    RequestCancelled,
)
from serving.scheduler import Sampling
from tests.serving.conftest import until
from tests.serving.scheduling import CONTEXT, LONG, Wrapped, alone, ask, ids, scheduling


def test_more_requests_than_slots_are_all_answered_as_if_alone(load):
    requests = [ask(prompt=range(3, 5 + 9 * n), max_tokens=15 + 5 * n) for n in range(7)]
    with scheduling(load(3)) as scheduler:
        generations = [scheduler.submit(request) for request in requests]
        answers = [ids(generation) for generation in generations]
        stats = scheduler.stats()
    assert answers == [alone(load, request) for request in requests]
    assert [len(answer) for answer in answers] == [15 + 5 * n for n in range(7)]
    assert stats["requests"]["length"] == 7
    assert stats["tokens"] == sum(map(len, answers))
    assert stats["prompt_tokens"] == sum(len(request.prompt) for request in requests)
    assert (stats["slots"], stats["active"], stats["queued"]) == (3, 0, 0)


def test_a_seed_gives_the_same_answer_whatever_shares_the_batch(load):
    request = ask(max_tokens=40, sampling=Sampling(seed=11, temperature=1.2, top_p=0.95))
    with scheduling(load(4)) as scheduler:
        others = [
            scheduler.submit(ask(prompt=range(2, 9 + n), sampling=Sampling(seed=n)))
            for n in range(6)
        ]
        answer = ids(scheduler.submit(request))
        assert all(len(ids(other)) == 20 for other in others)
        other_seed = ids(scheduler.submit(ask(max_tokens=40, sampling=Sampling(seed=12))))
    assert answer == alone(load, request)
    assert answer != other_seed


def test_the_stop_id_ends_the_answer_and_is_not_given(load):
    with scheduling(load(1)) as scheduler:
        whole = ids(scheduler.submit(ask()))
        stop = whole[7]
        generation = scheduler.submit(ask(stop_ids=frozenset({stop})))
        assert ids(generation) == whole[: whole.index(stop)]
        assert generation.finish_reason == "stop"
        first = scheduler.submit(ask(stop_ids=frozenset({whole[0]})))
        assert ids(first) == [] and first.finish_reason == "stop"


def test_an_answer_ends_where_the_context_does(load):
    with scheduling(load(1)) as scheduler:
        generation = scheduler.submit(ask(prompt=[4] * (CONTEXT - 10), max_tokens=1000))
        assert len(ids(generation)) == 10
        assert generation.finish_reason == "length"
        assert len(ids(scheduler.submit(ask(prompt=[4] * (CONTEXT - 1))))) == 1


def test_cancelling_frees_the_slot_at_the_next_step(load):
    with scheduling(load(1)) as scheduler:
        first = scheduler.submit(ask(max_tokens=LONG))
        second = scheduler.submit(ask(max_tokens=3))
        next(first)
        first.cancel()
        assert len(ids(second)) == 3
        with pytest.raises(RequestCancelled):
            ids(first)
        with pytest.raises(RequestCancelled):
            next(first)
        assert first.finish_reason is None
        assert scheduler.stats()["requests"]["cancelled"] == 1


def test_a_request_cancelled_in_the_queue_never_reaches_the_engine(load):
    engine = Wrapped(load(1))
    with scheduling(engine) as scheduler:
        first = scheduler.submit(ask(max_tokens=LONG))
        next(first)
        second = scheduler.submit(ask(prompt=[9] * 33))
        second.cancel()
        with pytest.raises(RequestCancelled):
            next(second)
        assert ids(first)
    assert ("prefill", 33) not in engine.calls


def test_a_running_request_ends_at_its_deadline(load):
    engine = Wrapped(load(1))
    engine.gate.clear()
    with scheduling(engine) as scheduler:
        generation = scheduler.submit(ask(timeout=0.1))
        next(generation)
        time.sleep(0.15)
        engine.gate.set()
        with pytest.raises(DeadlineExceeded, match="ran out of its time"):
            ids(generation)
        assert scheduler.stats()["requests"]["deadline"] == 1
        assert len(ids(scheduler.submit(ask()))) == 20


def test_time_in_the_queue_counts(load):
    engine = Wrapped(load(1))
    with scheduling(engine) as scheduler:
        first = scheduler.submit(ask(max_tokens=LONG))
        next(first)
        engine.gate.clear()
        second = scheduler.submit(ask(prompt=[9] * 33, timeout=0.05))
        time.sleep(0.1)
        engine.gate.set()
        with pytest.raises(DeadlineExceeded):
            next(second)
        assert len(ids(first)) == LONG - 1
    assert ("prefill", 33) not in engine.calls


def test_a_full_queue_refuses(load):
    engine = Wrapped(load(1))
    engine.gate.clear()
    with scheduling(engine, max_queue=1) as scheduler:
        accepted = [scheduler.submit(ask()), scheduler.submit(ask())]
        until(lambda: scheduler.stats()["active"] == 1)
        with pytest.raises(Overloaded, match="2 of 2 places") as caught:
            scheduler.submit(ask())
        assert "max_queue" in caught.value.hint
        engine.gate.set()
        assert [len(ids(generation)) for generation in accepted] == [20, 20]
        assert len(ids(scheduler.submit(ask()))) == 20
        assert scheduler.stats()["requests"]["refused"] == 1


def test_several_are_taken_together_or_not_at_all(load):
    engine = Wrapped(load(1))
    engine.gate.clear()
    with scheduling(engine, max_queue=2) as scheduler:
        first = scheduler.submit(ask())
        until(lambda: scheduler.stats()["active"] == 1)
        with pytest.raises(Overloaded, match="1 of 3 places are taken, this request needs 3"):
            scheduler.submit_all([ask()] * 3)
        with pytest.raises(InvalidRequest):
            scheduler.submit_all([ask(), ask(prompt=())])
        assert scheduler.stats()["queued"] == 0
        others = scheduler.submit_all([ask()] * 2)
        engine.gate.set()
        assert [len(ids(generation)) for generation in (first, *others)] == [20] * 3
        assert scheduler.stats()["requests"]["cancelled"] == 0


def test_a_reader_that_has_enough_has_not_gone_away(load):
    with scheduling(load(1)) as scheduler:
        generation = scheduler.submit(ask(max_tokens=LONG))
        next(generation)
        generation.stop()
        generation.cancel()
        ids(generation)
        assert generation.finish_reason == "stop"
        counts = scheduler.stats()["requests"]
        assert (counts["stop"], counts["cancelled"]) == (1, 0)


def test_without_a_queue_a_free_slot_still_takes_a_request(load):
    with scheduling(load(1), max_queue=0) as scheduler:
        assert len(ids(scheduler.submit(ask()))) == 20


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"prompt": ()}, InvalidRequest, "prompt"),
        ({"prompt": (1, 10**6)}, InvalidRequest, "prompt"),
        ({"prompt": (1, -1)}, InvalidRequest, "prompt"),
        ({"max_tokens": 0}, InvalidRequest, "max_tokens"),
        ({"timeout": 0.0}, InvalidRequest, "timeout"),
        ({"sampling": Sampling(logit_bias={10**6: 1.0})}, InvalidRequest, "logit_bias"),
        ({"prompt": (1,) * CONTEXT}, PromptTooLong, "prompt"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_the_queue(load, fields, error, param):
    with scheduling(load(1)) as scheduler:
        with pytest.raises(error) as caught:
            scheduler.submit(ask(**fields))
        assert caught.value.param == param and caught.value.hint
        assert scheduler.stats()["prompt_tokens"] == 0


def test_running_answers_go_on_between_the_pieces_of_a_long_prompt(load, monkeypatch):
    monkeypatch.setattr(serving.scheduler, "PREFILL_CHUNK", 50)
    engine = Wrapped(load(3))
    request = ask(prompt=[3, 9] * 100, max_tokens=5)
    with scheduling(engine) as scheduler:
        running = scheduler.submit(ask(max_tokens=LONG))
        next(running)
        answer = ids(scheduler.submit(request))
        running.cancel()
    start = engine.calls.index(("prefill", 50))
    assert engine.calls[start : start + 8] == [
        *[("prefill", 50), ("decode", 1)] * 3,
        ("prefill", 50),
        ("decode", 2),
    ]
    monkeypatch.undo()
    assert answer == alone(load, request)


def test_an_idle_scheduler_costs_no_time(load):
    with scheduling(load(1)) as scheduler:
        ids(scheduler.submit(ask()))
        until(lambda: scheduler.stats()["active"] == 0)
        began = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - began < 0.1


def test_many_threads_may_submit_and_cancel_at_once(load):
    expected = alone(load, ask(max_tokens=30))
    wrong = []

    def client(number):
        for turn in range(5):
            generation = scheduler.submit(ask(max_tokens=30))
            if (number + turn) % 3 == 0:
                next(generation)
                generation.cancel()
            elif ids(generation) != expected:
                wrong.append(number)

    with scheduling(load(3)) as scheduler:
        threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        until(lambda: scheduler.stats()["active"] + scheduler.stats()["queued"] == 0)
        outcomes = scheduler.stats()["requests"]
    assert not wrong
    assert sum(outcomes.values()) == 40 and outcomes["length"] >= 26
    assert outcomes["failed"] == 0
