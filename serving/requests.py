"""What a request may hold: OpenAI's fields, in one shape for both doors.

Unknown fields are refused by name. Fields that OpenAI's clients may send and that nothing here
answers to (`NEUTRAL`) pass with the value that asks for nothing, and are refused with any other.
"""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from appliance.errors import InvalidRequest
from serving.sampling import MAX_LOGPROBS, Sampling

MAX_CHOICES = 128
DEFAULT_COMPLETION_TOKENS = 16

NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Field to the values, null besides, that are as good as its absence."""

IGNORED = frozenset(("metadata", "prompt_cache_key", "safety_identifier", "service_tier", "user"))
"""Fields that say who asks or where it is billed, and change no answer."""

MESSAGE_NEUTRAL: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_calls": ([],),
}


class Shape(BaseModel):
    """Values must have the type they are given as: "0.7" is no number. Null is absence."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        return {k: v for k, v in body.items() if v is not None} if _is_object(body) else body


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


def _text_of(content: Any) -> Any:
    """A content of parts becomes their text; parts that are no text are refused."""
    if not isinstance(content, list):
        return content
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else part
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"this model reads text alone; a content part is {kind!r}")
    return "".join(part["text"] for part in content)


def _as_list(stop: Any) -> Any:
    if not isinstance(stop, (str, list)):
        raise ValueError(f"must be a text or a list of texts (it is {stop!r})")
    return [stop] if isinstance(stop, str) else stop


def _as_prompts(prompt: Any) -> Any:
    """A list of prompts, each a text or token ids, of the four forms that OpenAI allows."""
    whole = prompt if isinstance(prompt, list) and not _are_ids(prompt) else [prompt]
    if not all(isinstance(p, str) or _are_ids(p) for p in whole):
        raise ValueError("must be a text, token ids, a list of texts or a list of token ids")
    return whole


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(i) is int for i in value)


def _integer_keys(bias: Any) -> Any:
    if not isinstance(bias, dict):
        return bias
    try:
        return {int(token): value for token, value in bias.items()}
    except ValueError as error:
        raise ValueError("keys must be token ids") from error


class Message(Shape):
    """One message of a conversation."""

    role: str = Field(min_length=1)
    """`system`, `user`, `assistant`, or what else the chat template knows."""

    content: Annotated[str, BeforeValidator(_text_of)]
    """The text, or a list of parts of the type `text`."""

    name: str | None = None
    """Given to the chat template; most leave it out."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_tools(cls, body: Any) -> Any:
        return _without_neutral(body, MESSAGE_NEUTRAL) if _is_object(body) else body


class StreamOptions(Shape):
    """Details of a stream."""

    include_usage: bool = False
    """End the stream with a chunk that has the usage."""


class SamplingFields(Shape):
    """What conversations and completions share."""

    model: str | None = None
    """Name of the served model. Default: the one that is served."""

    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of the answer."""

    max_tokens: int | None = Field(default=None, ge=1)
    """The older name of `max_completion_tokens`."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logit_bias: Annotated[dict[int, float], BeforeValidator(_integer_keys)] = {}

    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    """Answers to each prompt, each with a seed of its own."""

    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list)] = Field(
        default=[], max_length=4
    )
    """Strings that end the answer; none of them is shown."""

    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        if not _is_object(body):
            raise ValueError("the body must be a JSON object")
        body = {k: v for k, v in body.items() if k not in IGNORED}
        return _without_neutral(body, NEUTRAL)

    @model_validator(mode="after")
    def _check_pairs(self) -> SamplingFields:
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for requests with stream: true")
        return self

    @property
    def max_new_tokens(self) -> int | None:
        """Most tokens of the answer, None where the request does not say."""
        return self.max_completion_tokens or self.max_tokens

    @property
    @abstractmethod
    def wanted_logprobs(self) -> int | None:
        """Alternatives to give with each token's log-probability; None: no log-probabilities."""

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, choice: int) -> Sampling:
        """How to sample the answer number `choice`. Raises InvalidRequest naming the field."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if self.seed is None else self.seed + choice,
            logit_bias=self.logit_bias,
            logprobs=self.wanted_logprobs,
        )


class ChatRequest(SamplingFields):
    """A conversation to answer."""

    messages: list[Message] = Field(min_length=1)

    logprobs: bool = False
    """Give each token's log-probability."""

    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """And those of this many likeliest tokens; needs `logprobs`."""

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(SamplingFields):
    """One or several texts to continue, each as text or as token ids."""

    prompt: Annotated[list[str | list[int]], BeforeValidator(_as_prompts)] = Field(min_length=1)
    """A text, a list of texts, a list of token ids, or a list of such lists."""

    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """Give each token's log-probability and those of this many likeliest tokens."""

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs


Request = TypeVar("Request", bound=SamplingFields)


def parse(shape: type[Request], body: object) -> Request:
    """Check a request's body. Raises InvalidRequest naming every field that is wrong."""
    try:
        return shape.model_validate(body)
    except ValidationError as error:
        wrong = [dict(e) for e in error.errors(include_url=False, include_context=False)]
        text = "; ".join(_sentence(shape, e) for e in wrong)
        raise InvalidRequest(text, param=_param(wrong[0])) from None


def _without_neutral(body: Mapping[str, Any], table: Mapping[str, tuple[object, ...]]) -> Any:
    for name in body.keys() & table.keys():
        value = body[name]
        if value is not None and value not in table[name]:
            allowed = "; ".join(repr(v) for v in table[name]) or "null"
            raise ValueError(f"{name} is not supported here; leave it out (or {allowed})")
    return {k: v for k, v in body.items() if k not in table}


def _param(error: dict[str, Any]) -> str | None:
    """`messages.0.content`; a check over several fields begins with the name of one."""
    if error["loc"]:
        return ".".join(str(step) for step in error["loc"])
    word = str(error["msg"]).removeprefix("Value error, ").split(" ", 1)[0]
    known = NEUTRAL.keys() | ChatRequest.model_fields.keys() | CompletionRequest.model_fields.keys()
    return word if word in known else None


def _sentence(shape: type[SamplingFields], error: dict[str, Any]) -> str:
    param, text = _param(error), str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(param), shape.model_fields, n=1, cutoff=0.75)
        return f"{param} is no field of this request" + (f"; is it {near[0]}?" if near else "")
    if error["type"] == "missing":
        return f"{param} is missing"
    if error["type"] == "value_error":
        return f"{param}: {text}" if error["loc"] else text
    if error["type"] in ("model_type", "dict_type"):
        text = "must be an object"
    text = text.replace(" after validation", "")
    found = repr(error["input"])[:60]
    return f"{param or 'the body'}: {text[:1].lower()}{text[1:]} (it is {found})"
