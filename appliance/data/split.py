"""Which conversations are trained on, and which are held out."""

from __future__ import annotations

import random
from collections.abc import Sequence

from appliance.data.formats import Message
from appliance.data.read import Conversation
from appliance.files import fingerprint


def distinct(rows: Sequence[Conversation]) -> list[Conversation]:
    """Leave out exact repetitions, the first of each stays."""
    found: dict[str, Conversation] = {}
    for row in rows:
        found.setdefault(fingerprint(row.messages), row)
    return list(found.values())


def hold_out(
    rows: Sequence[Conversation], fraction: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Split rows into training and held-out ones, in their order, the same for the same seed.

    Conversations that begin with the same question go to the same side, so that no held-out prompt
    was trained on: two prompts can only be equal where their first questions are. At least one
    conversation is held out where `fraction` > 0 and there are two questions or more.
    """
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(first_question(row.messages), []).append(index)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    count = max(round(len(rows) * fraction), 1) if fraction > 0 else 0
    held: set[int] = set()
    for group in order:
        if len(held) < count and len(held) + len(group) <= 1.5 * count:
            held.update(group)
    if count and not held and len(order) > 1:
        rarest = min(order, key=len)
        held.update(rarest)
    train = [row for index, row in enumerate(rows) if index not in held]
    return train, [row for index, row in enumerate(rows) if index in held]


def without_questions_of(
    rows: Sequence[Conversation], others: Sequence[Conversation]
) -> list[Conversation]:
    """The rows that begin with a question that none of `others` begins with."""
    known = {first_question(row.messages) for row in others}
    return [row for row in rows if first_question(row.messages) not in known]


def first_question(messages: Sequence[Message]) -> str:
    """The first user message, case and spacing evened out so that near copies compare equal."""
    text = next(message["content"] for message in messages if message["role"] == "user")
    return " ".join(text.casefold().split())
