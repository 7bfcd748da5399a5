"""The engine on a real exported graph, through each runtime that can run it."""

import importlib.util
import os
import signal
import threading
import time
from contextlib import closing

import numpy as np
import pytest

from appliance.bundle.read import open_bundle
from appliance.errors import BundleError, MachineError
from serving.engine import load_engine
from serving.engine.cache import SlotCache, bucket

NO_WHEEL = importlib.util.find_spec("fastdeploy") is None
RUNTIMES = [
    ("onnxruntime", "onnxruntime"),
    *(
        pytest.param(
            "fastdeploy", backend, marks=pytest.mark.skipif(NO_WHEEL, reason="no FastDeploy wheel")
        )
        for backend in ("onnxruntime", "paddle", "openvino")
    ),
]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return open_bundle(tiny_bundle)


def load(bundle, engine="onnxruntime", backend="onnxruntime", slots=4, max_length=256):
    return closing(
        load_engine(
            bundle, engine=engine, backend=backend, slots=slots, max_length=max_length, threads=1
        )
    )


def prompt(bundle, length, seed=0):
    ids = np.random.default_rng(seed).integers(0, bundle.graph.vocab_size, length)
    return [int(token) for token in ids]


class Alone:
    """What the model says of a whole sequence, computed without a cache."""

    def __init__(self, engine):
        self.engine = engine

    def __call__(self, ids):
        self.engine.release(0)
        return self.engine.prefill(0, ids).copy()


@pytest.fixture(scope="module")
def alone(bundle):
    with load(bundle, slots=1) as engine:
        yield Alone(engine)


@pytest.mark.parametrize(("runtime", "backend"), RUNTIMES)
def test_decoding_with_a_cache_equals_computing_the_whole_sequence(bundle, alone, runtime, backend):
    """Four slots, joining and leaving at different steps, across two bucket boundaries."""
    with load(bundle, runtime, backend) as engine:
        sequences, largest = {}, 0.0

        def note(slot, logits):
            nonlocal largest
            expected = alone(sequences[slot])
            largest = max(largest, float(np.abs(logits - expected).max()))
            assert logits.argmax() == expected.argmax(), f"slot {slot}: another greedy token"
            sequences[slot].append(int(logits.argmax()))

        for step in range(80):
            if step in (0, 3, 20, 45):
                slot = next(s for s in range(4) if s not in sequences)
                sequences[slot] = prompt(bundle, 5 + 2 * step, seed=step)
                note(slot, engine.prefill(slot, sequences[slot]))
            if step == 40:
                engine.release(1)
                del sequences[1]
            answers = engine.decode({slot: ids[-1] for slot, ids in sequences.items()})
            for slot, logits in answers.items():
                note(slot, logits)
        assert sorted(len(ids) for ids in sequences.values()) == [86, 106, 131]
        assert largest < TOLERANCE


@pytest.mark.parametrize(("runtime", "backend"), RUNTIMES[:2])
def test_a_slot_may_sit_out_a_step(bundle, alone, runtime, backend):
    """The scheduler fills one slot piece by piece while others decode."""
    with load(bundle, runtime, backend) as engine:
        long = prompt(bundle, 150, seed=1)
        short = {2: prompt(bundle, 4, seed=2), 0: prompt(bundle, 9, seed=3)}
        engine.prefill(1, long[:70])
        for slot, ids in short.items():
            ids.append(int(engine.prefill(slot, ids).argmax()))
        for start in range(70, 150, 20):
            for slot, logits in engine.decode({s: ids[-1] for s, ids in short.items()}).items():
                np.testing.assert_allclose(logits, alone(short[slot]), atol=TOLERANCE)
                short[slot].append(int(logits.argmax()))
            last = engine.prefill(1, long[start : start + 20])
        np.testing.assert_allclose(last, alone(long), atol=TOLERANCE)
        logits = engine.decode({1: 7})[1]
        np.testing.assert_allclose(logits, alone([*long, 7]), atol=TOLERANCE)


def test_a_reused_slot_holds_nothing_of_the_last_sequence(bundle):
    ids = prompt(bundle, 6, seed=4)
    with load(bundle, slots=2) as used, load(bundle, slots=2) as fresh:
        for slot in (0, 1):
            used.prefill(slot, prompt(bundle, 200, seed=slot))
        used.release(0)
        used.prefill(0, ids)
        used.release(1)
        fresh.prefill(0, ids)
        for token in (1, 2, 3):
            expected = fresh.decode({0: token})[0].copy()
            np.testing.assert_array_equal(used.decode({0: token})[0], expected)


def test_what_a_broken_sequence_leaves_is_wiped():
    """NaN × 0 is NaN: a masked leftover would spoil the next sequence."""
    cache = SlotCache(layers=1, kv_heads=1, head_dim=2, slots=2, max_length=64)
    cache.occupy(0), cache.occupy(1)
    cache.append(0, np.full((2, 1, 5, 2), np.nan, np.float32))
    cache.append(1, np.ones((2, 1, 3, 2), np.float32))
    cache.free(0)
    rows = np.stack(list(cache.views(0, 2).values()))
    assert rows[:, 0, :, :3].min() == 1 and not rows[:, 0, :, 3:].any()
    assert not rows[:, 1].any()


def test_the_cache_grows_with_the_longest_sequence_and_shrinks_after_it():
    cache = SlotCache(layers=1, kv_heads=1, head_dim=2, slots=2, max_length=1000)
    cache.occupy(0), cache.occupy(1)
    cache.append(0, np.full((2, 1, 40, 2), 1, np.float32))
    cache.reserve(600)
    assert cache.capacity == 640
    cache.append(1, np.full((2, 1, 600, 2), 2, np.float32))
    cache.reserve(0)
    assert cache.capacity == 640
    cache.free(1)
    cache.reserve(41)
    assert cache.capacity == 64
    assert np.stack(list(cache.views(0, 1).values()))[:, 0, 0, :40].min() == 1


@pytest.mark.parametrize("limit", [16, 100, 4096])
def test_buckets_hold_what_they_are_asked_for_and_little_more(limit):
    capacities = [bucket(length, limit) for length in range(limit + 1)]
    assert capacities == sorted(capacities)
    for length, capacity in enumerate(capacities):
        assert length <= capacity <= limit
        assert capacity - length <= max(64, length / 4)


@pytest.mark.parametrize(("runtime", "backend"), RUNTIMES[:2])
def test_a_sequence_ends_at_the_context(bundle, alone, runtime, backend):
    ids = prompt(bundle, 40, seed=5)
    with load(bundle, runtime, backend, slots=1, max_length=40) as engine:
        with pytest.raises(ValueError, match="fit into 40"):
            engine.prefill(0, [*ids, 1])
        engine.prefill(0, ids[:39])
        np.testing.assert_allclose(engine.decode({0: ids[39]})[0], alone(ids), atol=TOLERANCE)
        with pytest.raises(ValueError, match="full"):
            engine.decode({0: 1})
        engine.release(0)
        with pytest.raises(ValueError, match="empty"):
            engine.decode({0: 1})
        np.testing.assert_allclose(engine.prefill(0, ids), alone(ids), atol=TOLERANCE)


@pytest.mark.skipif(NO_WHEEL, reason="no FastDeploy wheel")
def test_a_failed_step_is_an_error_not_the_last_steps_answer(bundle, alone):
    """FastDeploy's zero_copy_infer keeps silent where a step fails; we must not."""
    with load(bundle, "fastdeploy") as engine:
        engine.prefill(0, [1, 2, 3])
        engine.decode({0: 4})
        with pytest.raises(RuntimeError, match="Failed to inference"):
            engine.decode({0: bundle.graph.vocab_size + 5})
        np.testing.assert_allclose(engine.decode({0: 5})[0], alone([1, 2, 3, 4, 5]), atol=TOLERANCE)


@pytest.mark.skipif(NO_WHEEL, reason="no FastDeploy wheel")
def test_a_killed_worker_loses_its_sequences_and_is_started_again(bundle, alone, caplog):
    with load(bundle, "fastdeploy") as engine:
        engine.prefill(0, [1, 2, 3])
        engine.prefill(1, [1, 2])
        os.kill(engine._process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"ended|lost"):
            engine.decode({0: 4})
        with pytest.raises(RuntimeError, match="lost"):
            engine.prefill(1, [3])
        np.testing.assert_allclose(engine.prefill(2, [7, 8]), alone([7, 8]), atol=TOLERANCE)
        engine.release(0)
        np.testing.assert_allclose(engine.prefill(0, [9, 8]), alone([9, 8]), atol=TOLERANCE)
    assert caplog.text.count("starting the engine's process again: it ended with -9") == 1


@pytest.mark.skipif(NO_WHEEL, reason="no FastDeploy wheel")
def test_a_worker_ends_with_its_engine(bundle):
    with load(bundle, "fastdeploy") as engine:
        pid = engine._process.pid
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("the worker is still there")


@pytest.mark.skipif(NO_WHEEL, reason="no FastDeploy wheel")
def test_ctrl_c_to_the_whole_group_leaves_the_worker_to_its_parent(bundle, alone):
    with load(bundle, "fastdeploy") as engine:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(engine._process.pid, number)
        np.testing.assert_allclose(engine.prefill(0, [7, 8]), alone([7, 8]), atol=TOLERANCE)


@pytest.mark.parametrize(("runtime", "backend"), RUNTIMES[:2])
def test_other_threads_go_on_while_the_engine_works(long_bundle, runtime, backend):
    """FastDeploy holds Python's lock through a step: in one process the doors would stand still."""
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.002):
            ticks.append(time.monotonic())

    opened = open_bundle(long_bundle)
    with load(opened, runtime, backend, slots=1, max_length=4000) as engine:
        thread = threading.Thread(target=tick)
        thread.start()
        began = time.monotonic()
        engine.prefill(0, prompt(opened, 3500))
        took = time.monotonic() - began
        done.set()
        thread.join()
    gaps = np.diff([began, *(t for t in ticks if began < t < began + took), began + took])
    assert took > 0.1 and gaps.max() < took / 2


def test_a_missing_fastdeploy_names_the_engine_to_take_instead(bundle, tmp_path, monkeypatch):
    (tmp_path / "fastdeploy.py").write_text("raise ImportError('no wheel for this Python')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(MachineError, match="no wheel for this Python") as caught:
        load(bundle, "fastdeploy")
    assert "serve.engine: onnxruntime" in caught.value.hint


@pytest.mark.parametrize(("engine", "backend"), [("llama", "x"), ("fastdeploy", "tensorrt")])
def test_an_unknown_engine_is_refused(bundle, engine, backend):
    with pytest.raises(MachineError, match="there is no engine") as caught:
        load(bundle, engine, backend)
    assert "openvino" in caught.value.hint


def test_a_context_longer_than_the_graphs_is_refused(bundle):
    with pytest.raises(BundleError, match=r"serve.max_length is 257.*256"):
        load(bundle, max_length=257)


def test_caches_that_exceed_the_memory_are_refused_before_loading(bundle):
    with pytest.raises(MachineError, match=r"GiB for their caches") as caught:
        load(bundle, slots=10_000_000)
    assert "serve.slots" in caught.value.hint
