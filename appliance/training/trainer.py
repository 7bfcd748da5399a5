"""PaddleNLP's Trainer, with the loss, the order of rows and the checkpoints that this house needs.

PaddleNLP's `trl.SFTTrainer` is not used: it renders and tokenizes rows itself, and the rows were
rendered by `prepare` with the template that serves them; of its generation only the loop is left,
which is the Trainer's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import StageError
from appliance.recipe import TrainSection
from appliance.training import checkpoints
from appliance.training.checkpoints import Checkpoint
from appliance.training.dataset import Order, Rows, batches, collate
from appliance.training.log import Log
from appliance.training.loss import held_out_loss
from appliance.training.runtime import paddle

# The order is Paddle's: its other modules come after it.
from paddlenlp.trainer import Trainer, TrainerCallback, TrainingArguments  # isort: skip


SAME_NAMES = (
    *("num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm", "eval_steps", "save_steps"),
    *("seed", "bf16", "fp16", "fp16_opt_level", "recompute"),
)
"""Fields of the recipe that PaddleNLP's arguments have under the same name."""


@dataclass
class Watch:
    """What the Trainer and its recorder share."""

    alive: Callable[[], None]
    """Called after every step and every batch of evaluation."""
    stopping: bool = False
    """Set by a signal: save at the end of the step, then stop."""
    tokens: int = 0
    """Tokens trained on since the last line of the log, padding left out."""


class AnswerTrainer(Trainer):  # type: ignore[misc]
    """Trains on the labelled positions; held-out loss is the mean over all labelled positions."""

    def __init__(self, *, rows: Any, held_out: Rows, watch: Watch, **kwargs: Any) -> None:
        self.watch = watch
        self.held_out = held_out
        super().__init__(train_dataset=rows, data_collator=collate, **kwargs)

    def training_step(self, model: Any, inputs: dict[str, Any], step_control: int = 0) -> Any:
        """One micro-batch; the tokens are counted on the way."""
        self.watch.tokens += int(inputs.pop("lengths").sum()) * self.args.dataset_world_size
        return super().training_step(model, inputs, step_control)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The held-out loss. PaddleNLP's own would be a mean of the batches' means."""
        size = self.args.per_device_eval_batch_size
        loss = held_out_loss(
            self.model, batches(self.held_out, size), lambda done: self.watch.alive()
        )
        metrics = {"eval_loss": loss}
        handler = self.callback_handler
        self.control: Any = handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_train_sampler(self) -> Order:
        return Order(
            self.train_dataset,
            self.args.per_device_train_batch_size,
            seed=self.args.seed,
            ranks=self.args.dataset_world_size,
            rank=self.args.dataset_rank,
        )


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Writes the log and seals the checkpoints; evaluates and saves at the last step, saves every
    new best, and stops when it is asked to."""

    def __init__(
        self,
        train: TrainSection,
        watch: Watch,
        log: Log | None,
        folder: Path,
        before: list[Checkpoint],
    ) -> None:
        """`log` is None in all processes of a training but the first; `before`: what is saved."""
        self.train, self.watch, self.log, self.folder = train, watch, log, folder
        self.pending = list(before[-1].pending) if before else []
        self.eval_loss: float | None = None
        self.least = checkpoints.best(before).eval_loss if before else None
        self.evaluates = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clocks."""
        self.first_step, self.begun = state.global_step, time.monotonic()
        self.line_at = self.ended = self.begun
        self.evaluates = args.do_eval

    def on_step_begin(self, args: Any, state: Any, control: Any, **models: Any) -> None:
        """Speed is that of the steps: evaluating and saving between them does not count."""
        self.learning_rate = float(models["optimizer"].get_lr())
        self.line_at += time.monotonic() - self.ended

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """The Trainer's line of one step becomes a line of ours every `logging_steps`."""
        if "loss" not in logs:
            return
        self.pending.append(logs["loss"])
        self.ended = time.monotonic()
        last = state.global_step >= state.max_steps
        if state.global_step % self.train.logging_steps == 0 or last:
            if self.log is not None:
                self._say(self.log, state)
            self.pending, self.line_at, self.watch.tokens = [], self.ended, 0

    def _say(self, log: Log, state: Any) -> None:
        step, total = state.global_step, state.max_steps
        loss = sum(self.pending) / len(self.pending)
        speed = round(self.watch.tokens / max(self.ended - self.line_at, 1e-9), 2)
        left = (total - step) * (self.ended - self.begun) / max(step - self.first_step, 1)
        log.line(step, loss=loss, learning_rate=self.learning_rate, tokens_per_second=speed)
        log.events.progress(
            step, total, "step", loss=loss, tokens_per_second=speed, seconds_left=round(left, 1)
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Decide what happens behind this step."""
        self.watch.alive()
        self.eval_loss = None
        if state.global_step >= state.max_steps:
            control.should_evaluate = self.evaluates
            control.should_save = True
        if _any_process(self.watch.stopping):
            control.should_evaluate = False
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> Any:
        """Note the held-out loss; a new best is saved."""
        self.eval_loss = metrics["eval_loss"]
        if self.least is None or self.eval_loss < self.least:
            self.least = self.eval_loss
            control.should_save = True
        if self.log is not None:
            self.log.line(state.global_step, eval_loss=self.eval_loss)
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal the checkpoint that the Trainer has just written, then remove those in excess."""
        if self.log is not None:
            made = Checkpoint(
                state.global_step, state.max_steps, self.eval_loss, tuple(self.pending)
            )
            checkpoints.seal(self.folder, made)
            checkpoints.prune(self.folder, self.train.save_total_limit)


def _any_process(flag: bool) -> bool:
    """Whether the flag is set in any process: all of them must stop behind the same step."""
    if paddle.distributed.get_world_size() == 1:
        return flag
    found = paddle.to_tensor([int(flag)])
    paddle.distributed.all_reduce(found, op=paddle.distributed.ReduceOp.MAX)
    return bool(found.item())


def arguments(train: TrainSection, folder: Path, *, max_steps: int, evaluates: bool) -> Any:
    """PaddleNLP's arguments. The Trainer logs every step, keeps all checkpoints and reports
    nowhere: those are the recorder's."""
    return TrainingArguments(
        output_dir=str(folder),
        do_train=True,
        do_eval=evaluates,
        max_steps=max_steps,
        evaluation_strategy="steps" if evaluates else "no",
        logging_steps=1,
        disable_tqdm=True,
        report_to=["none"],
        device=paddle.device.get_device().split(":")[0],
        **{name: getattr(train, name) for name in SAME_NAMES},
    )


def run(trainer: AnswerTrainer, folder: Path, before: list[Checkpoint]) -> None:
    """Train from the newest whole checkpoint, or from the start. Raises StageError for a loss that
    is no number."""
    last = str(checkpoints.folder_of(folder, before[-1].step)) if before else None
    try:
        trainer.train(resume_from_checkpoint=last)
    except ValueError as error:
        if "inf or nan" not in str(error):
            raise
        raise StageError(
            f"the loss became infinite or no number at step {trainer.state.global_step + 1}",
            hint="Lower train.learning_rate, or raise train.warmup_steps.",
        ) from error
