"""A client of the gRPC door."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typing_extensions import Self, Unpack

from appliance.errors import DeadlineExceeded, DeployError, EngineFailed
from serving.client.results import (
    CONNECT_TIMEOUT,
    TIMEOUT,
    Answer,
    Choice,
    Chunk,
    Messages,
    Model,
    Options,
    TokenLogprob,
    Usage,
)
from serving.rpc.v1 import appliance_pb2 as pb
from serving.rpc.v1 import appliance_pb2_grpc as pb_grpc
from serving.rpc.wire import ERROR_KEY, MAX_REQUEST, REASONS
from serving.table import error_of

DEFAULT_ADDRESS = "127.0.0.1:8001"

_REASONS = {number: reason for reason, number in REASONS.items()}


class RpcClient:
    """A client of the gRPC door at `address` (host:port); `timeout` in seconds for a call, a
    stream's whole length included. See `results.Client`."""

    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout: float = TIMEOUT) -> None:
        self.address = address.split("://", 1)[-1].rstrip("/")
        self._timeout = timeout
        self._channel = grpc.insecure_channel(
            self.address,
            options=(
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", MAX_REQUEST),
                # The environment's proxy speaks HTTP/1.1.
                ("grpc.enable_http_proxy", 0),
            ),
        )
        self._stub = pb_grpc.LanguageModelStub(self._channel)

    def chat(self, messages: Messages, **options: Unpack[Options]) -> Answer:
        """Answer a conversation."""
        with self._errors():
            return _answer(self._stub.Chat(_chat(messages, options), timeout=self._timeout))

    def chat_stream(
        self, messages: Messages, **options: Unpack[Options]
    ) -> Generator[Chunk, None, None]:
        """Answer a conversation, piece by piece."""
        with self._errors():
            yield from _chunks(
                self._stub.ChatStream(_chat(messages, options), timeout=self._timeout)
            )

    def generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Answer:
        """Continue a text or token ids."""
        with self._errors():
            return _answer(self._stub.Generate(_generate(prompt, options), timeout=self._timeout))

    def generate_stream(
        self, prompt: str | Sequence[int], **options: Unpack[Options]
    ) -> Generator[Chunk, None, None]:
        """Continue a text or token ids, piece by piece."""
        with self._errors():
            request = _generate(prompt, options)
            yield from _chunks(self._stub.GenerateStream(request, timeout=self._timeout))

    def models(self) -> list[Model]:
        """What is served."""
        with self._errors():
            found = self._stub.Models(pb.ModelsRequest(), timeout=CONNECT_TIMEOUT)
            return [Model(m.id, m.max_length) for m in found.models]

    def ready(self) -> bool:
        """Whether the server takes requests."""
        with self._errors():
            stub = health_pb2_grpc.HealthStub(self._channel)
            found = stub.Check(health_pb2.HealthCheckRequest(), timeout=CONNECT_TIMEOUT)
            return bool(found.status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self._error(error) from error

    def _error(self, error: Any) -> Exception:
        found = dict(error.trailing_metadata() or ()).get(ERROR_KEY)
        if found is not None:
            named = pb.Error.FromString(found)
            return error_of(named.code, named.message, named.param or None)
        code, details = error.code(), error.details()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"{self.address} did not answer in time")
        if code is grpc.StatusCode.UNAVAILABLE:
            return DeployError(
                f"nothing answers at {self.address}: {details}",
                hint="Start a server with `appliance serve BUNDLE`, or name its gRPC address.",
            )
        return EngineFailed(f"{self.address}: {details} ({code.name})")


def _options(options: Options) -> pb.Options:
    values: dict[str, Any] = {name: value for name, value in options.items() if name != "model"}
    try:
        return pb.Options(**values)
    except (TypeError, ValueError) as error:
        raise error_of("invalid_value", f"the options are wrong: {error}", None) from error


def _chat(messages: Messages, options: Options) -> pb.ChatRequest:
    sent = [pb.Message(role=m["role"], content=m["content"]) for m in messages]
    return pb.ChatRequest(model=options.get("model"), messages=sent, options=_options(options))


def _generate(prompt: str | Sequence[int], options: Options) -> pb.GenerateRequest:
    request = pb.GenerateRequest(model=options.get("model"), options=_options(options))
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.tokens.CopyFrom(pb.TokenIds(ids=prompt))
    return request


def _answer(found: pb.Answer) -> Answer:
    choices = tuple(
        Choice(c.index, c.text, _REASONS.get(c.finish_reason), tuple(map(_token, c.logprobs)))
        for c in found.choices
    )
    return Answer(found.id, found.model, choices, _usage(found.usage))


def _token(token: pb.TokenLogprob) -> TokenLogprob:
    top = tuple((a.token, a.logprob) for a in token.top_logprobs)
    return TokenLogprob(token.token, token.logprob, top)


def _usage(usage: pb.Usage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


def _chunks(call: Any) -> Iterator[Chunk]:
    """The pieces of a stream, cancelled where it is left early."""
    try:
        for chunk in call:
            if chunk.HasField("usage"):
                yield Chunk(usage=_usage(chunk.usage))
            else:
                choice = chunk.choice
                yield Chunk(choice.index, choice.text, _REASONS.get(choice.finish_reason))
    finally:
        call.cancel()
