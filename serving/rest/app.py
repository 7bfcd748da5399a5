"""The REST door: OpenAI's paths over the core, as a WSGI application."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from appliance.errors import InvalidRequest, RequestError
from serving.core import Answer, Core
from serving.requests import ChatRequest, CompletionRequest, SamplingFields, parse
from serving.rest import shapes
from serving.rest.watch import Watch
from serving.table import row_of

MAX_BODY = 4 << 20
"""Largest request body, in bytes."""

LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}
"""Ends of lines to Unicode, not to server-sent events: clients that split events as Python's
`splitlines` does, httpx among them, would cut an event in two."""

logger = logging.getLogger(__name__)


def make_app(core: Core, watch: Watch) -> Flask:
    """The application. `watch` ends the answers of clients that went away."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.register_error_handler(Exception, _failed)

    @app.post("/v1/chat/completions")
    def chat() -> Response:
        asked = parse(ChatRequest, _body())
        answer = _watched(watch, core.chat(asked))
        return _reply(core, asked, answer, shapes.chat_body, shapes.chat_chunks)

    @app.post("/v1/completions")
    def completions() -> Response:
        asked = parse(CompletionRequest, _body())
        answer = _watched(watch, core.complete(asked))
        return _reply(core, asked, answer, shapes.completion_body, shapes.completion_chunks)

    @app.get("/v1/models")
    def models() -> Response:
        return _json({"object": "list", "data": [_model(core)]})

    @app.get("/v1/models/<path:name>")
    def model(name: str) -> Response:
        core.check_model(name)
        return _json(_model(core))

    @app.get("/health")
    def health() -> Response:
        status = "ok" if core.ready else "unavailable"
        body = {"status": status, "model": core.name, **core.stats()}
        return _json(body, 200 if core.ready else 503)

    return app


def _model(core: Core) -> shapes.Json:
    return {
        "id": core.name,
        "object": "model",
        "created": core.created,
        "owned_by": "llm-appliance",
        "max_length": core.max_length,
    }


def _body() -> Any:
    if not request.is_json:
        raise _HttpError(415, "the body must be JSON; send Content-Type: application/json")
    try:
        return json.loads(request.get_data())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error


def _watched(watch: Watch, answer: Answer) -> Answer:
    gone: Callable[[], bool] | None = request.environ.get("waitress.client_disconnected")
    if gone is not None:
        watch.add(gone, answer)
    return answer


def _reply(
    core: Core,
    asked: SamplingFields,
    answer: Answer,
    whole: Callable[..., shapes.Json],
    chunks: Callable[..., Iterator[shapes.Json]],
) -> Response:
    logprobs = asked.wanted_logprobs is not None
    if asked.stream:
        usage = asked.include_usage
        return _stream(chunks(answer, core.fingerprint, logprobs=logprobs, include_usage=usage))
    return _json(whole(answer, core.fingerprint, logprobs=logprobs))


def _json(body: shapes.Json, status: int = 200) -> Response:
    # A client's lone surrogates may come back in an error's message; they have no UTF-8.
    text = json.dumps(body, ensure_ascii=False).encode(errors="replace")
    return Response(text, status, mimetype="application/json")


def _stream(chunks: Iterator[shapes.Json]) -> Response:
    """Server-sent events, https://html.spec.whatwg.org/multipage/server-sent-events.html."""

    def events() -> Iterator[str]:
        try:
            for chunk in chunks:
                yield _event(chunk)
        except Exception as error:
            _log(error)
            yield _event(shapes.error_body(error))
        yield "data: [DONE]\n\n"

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return Response(events(), mimetype="text/event-stream", headers=headers)


def _event(body: shapes.Json) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False).translate(LINE_ENDS)}\n\n"


class _HttpError(InvalidRequest):
    """A request that HTTP itself has a status for."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _failed(error: Exception) -> Response:
    """Every failure as OpenAI's error body."""
    if isinstance(error, HTTPException):
        error = _HttpError(error.code or 500, _http_message(error))
    _log(error)
    status = error.status if isinstance(error, _HttpError) else row_of(error).http
    response = _json(shapes.error_body(error), status)
    if status == 429:
        response.headers["Retry-After"] = "1"
    return response


def _http_message(error: HTTPException) -> str:
    where = f"{request.method} {request.path}"
    if error.code == 404:
        return f"{where} is not here; GET /v1/models lists what is served"
    if error.code == 405:
        allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return f"{where}: the method is not allowed here" + (f"; use {allowed}" if allowed else "")
    if error.code == 413:
        return f"the body is larger than {MAX_BODY >> 20} MiB"
    return f"{where}: {error.description}"


def _log(error: Exception) -> None:
    if not isinstance(error, RequestError):
        logger.error("a request failed", exc_info=error)
