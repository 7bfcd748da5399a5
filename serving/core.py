"""The one path of a request: validate, render, admit, generate, decode, stop, count.

The doors turn their protocol's messages into the shapes of `serving.requests` and the answer's
pieces back; everything that an answer depends on is here.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from appliance.bundle.read import Bundle
from appliance.errors import (
    ChatError,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    PromptTooLong,
    RequestError,
)
from serving.answer import Choice, Delta, Usage, Whole, interleave
from serving.requests import (
    DEFAULT_COMPLETION_TOKENS,
    ChatRequest,
    CompletionRequest,
    SamplingFields,
)
from serving.scheduler import Request, Scheduler

logger = logging.getLogger(__name__)


class Answer:
    """What a request gets: iterate once for its pieces. Ends its generations when left early."""

    def __init__(self, kind: str, model: str, prompt_tokens: int, choices: list[Choice]) -> None:
        self.id = f"{kind}-{uuid.uuid4().hex}"
        self.model = model
        self.created = int(time.time())
        """Seconds since 1970."""
        self.done = False
        """Whether the answer has ended or was cancelled."""
        self._prompt_tokens = prompt_tokens
        self._choices = choices

    def __iter__(self) -> Iterator[Delta]:
        """Pieces of all choices as they come. Raises a RequestError where the answer breaks off."""
        began, outcome = time.monotonic(), "left"
        try:
            yield from interleave(self._choices)
            outcome = "answered"
        except RequestError as error:
            outcome = type(error).__name__
            raise
        finally:
            self.cancel()
            usage, seconds = self.usage, time.monotonic() - began
            logger.info(
                "%s %s: %d tokens read, %d generated, %.2f s",
                self.id,
                outcome,
                usage.prompt_tokens,
                usage.completion_tokens,
                seconds,
            )

    def gather(self) -> list[Whole]:
        """All choices, whole. Raises what iterating raises."""
        choices = [Whole() for _ in self._choices]
        for delta in self:
            choices[delta.index].add(delta)
        return choices

    @property
    def usage(self) -> Usage:
        """Tokens so far; final when the pieces are."""
        return Usage(self._prompt_tokens, sum(choice.tokens for choice in self._choices))

    @property
    def size(self) -> int:
        """Number of choices."""
        return len(self._choices)

    def cancel(self) -> None:
        """End what still runs; from any thread, at any time, more than once."""
        self.done = True
        for choice in self._choices:
            choice.cancel()


class Core:
    """A bundle with a scheduler, answering requests; safe to share between threads."""

    def __init__(
        self,
        bundle: Bundle,
        scheduler: Scheduler,
        *,
        name: str,
        request_timeout: float,
    ) -> None:
        self.name = name
        self.created = int(time.time())
        self.max_length = scheduler.max_length
        """Longest prompt and answer together, in tokens."""
        self.fingerprint = f"fp_{str(bundle.manifest['seal'])[:12]}"
        """Names the sealed bundle, so that a client sees when another model answers."""
        self._tokenizer = bundle.tokenizer
        self._stop_ids = bundle.eos_ids
        self._model_length = bundle.graph.max_length
        self._scheduler = scheduler
        self._timeout = request_timeout
        self._closing = threading.Event()

    def chat(self, request: ChatRequest) -> Answer:
        """Answer a conversation.

        Raises, before anything is generated, InvalidRequest, PromptTooLong, ModelNotFound or
        Overloaded.
        """
        self.check_model(request.model)
        self._check_count(1, request.n)
        messages = [m.model_dump(exclude_none=True) for m in request.messages]
        try:
            text = self._tokenizer.render(messages, add_generation_prompt=True)
        except (ChatError, ModelError) as error:
            raise InvalidRequest(error.message, hint=error.hint, param="messages") from error
        prompt = tuple(self._encode(text, "messages"))
        tokens = self._budget(len(prompt), request.max_new_tokens, "messages")
        return self._answer("chatcmpl", request, [(prompt, tokens)])

    def complete(self, request: CompletionRequest) -> Answer:
        """Continue each prompt; choice `i * n + j` is the answer `j` to the prompt `i`.

        Raises as `chat` does.
        """
        self.check_model(request.model)
        self._check_count(len(request.prompt), request.n)
        wanted = request.max_new_tokens or DEFAULT_COMPLETION_TOKENS
        prompts = [self._ids(prompt) for prompt in request.prompt]
        budgets = [self._budget(len(prompt), wanted, "prompt") for prompt in prompts]
        return self._answer("cmpl", request, list(zip(prompts, budgets, strict=True)))

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFound unless `name` is the served model's, or None."""
        if name is not None and name != self.name:
            raise ModelNotFound(
                f"the model {name!r} is not served here",
                hint=f"Ask for {self.name!r}",
                param="model",
            )

    @property
    def ready(self) -> bool:
        """Whether requests are taken and the engine works."""
        return not self._closing.is_set() and self._scheduler.healthy

    def stats(self) -> dict[str, Any]:
        """The scheduler's counts."""
        return self._scheduler.stats()

    def close(self, *, drain: float) -> None:
        """Refuse new requests, give running ones `drain` seconds, end the rest."""
        self._closing.set()
        self._scheduler.close(drain=drain)

    def _check_count(self, prompts: int, n: int) -> None:
        """Refuse what no waiting would make room for."""
        if prompts * n > self._scheduler.capacity:
            raise InvalidRequest(
                f"this request asks for {prompts * n} answers at once; the server holds "
                f"{self._scheduler.capacity}",
                hint="Ask for fewer, or raise serve.max_queue",
                param="n" if n > 1 else "prompt",
            )

    def _ids(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return (*self._tokenizer.prefix_ids, *self._encode(prompt, "prompt"))
        return tuple(prompt)

    def _encode(self, text: str, param: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"{param}: not valid Unicode: {error}", param=param) from error
        return self._tokenizer.encode(text)

    def _budget(self, prompt: int, wanted: int | None, param: str) -> int:
        """Most tokens of the answer: what is wanted, else what the context leaves."""
        left = self.max_length - prompt
        if left < max(1, wanted or 0):
            asked = f" and asks for {wanted} more" if wanted else ""
            shorter = ", ask for a shorter answer" if wanted else ""
            longer = f", or raise serve.max_length (the model allows {self._model_length})"
            raise PromptTooLong(
                f"prompt and answer may have {self.max_length} tokens together; this request has "
                f"{prompt} in its {param}{asked}",
                hint=f"Shorten the {param}{shorter}"
                + (longer if self.max_length < self._model_length else ""),
                param=param,
            )
        return wanted or left

    def _answer(
        self, kind: str, request: SamplingFields, prompts: list[tuple[tuple[int, ...], int]]
    ) -> Answer:
        generations = self._scheduler.submit_all(
            [
                Request(prompt, tokens, self._stop_ids, request.sampling(choice), self._timeout)
                for prompt, tokens in prompts
                for choice in range(request.n)
            ]
        )
        choices = [
            Choice(i, generation, self._tokenizer, request.stop)
            for i, generation in enumerate(generations)
        ]
        return Answer(kind, self.name, sum(len(prompt) for prompt, _ in prompts), choices)
