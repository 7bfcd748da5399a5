"""Conversations to tokens: what the model sees, and which part of it is learnt.

Learnt are the assistant's answers, each with the token that ends it; all else has label −100.
Text is rendered by the model's own chat template alone, so training sees what serving sends: the
ids before the last answer are those of the prompt that a client's request would give.

Truncation, where a conversation has more than `max_length` tokens:

1. the oldest rounds (question and answer) are left out, a system message stays;
2. if the last round alone is too long, its question is cut from the left, down to half of
   `max_length`, and then its answer from the right, which is then learnt without an end.

So there is always an answer to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.bundle.tokenizer import Tokenizer
from appliance.data.formats import Message
from appliance.errors import ChatError, DataError

IGNORED = -100  # label of a token that is not learnt, as PaddleNLP's criteria expect it


@dataclass(frozen=True)
class Example:
    """A rendered conversation. `labels` are as long as `input_ids` and not shifted."""

    messages: list[Message]
    input_ids: list[int]
    labels: list[int]
    rounds_cut: int = 0
    tokens_cut: int = 0

    @property
    def truncated(self) -> bool:
        """Whether anything was left out."""
        return bool(self.rounds_cut or self.tokens_cut)


def render(
    tokenizer: Tokenizer, messages: list[Message], *, max_length: int, where: str
) -> Example:
    """Render a conversation that ends with an answer into at most `max_length` tokens.

    Raises DataError where the template refuses it, or hides where answers begin or end.
    """
    kept, dropped = messages, 0
    try:
        ids, labels = _tokens(tokenizer, kept)
        while len(_without_tail(ids, labels)[0]) > max_length and (rest := _drop_round(kept)):
            kept, dropped = rest, dropped + 1
            ids, labels = _tokens(tokenizer, kept)
    except ChatError as error:
        raise DataError(f"{where}: {error.message}", hint=error.hint) from error
    except _HiddenAnswer as error:
        raise DataError(
            f"{where}: {error}",
            hint="Mend the chat template in the model's tokenizer_config.json: an answer must "
            "follow the generation prompt unchanged and end with the model's end token.",
        ) from error
    short_ids, short_labels = _cut(ids, labels, max_length)
    cut = max(0, len(_without_tail(ids, labels)[0]) - len(short_ids))
    return Example(kept, short_ids, short_labels, dropped, cut)


class _HiddenAnswer(Exception):
    """The template does not let an answer be told from the prompt."""


def _drop_round(messages: list[Message]) -> list[Message]:
    """Leave out the oldest question and answer; empty where only one is left."""
    system = [m for m in messages[:1] if m["role"] == "system"]
    rest = messages[len(system) + 2 :]
    return [*system, *rest] if rest else []


def _tokens(tokenizer: Tokenizer, messages: list[Message]) -> tuple[list[int], list[int]]:
    """Ids and labels of a whole conversation. Raises ChatError, _HiddenAnswer."""
    ends = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    prompt = tokenizer.render(messages[: ends[-1]], add_generation_prompt=True)
    prompt_ids = tokenizer.encode(prompt)
    labels = _earlier_answers(tokenizer, messages, ends[:-1], prompt, prompt_ids)
    answer_ids, answer_labels = _answer(tokenizer, messages, ends[-1])
    return prompt_ids + answer_ids, labels + answer_labels


def _earlier_answers(
    tokenizer: Tokenizer,
    messages: list[Message],
    ends: Sequence[int],
    prompt: str,
    prompt_ids: list[int],
) -> list[int]:
    """Labels of the prompt of the last answer: the earlier answers in it are learnt too.

    Tokens may merge across the border of an answer (one that begins with a line break, say).
    Then the prompt's own ids are kept, for that is what serving sends, and only the last answer of
    this conversation is learnt.
    """
    ids: list[int] = []
    labels: list[int] = []
    position = 0
    for end in ends:
        before = tokenizer.render(messages[:end], add_generation_prompt=True)
        after = tokenizer.render(messages[: end + 1], add_generation_prompt=False)
        if not (before.startswith(prompt[:position]) and prompt.startswith(after)):
            raise _HiddenAnswer("the chat template renders earlier messages differently later on")
        between = tokenizer.encode(before[position:])
        answer_ids, answer_labels = _answer(tokenizer, messages, end)
        ids += between + answer_ids
        labels += [IGNORED] * len(between) + answer_labels
        position = len(after)
    rest = tokenizer.encode(prompt[position:])
    if ids + rest != prompt_ids:
        return [IGNORED] * len(prompt_ids)
    return labels + [IGNORED] * len(rest)


def _answer(tokenizer: Tokenizer, messages: list[Message], end: int) -> tuple[list[int], list[int]]:
    """Ids and labels of what the template adds for message `end` after its generation prompt."""
    before = tokenizer.render(messages[:end], add_generation_prompt=True)
    after = tokenizer.render(messages[: end + 1], add_generation_prompt=False)
    if not after.startswith(before):
        raise _HiddenAnswer("the chat template's generation prompt does not lead to the answer")
    ids = tokenizer.encode(after[len(before) :])
    stops = [index for index, token in enumerate(ids) if token in tokenizer.eos_ids]
    if not stops:
        raise _HiddenAnswer("the chat template puts no end token of the model after an answer")
    learnt = stops[-1] + 1
    return ids, ids[:learnt] + [IGNORED] * (len(ids) - learnt)


def _without_tail(ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    """Leave out what follows the last learnt token, such as a line break after the end token."""
    length = len(labels)
    while length and labels[length - 1] == IGNORED:
        length -= 1
    return ids[:length], labels[:length]


def _cut(ids: list[int], labels: list[int], max_length: int) -> tuple[list[int], list[int]]:
    """Step 2 of the rule above, on the tokens of one round."""
    if len(ids) <= max_length:
        return ids, labels
    ids, labels = _without_tail(ids, labels)
    if len(ids) <= max_length:
        return ids, labels
    begin = len(labels)
    while begin and labels[begin - 1] != IGNORED:
        begin -= 1
    answer = min(len(labels) - begin, max(max_length - begin, max_length - max_length // 2))
    first = begin - (max_length - answer)
    return ids[first : begin + answer], labels[first : begin + answer]
