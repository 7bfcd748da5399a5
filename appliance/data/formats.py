"""The formats of conversations: what a row looks like, and how it becomes OpenAI's messages.

messages   {"messages": [{"role": "user", "content": "…"}, …]}
alpaca     {"instruction": "…", "input": "…", "output": "…", "system": "…", "history": […]}
sharegpt   {"conversations": [{"from": "human", "value": "…"}, …], "system": "…"}
src_tgt    {"src": "…" or ["…"], "tgt": "…" or ["…"], "context": {"system": "…"}}
text       {"text": "…"}, or a .txt file
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Message = dict[str, str]

ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
}


class RowError(ValueError):
    """What is wrong with one row; the reader adds file and line."""


def detect(row: Mapping[str, Any]) -> str:
    """Name the format of a row by its keys. Raises RowError where no format has such keys."""
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if "src" in row and "tgt" in row:
        return "src_tgt"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "text" in row:
        return "text"
    keys = ", ".join(sorted(map(str, row))) or "none"
    raise RowError(
        f"no known format has the keys {keys}; known are messages, conversations, src and tgt, "
        "instruction and output, text"
    )


def to_messages(row: Mapping[str, Any], format: str) -> list[Message]:
    """Turn a row of a named format into messages that end with an answer.

    Raises RowError with what is wrong.
    """
    messages = _PARSERS[format](row)
    check(messages)
    return messages


def to_text(row: Mapping[str, Any]) -> str:
    """The text of a plain-text row. Raises RowError."""
    return _text(row, "text")


def check(messages: list[Message]) -> None:
    """Refuse what no chat template renders: an optional system message, then user and assistant
    in turn, the assistant last. Raises RowError."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not turns:
        raise RowError("a conversation without a question and an answer")
    for index, message in enumerate(turns):
        wanted = ("user", "assistant")[index % 2]
        if message["role"] != wanted:
            raise RowError(
                f"message {index + 1} is from {message['role']!r} where {wanted!r} was expected: "
                "user and assistant take turns, a system message comes first alone"
            )
    if turns[-1]["role"] != "assistant":
        raise RowError("the last message is not the assistant's: there is no answer to learn")
    for message in turns:
        if message["role"] == "assistant" and not message["content"].strip():
            raise RowError("an answer is empty")


def _text(row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        raise RowError(f"field {key!r} is missing")
    value = row[key]
    if not isinstance(value, str):
        raise RowError(f"field {key!r} is {_kind(value)} where text was expected")
    return value


def _optional_text(row: Mapping[str, Any], key: str) -> str:
    return "" if row.get(key) is None else _text(row, key)


def _list(row: Mapping[str, Any], key: str) -> list[Any]:
    value = row.get(key)
    if not isinstance(value, list) or not value:
        raise RowError(f"field {key!r} is {_kind(value)} where a list with entries was expected")
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    for kind, name in ((str, "text"), (list, "a list"), (dict, "an object")):
        if isinstance(value, kind):
            return name if value else f"{name} without content"
    return repr(value)


def _system(text: str) -> list[Message]:
    return [{"role": "system", "content": text}] if text else []


def _from_messages(row: Mapping[str, Any]) -> list[Message]:
    return [
        _turn(entry, "messages", index, "role", "content", {role: role for role in ROLES})
        for index, entry in enumerate(_list(row, "messages"))
    ]


def _from_sharegpt(row: Mapping[str, Any]) -> list[Message]:
    turns = [
        _turn(entry, "conversations", index, "from", "value", _SHAREGPT_ROLES)
        for index, entry in enumerate(_list(row, "conversations"))
    ]
    return _system(_optional_text(row, "system")) + turns


def _turn(
    entry: Any, field: str, index: int, role_key: str, text_key: str, roles: Mapping[str, str]
) -> Message:
    place = f"{field}[{index}]"
    if not isinstance(entry, dict):
        raise RowError(f"{place} is {_kind(entry)} where an object was expected")
    role = entry.get(role_key)
    if not isinstance(role, str) or role not in roles:
        raise RowError(f"{place}.{role_key} is {role!r}; known are {', '.join(roles)}")
    content = entry.get(text_key)
    if not isinstance(content, str):
        raise RowError(f"{place}.{text_key} is {_kind(content)} where text was expected")
    return {"role": roles[role], "content": content}


def _from_alpaca(row: Mapping[str, Any]) -> list[Message]:
    question, extra = _text(row, "instruction"), _optional_text(row, "input")
    messages = _system(_optional_text(row, "system"))
    for pair in row.get("history") or ():
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        ):
            raise RowError("field 'history' must be a list of [question, answer] pairs")
        messages += _pair(pair[0], pair[1])
    return messages + _pair(f"{question}\n{extra}" if extra else question, _text(row, "output"))


def _from_src_tgt(row: Mapping[str, Any]) -> list[Message]:
    context = row.get("context")
    if context is not None and not isinstance(context, dict):
        raise RowError(f"field 'context' is {_kind(context)} where an object was expected")
    sources, targets = _texts(row, "src"), _texts(row, "tgt")
    if len(sources) != len(targets):
        raise RowError(f"'src' has {len(sources)} rounds but 'tgt' has {len(targets)}")
    messages = _system(_optional_text(context or {}, "system"))
    for source, target in zip(sources, targets, strict=True):
        messages += _pair(source, target)
    return messages


def _texts(row: Mapping[str, Any], key: str) -> list[str]:
    if isinstance(row.get(key), str):
        return [row[key]]
    values = _list(row, key)
    if not all(isinstance(value, str) for value in values):
        raise RowError(f"field {key!r} must be text or a list of texts")
    return values


def _pair(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


_PARSERS: dict[str, Callable[[Mapping[str, Any]], list[Message]]] = {
    "messages": _from_messages,
    "alpaca": _from_alpaca,
    "sharegpt": _from_sharegpt,
    "src_tgt": _from_src_tgt,
}
