"""A client of the REST door."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import httpx
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
from serving.table import error_of

DEFAULT_ADDRESS = "http://127.0.0.1:8000"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class RestClient:
    """A client of the REST door at `address`; `timeout` in seconds for a call, or for the pause
    between two pieces of a stream. See `results.Client`."""

    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout: float = TIMEOUT) -> None:
        address = address if "://" in address else f"http://{address}"
        # OpenAI's clients are given the address with /v1; both are meant.
        self.address = address.rstrip("/").removesuffix("/v1")
        limits = httpx.Timeout(timeout, connect=CONNECT_TIMEOUT)
        try:
            # The environment's proxy cannot reach this machine's own addresses.
            proxies = httpx.URL(self.address).host not in LOOPBACK
            self._http = httpx.Client(base_url=self.address, timeout=limits, trust_env=proxies)
        except httpx.InvalidURL as error:
            raise DeployError(
                f"{address!r} is no address: {error}", hint=f"One looks like {DEFAULT_ADDRESS}."
            ) from error

    def chat(self, messages: Messages, **options: Unpack[Options]) -> Answer:
        """Answer a conversation."""
        body = self._post("/v1/chat/completions", _chat_body(messages, options))
        return _answer(body, [_chat_choice(choice) for choice in body["choices"]])

    def chat_stream(
        self, messages: Messages, **options: Unpack[Options]
    ) -> Generator[Chunk, None, None]:
        """Answer a conversation, piece by piece."""
        for body in self._stream("/v1/chat/completions", _chat_body(messages, options)):
            yield from _chunks(body, lambda choice: choice["delta"].get("content") or "")

    def generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Answer:
        """Continue a text or token ids."""
        body = self._post("/v1/completions", _completion_body(prompt, options))
        return _answer(body, [_completion_choice(choice) for choice in body["choices"]])

    def generate_stream(
        self, prompt: str | Sequence[int], **options: Unpack[Options]
    ) -> Generator[Chunk, None, None]:
        """Continue a text or token ids, piece by piece."""
        for body in self._stream("/v1/completions", _completion_body(prompt, options)):
            yield from _chunks(body, lambda choice: choice["text"])

    def models(self) -> list[Model]:
        """What is served."""
        with self._errors():
            response = self._http.get("/v1/models")
            return [Model(m["id"], m["max_length"]) for m in _checked(response)["data"]]

    def ready(self) -> bool:
        """Whether the server takes requests. Raises DeployError where none of ours answers."""
        try:
            with self._errors():
                return bool(_checked(self._http.get("/health"))["status"] == "ok")
        except EngineFailed as error:
            raise self._stranger(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with self._errors():
            return _checked(self._http.post(path, json=body))

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with self._errors(), self._http.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                response.read()
                _checked(response)
            for line in response.iter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    return
                if line:
                    yield _unless_error(json.loads(data))
            raise EngineFailed("the stream broke off", hint="Send the request again.")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise DeployError(
                f"nothing answers at {self.address}: {error}",
                hint="Start a server with `appliance serve BUNDLE`, or name its address.",
            ) from error
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(f"{self.address} did not answer in time") from error
        except (httpx.ReadError, httpx.RemoteProtocolError) as error:
            raise EngineFailed(
                f"{self.address} broke off: {error}", hint="Send the request again."
            ) from error
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise self._stranger(error) from error

    def _stranger(self, error: Exception) -> DeployError:
        return DeployError(
            f"{self.address} answers, but not as an appliance does: {error!r}",
            hint="Check the address and the port: gRPC has another one.",
        )


def _checked(response: httpx.Response) -> dict[str, Any]:
    """The body. Raises the error that it names."""
    body = response.json()
    if not isinstance(body, dict):
        raise ValueError("the body is no JSON object")
    return _unless_error(body)


def _unless_error(body: dict[str, Any]) -> dict[str, Any]:
    if "error" in body:
        error = body["error"]
        raise error_of(error["code"], error["message"], error["param"])
    return body


def _chat_body(messages: Messages, options: Options) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [dict(m) for m in messages], **options}
    if (logprobs := body.pop("logprobs", None)) is not None:
        body |= {"logprobs": True, "top_logprobs": logprobs}
    return body


def _completion_body(prompt: str | Sequence[int], options: Options) -> dict[str, Any]:
    return {"prompt": prompt if isinstance(prompt, str) else list(prompt), **options}


def _answer(body: dict[str, Any], choices: list[Choice]) -> Answer:
    return Answer(body["id"], body["model"], tuple(choices), Usage(**body["usage"]))


def _chat_choice(choice: dict[str, Any]) -> Choice:
    tokens = (choice["logprobs"] or {"content": []})["content"]
    logprobs = tuple(
        TokenLogprob(
            t["token"], t["logprob"], tuple((a["token"], a["logprob"]) for a in t["top_logprobs"])
        )
        for t in tokens
    )
    text = choice["message"]["content"]
    return Choice(choice["index"], text, choice["finish_reason"], logprobs)


def _completion_choice(choice: dict[str, Any]) -> Choice:
    found = choice["logprobs"] or {"tokens": [], "token_logprobs": [], "top_logprobs": []}
    columns = (found["tokens"], found["token_logprobs"], found["top_logprobs"])
    logprobs = tuple(
        TokenLogprob(
            _token_text(token),
            logprob,
            tuple((_token_text(name), value) for name, value in top.items()),
        )
        for token, logprob, top in zip(*columns, strict=True)
    )
    return Choice(choice["index"], choice["text"], choice["finish_reason"], logprobs)


def _token_text(name: str) -> str:
    """The text of a token that a completion names; `bytes:\\xe4` is a part of a character."""
    if not name.startswith("bytes:\\x"):
        return name
    return bytes.fromhex(name.removeprefix("bytes:").replace("\\x", "")).decode(errors="replace")


def _chunks(body: dict[str, Any], text_of: Any) -> Iterator[Chunk]:
    for choice in body["choices"]:
        text, reason = text_of(choice), choice["finish_reason"]
        if text or reason:
            yield Chunk(choice["index"], text, reason)
    if body["usage"] is not None:
        yield Chunk(usage=Usage(**body["usage"]))
