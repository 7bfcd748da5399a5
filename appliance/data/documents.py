"""Plain text for pretraining: whole documents cut into sections, and those put in random order."""

from __future__ import annotations

import random
from collections.abc import Iterator

from appliance.data.read import Tally, read_documents
from appliance.errors import DataError
from appliance.recipe import DataSection

SECTION = 2_000  # characters: short enough that small corpora split in fine shares


def read_sections(data: DataSection, seed: int, tally: Tally) -> list[str]:
    """The sections of a recipe's text, in an order that `seed` decides.

    Shares of `data.split` are taken from the front, so without the shuffle the last book would be
    the whole evaluation set. Repeated sections are left out where `data.deduplicate` is set.
    Raises DataError where a share of the split would stay empty.
    """
    sections = [
        part for document in read_documents(data.train, data, tally) for part in cut(document.text)
    ]
    if data.deduplicate:
        sections = list(dict.fromkeys(sections))
    random.Random(seed).shuffle(sections)
    train, held, _ = shares(data.split, len(sections))
    for name, count in (("training", train), ("evaluation", held)):
        if count < 1:
            raise DataError(
                f"too little text: {len(sections)} sections of {SECTION} characters, split as "
                f"{data.split}, leave none for {name}",
                hint="Give more text in data.train, or a larger share in data.split.",
            )
    return sections


def cut(text: str) -> Iterator[str]:
    """Cut a text into sections of about SECTION characters that end with a line where one can."""
    start = 0
    while start < len(text):
        end = start + SECTION
        if end < len(text):
            for border in ("\n\n", "\n", " "):
                found = text.rfind(border, start + SECTION // 2, end)
                if found >= 0:
                    end = found + len(border)
                    break
        part = text[start:end]
        if part.strip():
            yield part
        start = end


def shares(split: str, size: int) -> tuple[int, int, int]:
    """How many of `size` sections train, evaluation and test get; rounded as PaddleNLP does
    (`get_train_valid_test_split_` of paddlenlp/data/causal_dataset.py)."""
    parts = [float(part) for part in split.split(",")]
    train, valid, test = (round(part / sum(parts) * size) for part in parts)
    return train - (train + valid + test - size), valid, test
