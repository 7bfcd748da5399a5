"""The loss, for training and evaluation alike: cross entropy at the positions that have a label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from appliance.errors import StageError
from appliance.training.runtime import paddle

IGNORED = -100  # label of a position where nothing is learnt
Batch = Mapping[str, Any]


def mean_loss(lm_head: Any, hidden: Any, labels: Any) -> Any:
    """Mean cross entropy over the labelled positions, a float32 scalar.

    `hidden` [B, S, D]; `labels` [B, S] int64, already shifted: labels[b, s] follows position s.
    """
    flat = labels.flatten()
    at = paddle.nonzero(flat != IGNORED).flatten()
    picked = lm_head(paddle.gather(hidden.reshape([-1, hidden.shape[-1]]), at))
    return paddle.nn.functional.cross_entropy(picked.astype("float32"), paddle.gather(flat, at))


def held_out_loss(
    model: Any, batches: Iterable[Batch], report: Callable[[int], None] = lambda done: None
) -> float:
    """Cross entropy, mean over all labelled positions of all batches (not over batches).

    `report` is told after each batch how many are done. Processes of one training share the work:
    each takes every n-th batch. Raises StageError where there is nothing to measure.
    """
    rank, world = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    was_training = model.training
    model.eval()
    total = np.zeros(2)
    with paddle.no_grad():
        for done, batch in enumerate(batches):
            if done % world == rank:
                labels = paddle.to_tensor(batch["labels"])
                count = int((labels != IGNORED).sum())
                loss = inner(model)(paddle.to_tensor(batch["input_ids"]), labels=labels)
                total += [float(loss) * count, count]
            report(done + 1)
    if was_training:
        model.train()
    if world > 1:
        shared = paddle.to_tensor(total)
        paddle.distributed.all_reduce(shared)
        total = shared.numpy()
    if not total[1]:
        raise StageError("no held-out row has a label, so there is no loss to measure")
    return float(total[0] / total[1])


def inner(model: Any) -> Any:
    """The Llama inside an adapter model; a Llama is its own."""
    return model.model if hasattr(model, "lora_config") else model
