"""The gRPC door: protos/appliance/v1 over the core."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc

from appliance.errors import RequestCancelled, RequestError
from serving.answer import Delta, TokenLogprob, Usage, Whole
from serving.core import Answer, Core
from serving.requests import ChatRequest, CompletionRequest, parse
from serving.rpc.v1 import appliance_pb2 as pb
from serving.rpc.v1 import appliance_pb2_grpc as pb_grpc
from serving.rpc.wire import ERROR_KEY, REASONS
from serving.table import message_of, param_of, row_of

logger = logging.getLogger(__name__)


class LanguageModel(pb_grpc.LanguageModelServicer):  # type: ignore[misc]
    """The service. Each call runs in a thread of the server's pool."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def Chat(self, request: pb.ChatRequest, context: grpc.ServicerContext) -> pb.Answer:
        """Answer a conversation."""
        return _whole(context, lambda: self._core.chat(chat_request(request)))

    def ChatStream(
        self, request: pb.ChatRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.Chunk]:
        """Answer a conversation, piece by piece."""
        return _pieces(context, lambda: self._core.chat(chat_request(request)))

    def Generate(self, request: pb.GenerateRequest, context: grpc.ServicerContext) -> pb.Answer:
        """Continue a text."""
        return _whole(context, lambda: self._core.complete(completion_request(request)))

    def GenerateStream(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.Chunk]:
        """Continue a text, piece by piece."""
        return _pieces(context, lambda: self._core.complete(completion_request(request)))

    def Models(self, request: pb.ModelsRequest, context: grpc.ServicerContext) -> pb.ModelsResponse:
        """List what is served."""
        core = self._core
        model = pb.Model(id=core.name, created=core.created, max_length=core.max_length)
        return pb.ModelsResponse(models=[model])


def chat_request(request: pb.ChatRequest) -> ChatRequest:
    """The core's shape of a message. Raises InvalidRequest."""
    body = _options(request.options)
    logprobs = body.pop("logprobs", None)
    if logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": logprobs}
    messages = [{"role": m.role, "content": m.content} for m in request.messages]
    return parse(ChatRequest, {**body, "model": request.model or None, "messages": messages})


def completion_request(request: pb.GenerateRequest) -> CompletionRequest:
    """The core's shape of a message. Raises InvalidRequest."""
    body: dict[str, Any] = {**_options(request.options), "model": request.model or None}
    kind = request.WhichOneof("prompt")
    if kind == "text":
        body["prompt"] = request.text
    elif kind == "tokens":
        body["prompt"] = list(request.tokens.ids)
    return parse(CompletionRequest, body)


def _options(options: pb.Options) -> dict[str, Any]:
    """The fields that are set; `options` calls them what the core does."""
    values = {field.name: value for field, value in options.ListFields()}
    if "stop" in values:
        values["stop"] = list(values["stop"])
    if "logit_bias" in values:
        values["logit_bias"] = dict(values["logit_bias"])
    return values


def _whole(context: grpc.ServicerContext, begin: Callable[[], Answer]) -> pb.Answer:
    try:
        answer = _begin(context, begin)
        choices = [_choice(index, whole) for index, whole in enumerate(answer.gather())]
    except Exception as error:
        _abort(context, error)
    return pb.Answer(**_head(answer), choices=choices, usage=_usage(answer.usage))


def _pieces(context: grpc.ServicerContext, begin: Callable[[], Answer]) -> Iterator[pb.Chunk]:
    try:
        answer = _begin(context, begin)
        head = _head(answer)
        for delta in answer:
            yield pb.Chunk(**head, choice=_choice(delta.index, delta))
        yield pb.Chunk(**head, usage=_usage(answer.usage))
    except Exception as error:
        _abort(context, error)


def _begin(context: grpc.ServicerContext, begin: Callable[[], Answer]) -> Answer:
    """Start an answer that ends when the call does: cancelled, past its deadline, or done."""
    answer = begin()
    if not context.add_callback(answer.cancel):
        answer.cancel()
        raise RequestCancelled("the client went away")
    return answer


def _abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    if not isinstance(error, RequestError):
        logger.error("a request failed", exc_info=error)
    row, message, param = row_of(error), message_of(error), param_of(error)
    detail = pb.Error(message=message, type=row.type, param=param or "", code=row.code)
    context.set_trailing_metadata(((ERROR_KEY, detail.SerializeToString()),))
    context.abort(row.grpc, message)
    raise AssertionError("abort raises")


def _head(answer: Answer) -> dict[str, Any]:
    return {"id": answer.id, "model": answer.model, "created": answer.created}


def _usage(usage: Usage) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
    )


def _choice(index: int, piece: Delta | Whole) -> pb.Choice:
    return pb.Choice(
        index=index,
        text=piece.text,
        finish_reason=REASONS[piece.finish_reason] if piece.finish_reason else None,
        logprobs=[_token(token) for token in piece.logprobs],
    )


def _token(token: TokenLogprob) -> pb.TokenLogprob:
    top = [pb.Alternative(token=a.token, raw=a.bytes, logprob=a.logprob) for a in token.top]
    return pb.TokenLogprob(
        token=token.token, raw=token.bytes, logprob=token.logprob, top_logprobs=top
    )
