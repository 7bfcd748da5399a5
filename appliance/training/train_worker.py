"""One process of a training, started by `paddle.distributed.launch` for the stage `train`.

    python -m appliance.training.train_worker STAGE_JSON

It leaves adapter/ or model/ in the stage's folder; the stage publishes them.
"""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from appliance.bundle.names import write_model
from appliance.errors import DataError, Interrupted, MachineError
from appliance.files import read_json, write_json
from appliance.jobs.artifacts import Stage
from appliance.recipe import TrainSection
from appliance.training import checkpoints
from appliance.training.dataset import Rows, corpus, corpus_windows, read_rows
from appliance.training.log import Log
from appliance.training.model import adapter_scale, add_adapter, load_model, new_model
from appliance.training.orphans import die_with_parent
from appliance.training.program import run_program
from appliance.training.runtime import paddle
from appliance.training.train import ALIVE, RESULT
from appliance.training.trainer import AnswerTrainer, Recorder, Watch, arguments, run

ADAPTER_FILES = ("lora_model_state.pdparams", "lora_config.json")


def work() -> None:
    """Train, or go on training, then write what the best checkpoint holds."""
    stage = Stage.read(Path(sys.argv[1]))
    train = TrainSection.model_validate(stage.spec["train"])
    folder = stage.scratch / "checkpoints"
    first = paddle.distributed.get_rank() == 0
    if first:
        checkpoints.prune(folder, train.save_total_limit)
    done = checkpoints.whole(folder)
    if not done or done[-1].step < done[-1].total_steps:
        train_model(stage, train, folder)
    if first:
        write_result(stage, train, folder)


def train_model(stage: Stage, train: TrainSection, folder: Path) -> None:
    """Run the Trainer to its last step. Raises Interrupted at the end of a step, all saved."""
    prepare, before = stage.inputs["prepare"], checkpoints.whole(folder)
    dtype = number_type(train)
    watch = Watch(alive=(stage.scratch / ALIVE).touch)
    signal.signal(signal.SIGTERM, _stop(watch))
    ranks, rank = paddle.distributed.get_world_size(), paddle.distributed.get_rank()
    if ranks > 1:
        paddle.distributed.init_parallel_env()
    rows, held_out, max_steps = read_data(stage, train, ranks)
    if train.method == "pretrain":
        model: Any = new_model(prepare / "base", train.seed, dtype=dtype)
    else:
        model = load_model(prepare / "base", dtype=dtype)
    if train.method == "lora":
        model = add_adapter(model, train, dtype=dtype)
    step = before[-1].step if before else 0
    log = Log(stage.output, stage.events, step=step) if rank == 0 else None
    trainer = AnswerTrainer(
        rows=rows,
        held_out=held_out,
        watch=watch,
        model=model,
        args=arguments(train, folder, max_steps=max_steps, evaluates=bool(held_out)),
        callbacks=[Recorder(train, watch, log, folder, before)],
    )
    if log is not None and step:
        stage.events.note(f"Going on from the checkpoint of step {step}.")
    run(trainer, folder, before)
    if log is not None:
        log.close()
    if watch.stopping and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(
            f"stopped behind step {trainer.state.global_step}; its checkpoint is saved",
            hint="Go on with `appliance resume`.",
        )


def read_data(stage: Stage, train: TrainSection, ranks: int) -> tuple[Any, Rows, int]:
    """Rows to train on, held-out rows, and the number of steps (-1: what the epochs give)."""
    prepare = stage.inputs["prepare"]
    if train.method == "pretrain":
        batch = train.per_device_train_batch_size * train.gradient_accumulation_steps * ranks
        steps = train.max_steps
        if steps == -1:
            steps = max(1, int(corpus_windows(prepare) * train.num_train_epochs / batch))
        cache = stage.scratch / "index"
        windows, held = corpus(prepare, cache, samples=steps * batch, seed=train.seed)
        return windows, [held[i] for i in range(len(held))], steps
    rows = read_rows(prepare / "train.jsonl")
    if not rows:
        raise DataError(
            "no training row has a token to learn",
            hint="Raise data.max_length: the answers may be cut off. See `appliance data preview`.",
        )
    return rows, read_rows(prepare / "eval.jsonl"), train.max_steps


def number_type(train: TrainSection) -> str:
    """Paddle's name of the type that weights are held in. Raises MachineError for half on a CPU."""
    half = "bf16" if train.bf16 else "fp16" if train.fp16 else ""
    if not half:
        return "float32"
    if paddle.device.get_device() == "cpu":
        raise MachineError(
            f"train.{half} needs a card, and Paddle sees none here",
            hint=f"Set train.{half} to false: on the CPU training is in float32.",
        )
    names = {"bf16": "bfloat16", "fp16": "float16"}
    return names[half] if train.fp16_opt_level == "O2" else "float32"


def write_result(stage: Stage, train: TrainSection, folder: Path) -> None:
    """Write adapter/ or model/ from the best checkpoint."""
    chosen = checkpoints.best(checkpoints.whole(folder))
    source, prepare = checkpoints.folder_of(folder, chosen.step), stage.inputs["prepare"]
    target = stage.output / ("adapter" if train.method == "lora" else "model")
    shutil.rmtree(target, ignore_errors=True)
    if train.method == "lora":
        write_adapter(source, target, train, read_json(prepare / "base.json")["sha256"])
    else:
        state = paddle.load(str(source / "model_state.pdparams"), return_numpy=True)
        write_model(state, prepare / "base", target)
    write_json(
        stage.scratch / RESULT,
        {"step": chosen.step, "steps": chosen.total_steps, "eval_loss": chosen.eval_loss},
    )


def write_adapter(source: Path, target: Path, train: TrainSection, base_sha256: str) -> None:
    """Copy a checkpoint's adapter and write adapter.json."""
    target.mkdir()
    for name in ADAPTER_FILES:
        shutil.copyfile(source / name, target / name)
    write_json(
        target / "adapter.json",
        {
            "base_sha256": base_sha256,
            "rank": train.lora_rank,
            "alpha": train.lora_alpha,
            "rslora": train.rslora,
            "scale": adapter_scale(train),
            "targets": list(train.lora_target_modules),
        },
    )


def _stop(watch: Watch) -> Any:
    def stop(number: int, frame: FrameType | None) -> None:
        watch.stopping = True

    return stop


if __name__ == "__main__":
    die_with_parent()
    run_program(work)
