"""The stage `train`: it learns, it survives, it publishes the best."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.numpy import load_file

from appliance.errors import Interrupted, MachineError, StageError, UserError
from appliance.files import read_json
from appliance.jobs.artifacts import Stage, read_manifest
from appliance.training import checkpoints, train
from appliance.training.checkpoints import Checkpoint
from appliance.training.log import read_log
from tests.training import stages


@pytest.fixture(scope="module")
def probe(home: Path, full: Stage) -> dict[str, Any]:
    """What a process with Paddle found (probe.py)."""
    folder = home / "probe"
    folder.mkdir()
    (folder / "prepare").symlink_to(full.inputs["prepare"])
    (folder / "full").symlink_to(full.final)
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.probe", str(folder)],
        capture_output=True,
        text=True,
        cwd=stages.ROOT,
        timeout=300,
        env={**os.environ, "MKL_DEBUG_CPU_TYPE": "5", "OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def wait_for_step(stage: Stage, step: int, process: subprocess.Popen[str]) -> None:
    """Until the log has a line of `step` or later."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(line["step"] >= step for line in read_log(stage.output / "log.jsonl")):
            return
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.005)
    raise AssertionError(f"no step {step} within two minutes")


def workers(stage: Stage) -> list[int]:
    """Processes that train for `stage`."""
    return [
        process.pid
        for process in psutil.process_iter()
        if any(str(stage.output) in argument for argument in _command(process))
    ]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_an_adapter_is_trained(whole: Stage) -> None:
    losses = stages.losses(whole)
    assert list(losses) == list(range(3, 61, 3))
    assert losses[60] < 0.7 * losses[3]
    spoken = read_json(whole.final / "adapter" / "adapter.json")
    assert spoken["base_sha256"] == "ab" * 32
    assert (spoken["rank"], spoken["alpha"], spoken["scale"]) == (4, 16, 4.0)
    assert (whole.final / "adapter" / "lora_config.json").is_file()
    assert not whole.scratch.exists()


def test_what_a_training_says(whole: Stage) -> None:
    progress = stages.events(whole, "progress")
    assert [(e["done"], e["total"]) for e in progress][-1] == (60, 60)
    assert all(e["tokens_per_second"] > 0 and e["seconds_left"] >= 0 for e in progress)
    metrics = stages.events(whole, "metric")
    assert [(m["name"], m["step"]) for m in metrics] == [("eval_loss", s) for s in (20, 40, 60)]
    evaluated = [
        line["step"] for line in read_log(whole.final / "log.jsonl") if "eval_loss" in line
    ]
    assert evaluated == [20, 40, 60]
    from visualdl import LogReader

    (scalars,) = (whole.final / "visualdl").iterdir()
    drawn = LogReader(file_path=str(scalars)).get_data("scalar", "train/loss")
    assert [(d.id, pytest.approx(d.value)) for d in drawn] == list(stages.losses(whole).items())


def test_stopped_and_killed_it_goes_on_as_if_nothing_had_been(
    home: Path, prepared: Path, whole: Stage
) -> None:
    stage = stages.train_stage(home, prepared, "disturbed", **stages.LONG)
    folder = stage.scratch / "checkpoints"

    process = stages.start(stage)
    wait_for_step(stage, 12, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=90)
    assert process.returncode == Interrupted.exit_code, err[-3000:]
    saved = checkpoints.whole(folder)[-1]
    assert 12 <= saved.step < 60
    assert not workers(stage)

    process = stages.start(stage)
    wait_for_step(stage, saved.step + 12, process)
    process.kill()
    process.communicate(timeout=30)
    wait_until_gone(stage)
    last = checkpoints.whole(folder)[-1].step
    torn = checkpoints.folder_of(folder, 56)
    torn.mkdir(exist_ok=True)  # what a kill in the middle of a save leaves
    (torn / "lora_model_state.pdparams").write_bytes(b"half")

    stages.run(stage)
    notes = [event["text"] for event in stages.events(stage, "note")]
    assert f"Going on from the checkpoint of step {last}." in notes
    undisturbed, disturbed = stages.losses(whole), stages.losses(stage)
    assert list(disturbed) == list(undisturbed)
    assert disturbed == pytest.approx(undisturbed, abs=1e-6)
    assert read_manifest(stage.final)["metrics"] == pytest.approx(
        read_manifest(whole.final)["metrics"], abs=1e-6
    )


def wait_until_gone(stage: Stage) -> None:
    """A killed stage takes its training along, at once."""
    deadline = time.monotonic() + 10
    while workers(stage):
        assert time.monotonic() < deadline, "the training outlived its stage"
        time.sleep(0.05)


def test_the_best_by_held_out_loss_is_published(full: Stage, probe: dict[str, Any]) -> None:
    held_out = {
        line["step"]: line["eval_loss"]
        for line in read_log(full.final / "log.jsonl")
        if "eval_loss" in line
    }
    best = min(held_out, key=lambda step: held_out[step])
    assert best < 40 and held_out[40] > held_out[best] + 0.01  # so that it differs from the last
    assert read_manifest(full.final)["metrics"]["step"] == best
    assert probe["published_loss"] == pytest.approx(held_out[best], abs=1e-5)


def test_all_weights_are_trained(full: Stage) -> None:
    losses = stages.losses(full)
    assert losses[40] < 0.2 * losses[1]
    base = load_file(full.inputs["prepare"] / "base" / "model.safetensors")
    trained = load_file(full.final / "model" / "model.safetensors")
    assert {name: w.shape for name, w in trained.items()} == {n: w.shape for n, w in base.items()}
    assert all((trained[name] != base[name]).any() for name in base)
    assert (full.final / "model" / "tokenizer.json").is_file()


def test_a_model_from_scratch(pretrained: Stage) -> None:
    losses = list(stages.losses(pretrained).values())
    assert losses[0] == pytest.approx(6.0, abs=0.5)  # near ln(vocabulary), as chance has it
    assert losses[-1] < 0.5 * losses[0]
    assert (pretrained.final / "model" / "model.safetensors").is_file()
    assert not (pretrained.inputs["prepare"] / "index-cache").exists()  # an input is only read


def test_loss_is_the_mean_over_answers(probe: dict[str, Any]) -> None:
    assert probe["loss"] == pytest.approx(probe["numpy_loss"], abs=1e-5)


def test_own_operations_have_the_gradients_of_paddlenlps(probe: dict[str, Any]) -> None:
    assert probe["same_weights"] and probe["weights"] == 20
    assert probe["gradient_gap"] < 1e-5 * max(1.0, probe["gradient_size"])


def test_only_the_adapter_learns(probe: dict[str, Any]) -> None:
    assert len(probe["trained"]) == 2 * 7 * 2  # layers, projections, A and B
    assert all("lora_" in name for name in probe["trained"])


def test_batched_answers_are_those_of_one_at_a_time(probe: dict[str, Any]) -> None:
    assert probe["batched"] == probe["single"]
    assert len({tuple(answer) for answer in probe["single"]}) == 3
    assert probe["ended"] == probe["single"][0][: probe["single"][0].index(probe["end"])]


def test_the_workers_error_is_the_stages(home: Path) -> None:
    prepared = stages.prepare(home / "empty", rows=10)
    rows = (prepared / "train.jsonl").read_text().splitlines()
    blank = [{**json.loads(row), "labels": [-100] * len(json.loads(row)["labels"])} for row in rows]
    (prepared / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in blank))
    process = stages.start(stages.train_stage(home, prepared, "blank"))
    _, err = process.communicate(timeout=120)
    assert process.returncode == UserError.exit_code
    assert err.rstrip().splitlines()[-2] == "error: no training row has a token to learn"
    assert "data.max_length" in err.rstrip().splitlines()[-1]


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_half_precision_needs_a_card(home: Path, half: str) -> None:
    stage = stages.train_stage(home, home, half, **{half: True})
    with pytest.raises(MachineError, match=f"train.{half} needs a card"):
        train.choose_devices(stage)


def test_a_killed_training_names_the_likely_cause(tmp_path: Path) -> None:
    error = train.failure(247, tmp_path / "workerlog.0")
    assert isinstance(error, StageError)
    assert "SIGKILL" in error.message and str(tmp_path) in error.message
    assert "memory" in error.hint


def test_a_training_that_stands_still_is_given_up(home: Path) -> None:
    stage = stages.train_stage(home, home, "still")
    stage.scratch.mkdir(parents=True)
    alive = stage.scratch / train.ALIVE
    alive.touch()
    os.utime(alive, (0, time.time() - train.STALL_SECONDS - 5))
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(StageError, match="not finished a step in 30 minutes"):
            train.watch(stage, sleeper)
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_traceback_ends_in_its_error(tmp_path: Path) -> None:
    log = tmp_path / "workerlog.0"
    log.write_text("Traceback (most recent call last):\n  File x\nRuntimeError: no space left\n")
    error = train.failure(1, log)
    assert error.message == f"RuntimeError: no space left. The worker's log: {log}."


def test_checkpoints_in_excess_go_and_the_best_stays(tmp_path: Path) -> None:
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, None)):
        checkpoints.folder_of(tmp_path, step).mkdir()
        checkpoints.seal(tmp_path, Checkpoint(step, 50, loss, ()))
    checkpoints.folder_of(tmp_path, 45).mkdir()
    checkpoints.prune(tmp_path, keep=1)
    assert [c.step for c in checkpoints.whole(tmp_path)] == [20, 40]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-20", "checkpoint-40"]
