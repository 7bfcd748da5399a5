"""An answer as it grows: tokens become text, stop strings are cut, tokens are counted."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from appliance.bundle.tokenizer import Tokenizer
from serving.sampling import Token
from serving.scheduler import FinishReason, Generation
from serving.text import StopText


@dataclass(frozen=True)
class Alternative:
    """A token that was considered: its text (U+FFFD where it is no whole character), its bytes
    and its natural log-probability."""

    token: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True)
class TokenLogprob(Alternative):
    """A token of the answer and the likeliest ones at its place."""

    top: tuple[Alternative, ...] = ()

    offset: int = 0
    """Characters of the answer before it; tokens of one character share theirs."""


@dataclass(frozen=True)
class Delta:
    """The next piece of the answer number `index`; `finish_reason` is in its last piece alone."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass
class Whole:
    """One choice put together from its pieces."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        """Append the next piece."""
        self.text += delta.text
        self.logprobs += delta.logprobs
        self.finish_reason = delta.finish_reason


@dataclass(frozen=True)
class Usage:
    """Tokens read and tokens generated."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Both."""
        return self.prompt_tokens + self.completion_tokens


class Choice:
    """One generation as text."""

    def __init__(
        self, index: int, generation: Generation, tokenizer: Tokenizer, stops: Sequence[str]
    ) -> None:
        self.index = index
        self.tokens = 0
        """Tokens generated so far."""
        self._generation = generation
        self._tokenizer = tokenizer
        self._stream = tokenizer.stream()
        self._stop = StopText(stops)
        self._spelling: list[TokenLogprob] = []
        self._spelled: list[tuple[int, TokenLogprob]] = []
        self._length = 0
        self._shown = 0

    def __iter__(self) -> Iterator[Delta]:
        """Pieces of text, each of whole characters, the last with the reason for the end.

        Raises what the generation raises: DeadlineExceeded, RequestCancelled, EngineFailed.
        """
        for token in self._generation:
            self.tokens += 1
            if token.logprob is not None:
                spelled = _logprob(self._tokenizer, token, token.logprob, self._length)
                self._spelling.append(spelled)
            text, logprobs = self._show(self._stream.push(token.id))
            if self._stop.stopped:
                self._generation.stop()
                yield Delta(self.index, text, logprobs, "stop")
                return
            if text:
                yield Delta(self.index, text, logprobs)
        text, logprobs = self._show(self._stream.flush(), last=True)
        reason = "stop" if self._stop.stopped else self._generation.finish_reason
        yield Delta(self.index, text, logprobs, reason)

    def cancel(self) -> None:
        """Free the generation's slot."""
        self._generation.cancel()

    def _show(self, piece: str, *, last: bool = False) -> tuple[str, tuple[TokenLogprob, ...]]:
        """What may be shown now, and the tokens that are wholly in what was shown."""
        self._length += len(piece)
        if piece or last:
            self._spelled += [(self._length, token) for token in self._spelling]
            self._spelling = []
        text = self._stop.push(piece)
        if last and not self._stop.stopped:
            text += self._stop.flush()
        self._shown += len(text)
        ready = [token for end, token in self._spelled if end <= self._shown]
        self._spelled = self._spelled[len(ready) :]
        return text, tuple(ready)


def interleave(choices: Sequence[Choice]) -> Iterator[Delta]:
    """The pieces of several answers as they come. Raises the first error of any of them."""
    if len(choices) == 1:
        yield from choices[0]
        return
    pieces: queue.SimpleQueue[Delta | BaseException | None] = queue.SimpleQueue()

    def pump(choice: Choice) -> None:
        try:
            for delta in choice:
                pieces.put(delta)
            pieces.put(None)
        except BaseException as error:
            pieces.put(error)

    for choice in choices:
        threading.Thread(target=pump, args=(choice,), daemon=True).start()
    for _ in choices:
        while (item := pieces.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


def _logprob(tokenizer: Tokenizer, token: Token, logprob: float, offset: int) -> TokenLogprob:
    top = tuple(Alternative(*_spell(tokenizer, i), value) for i, value in token.top_logprobs)
    return TokenLogprob(*_spell(tokenizer, token.id), logprob, top, offset)


def _spell(tokenizer: Tokenizer, token: int) -> tuple[str, bytes]:
    """A token's text and bytes. A token of part of a character has bytes but no text: those of
    a byte-level vocabulary are written in GPT-2's alphabet, those of sentencepiece as <0xE4>."""
    name = tokenizer.backend.id_to_token(token) or ""
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", name):
        raw = bytes([int(byte[1], 16)])
        return raw.decode(errors="replace"), raw
    text = tokenizer.backend.decode([token], skip_special_tokens=False)
    if "�" in text and all(character in byte_alphabet() for character in name):
        return text, bytes(byte_alphabet()[character] for character in name)
    if name.startswith("▁") and not text.startswith(" "):
        text = f" {text}"
    return text, text.encode()


@cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet, character to byte: printable Latin-1 stands for itself, the other bytes
    for the characters from U+0100 on, in order (github.com/openai/gpt-2, src/encoder.py)."""
    itself = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in itself]
    return {chr(b): b for b in itself} | {chr(256 + n): b for n, b in enumerate(others)}
