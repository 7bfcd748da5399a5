"""The tokenizer of a model folder, one for training and serving: Hugging Face's `tokenizers`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from appliance.bundle import chat
from appliance.errors import ModelError
from appliance.files import read_json

_UNFINISHED = "\ufffd"  # what a decoder puts where bytes do not yet make a character
_LONGEST_WAIT = (
    16  # tokens held back before bytes that never make a character are shown as they are
)


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. Safe to share between threads."""

    backend: tokenizers.Tokenizer
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    eos_ids: frozenset[int]
    """Ids that end an answer: of generation_config.json, else config.json, else the eos token."""

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json and the eos ids of a model folder.

        Raises ModelError where tokenizer.json is missing or malformed.
        """
        backend = _backend(folder / "tokenizer.json")
        config = _optional_json(folder / "tokenizer_config.json")
        eos_token = _token_text(config.get("eos_token"))
        return cls(
            backend=backend,
            chat_template=_chat_template(folder, config),
            bos_token=_token_text(config.get("bos_token")),
            eos_token=eos_token,
            eos_ids=_eos_ids(folder, backend, eos_token),
        )

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included; the model's own vocabulary may be padded."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """Ids that this tokenizer puts before plain text, such as Llama's `<s>`; often none."""
        return tuple(self.backend.encode("", add_special_tokens=True).ids)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Adds no special token; the text of one is parsed as that token."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of `ids`, special tokens left out unless `special`."""
        return str(self.backend.decode(list(ids), skip_special_tokens=not special))

    def token_id(self, token: str) -> int | None:
        """The id of one token's exact text, None where there is none."""
        found = self.backend.token_to_id(token)
        return None if found is None else int(found)

    def stream(self) -> TextStream:
        """A decoder that takes one id at a time."""
        return TextStream(self)

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """Render a conversation with the model's own chat template (`chat.render`).

        Raises ModelError where the model has none.
        """
        if self.chat_template is None:
            raise ModelError(
                "this model has no chat template",
                hint="Complete a text instead (/v1/completions, or Generate over gRPC), or train a "
                "model whose tokenizer_config.json has a `chat_template`.",
            )
        return chat.render(
            self.chat_template,
            messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=self.bos_token,
            eos_token=self.eos_token,
        )


class TextStream:
    """Decodes ids one by one and gives only whole characters.

    A token is decoded together with its predecessors, since a decoder may need them: bytes of one
    character may span tokens, and a leading space may be dropped from the first one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        self._pending.append(token)
        text = self._new_text()
        if not text or (text.endswith(_UNFINISHED) and len(self._pending) < _LONGEST_WAIT):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """What is left at the end; bytes that never made a character show as U+FFFD."""
        text = self._new_text()
        self._context, self._pending = [], []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(before) :]


def _backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise ModelError(
            f"{path} is missing",
            hint="A model needs the tokenizer.json of Hugging Face's `tokenizers`; "
            "`AutoTokenizer.from_pretrained(…).save_pretrained(…)` writes it.",
        )
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(
            f"{path} is not a tokenizer that can be read: {error}",
            hint="Fetch the model's tokenizer.json anew.",
        ) from error


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}", hint="Fetch the file anew.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object", hint="Fetch the file anew.")
    return value


def _token_text(token: Any) -> str | None:
    """A special token is written as its text or as an object with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The template: of tokenizer_config.json, which may name several, or chat_template.jinja."""
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found}
        found = named.get("default")
    beside = folder / "chat_template.jinja"
    if found is None and beside.is_file():
        found = beside.read_text(encoding="utf-8")
    return found if isinstance(found, str) else None


def _eos_ids(folder: Path, backend: tokenizers.Tokenizer, eos_token: str | None) -> frozenset[int]:
    for name in ("generation_config.json", "config.json"):
        found = _optional_json(folder / name).get("eos_token_id")
        if found is not None:
            return frozenset(found if isinstance(found, list) else [found])
    found = backend.token_to_id(eos_token) if eos_token is not None else None
    return frozenset() if found is None else frozenset([int(found)])
