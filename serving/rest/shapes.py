"""Answers as OpenAI's JSON objects: whole, and as the chunks of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from serving.answer import Alternative, TokenLogprob, Usage
from serving.core import Answer
from serving.table import message_of, param_of, row_of

Json = dict[str, Any]


def error_body(error: BaseException) -> Json:
    """`{"error": {"message", "type", "param", "code"}}`."""
    row = row_of(error)
    return {
        "error": {
            "message": message_of(error),
            "type": row.type,
            "param": param_of(error),
            "code": row.code,
        }
    }


def usage_body(usage: Usage) -> Json:
    """`prompt_tokens`, `completion_tokens`, `total_tokens`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def chat_body(answer: Answer, fingerprint: str, *, logprobs: bool) -> Json:
    """A `chat.completion`, whole."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": whole.text, "refusal": None},
            "logprobs": chat_logprobs(whole.logprobs) if logprobs else None,
            "finish_reason": whole.finish_reason,
        }
        for index, whole in enumerate(answer.gather())
    ]
    head = _head(answer, "chat.completion", fingerprint)
    return {**head, "choices": choices, "usage": usage_body(answer.usage)}


def completion_body(answer: Answer, fingerprint: str, *, logprobs: bool) -> Json:
    """A `text_completion`, whole."""
    choices = [
        {
            "index": index,
            "text": whole.text,
            "logprobs": completion_logprobs(whole.logprobs) if logprobs else None,
            "finish_reason": whole.finish_reason,
        }
        for index, whole in enumerate(answer.gather())
    ]
    head = _head(answer, "text_completion", fingerprint)
    return {**head, "choices": choices, "usage": usage_body(answer.usage)}


def chat_chunks(
    answer: Answer, fingerprint: str, *, logprobs: bool, include_usage: bool
) -> Iterator[Json]:
    """`chat.completion.chunk`s: a role, pieces of content, the reason for the end, of each choice;
    then the usage if it is asked for."""
    head = _head(answer, "chat.completion.chunk", fingerprint)
    usage: Json = {"usage": None} if include_usage else {}

    def chunk(index: int, delta: Json, tokens: Any = None, reason: str | None = None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": tokens, "finish_reason": reason}
        return {**head, "choices": [choice], **usage}

    for index in range(answer.size):
        yield chunk(index, {"role": "assistant", "content": ""})
    for delta in answer:
        if delta.text or delta.logprobs:
            tokens = chat_logprobs(delta.logprobs) if logprobs else None
            yield chunk(delta.index, {"content": delta.text}, tokens)
        if delta.finish_reason is not None:
            yield chunk(delta.index, {}, None, delta.finish_reason)
    if include_usage:
        yield {**head, "choices": [], "usage": usage_body(answer.usage)}


def completion_chunks(
    answer: Answer, fingerprint: str, *, logprobs: bool, include_usage: bool
) -> Iterator[Json]:
    """`text_completion` chunks; then the usage if it is asked for."""
    head = _head(answer, "text_completion", fingerprint)
    usage: Json = {"usage": None} if include_usage else {}
    for delta in answer:
        tokens = completion_logprobs(delta.logprobs) if logprobs else None
        choice = {
            "index": delta.index,
            "text": delta.text,
            "logprobs": tokens,
            "finish_reason": delta.finish_reason,
        }
        yield {**head, "choices": [choice], **usage}
    if include_usage:
        yield {**head, "choices": [], "usage": usage_body(answer.usage)}


def chat_logprobs(tokens: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> Json:
    """Tokens as a conversation's answer shows them."""

    def entry(token: Alternative) -> Json:
        return {"token": token.token, "logprob": token.logprob, "bytes": list(token.bytes)}

    content = [{**entry(t), "top_logprobs": [entry(a) for a in t.top]} for t in tokens]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> Json:
    """Tokens as a completion shows them; of alternatives that read the same, the likeliest."""
    return {
        "tokens": [completion_token(token) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_by_name(token.top) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def completion_token(token: Alternative) -> str:
    """A token as completions name it: its text, or OpenAI's `bytes:\\xe4\\xbd` for a part of a
    character, so that the alternatives of one place do not fall together as U+FFFD."""
    try:
        token.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
    return token.token


def _by_name(alternatives: tuple[Alternative, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for alternative in alternatives:
        found.setdefault(completion_token(alternative), alternative.logprob)
    return found


def _head(answer: Answer, kind: str, fingerprint: str) -> Json:
    return {
        "id": answer.id,
        "object": kind,
        "created": answer.created,
        "model": answer.model,
        "system_fingerprint": fingerprint,
    }
