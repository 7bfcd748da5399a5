"""What training reads: rows of conversations, or windows of a corpus, and how they make a batch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import DataError
from appliance.jobs.artifacts import read_manifest
from appliance.training.loss import IGNORED
from appliance.training.runtime import paddle

PAD_MULTIPLE = 8
"""Batches are padded to a multiple of this: fewer different shapes, and cards like it."""

Row = dict[str, list[int]]
Rows = Sequence[Row]


def read_rows(path: Path) -> list[Row]:
    """Rows `input_ids` and `labels` of a JSON lines file, without those that have no label."""
    with path.open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    # The first label is never learnt: no position precedes it.
    return [row for row in rows if any(label != IGNORED for label in row["labels"][1:])]


def collate(rows: Rows) -> dict[str, NDArray[np.int64]]:
    """One batch: `input_ids` and `labels`, both [B, S] int64, and `lengths` [B].

    Labels are shifted here, so that the logits need not be cut: labels[b, s] follows position s.
    Padding comes after a row's tokens and has no label: causal attention never looks at it.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    width = -(-max(lengths) // PAD_MULTIPLE) * PAD_MULTIPLE
    ids = np.zeros((len(rows), width), np.int64)
    labels = np.full((len(rows), width), IGNORED, np.int64)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids[i, :length] = row["input_ids"]
        labels[i, : length - 1] = row["labels"][1:]
    return {"input_ids": ids, "labels": labels, "lengths": np.asarray(lengths, np.int64)}


def batches(rows: Rows, size: int) -> Iterator[dict[str, NDArray[np.int64]]]:
    """All rows as batches for evaluation, rows of like length together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    for start in range(0, len(rows), size):
        yield collate([rows[i] for i in order[start : start + size]])


class Windows(paddle.io.Dataset):  # type: ignore[misc]
    """Windows of PaddleNLP's `GPTDataset` as rows: every token but a window's first has a label."""

    def __init__(self, windows: Any) -> None:
        super().__init__()
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Row:
        ids = self.windows[index]["text"].tolist()
        return {"input_ids": ids, "labels": ids}


def corpus(prepare: Path, cache: Path, *, samples: int, seed: int) -> tuple[Windows, Windows]:
    """Training and held-out windows of prepare's corpus.bin and corpus.idx (PaddleNLP's mmap form).

    `samples` training windows are laid out, passing over the text as often as that takes; the
    held-out ones go over their share of the text once. A window has `data.max_length` tokens and
    one more, which is only a label. `cache` is a folder for the index. Raises DataError where a
    share of `data.split` is shorter than one window.
    """
    from paddlenlp.data.causal_dataset import build_train_valid_test_datasets

    data = read_manifest(prepare)["spec"]["data"]
    try:
        parts = build_train_valid_test_datasets(
            data_prefix=[str(prepare / "corpus")],
            data_impl="mmap",
            splits_string=data["split"],
            train_val_test_num_samples=[samples, 1, 1],
            seq_length=data["max_length"],
            seed=seed,
            skip_warmup=True,
            data_cache_path=str(cache),
        )
    except (IndexError, ValueError, AssertionError) as error:
        raise DataError(f"the corpus cannot be laid out: {error}", hint=_TOO_SHORT) from error
    for name, part in zip(("training", "held-out"), parts, strict=False):
        if part is None or len(part) == 0:
            raise DataError(f"the {name} text is shorter than one window", hint=_TOO_SHORT)
    return Windows(parts[0]), Windows(parts[1])


_TOO_SHORT = "Add text, lower data.max_length, or give that share more in data.split."


def corpus_windows(prepare: Path) -> int:
    """How many windows one pass over the training text has."""
    from paddlenlp.data.causal_dataset import get_train_valid_test_split_
    from paddlenlp.data.indexed_dataset import make_dataset

    data = read_manifest(prepare)["spec"]["data"]
    indexed = make_dataset(str(prepare / "corpus"), "mmap", True)  # its arrays end with it
    sizes = np.array(indexed.sizes)
    split = get_train_valid_test_split_(data["split"], len(sizes))
    return max(1, int(np.sum(sizes[split[0] : split[1]]) - 1) // int(data["max_length"]))


class Order(paddle.io.DistributedBatchSampler):  # type: ignore[misc]
    """The order of rows: a shuffle for each epoch, decided by the seed and the epoch's number.

    So a resumed training sees what the uninterrupted one would have seen; PaddleNLP's own sampler
    draws from numpy's global state, which a resume in a later epoch does not restore.
    """

    def __init__(self, rows: Any, batch_size: int, *, seed: int, ranks: int, rank: int) -> None:
        self.seed = seed
        super().__init__(rows, batch_size, num_replicas=ranks, rank=rank, shuffle=True)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer when an epoch begins."""
        super().set_epoch(int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0]))
