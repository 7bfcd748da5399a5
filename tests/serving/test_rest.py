"""The REST door over real sockets: OpenAI's bodies, events and errors."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from appliance.bundle.read import Bundle
from serving.rest.app import MAX_BODY
from serving.server import Running
from tests.serving.conftest import NEVER_ENDS, doors_over, idle, scripted_core, until

HELLO = [{"role": "user", "content": "Hello"}]
FOREVER = {"max_tokens": 4000, "logit_bias": NEVER_ENDS}


@pytest.fixture
def http(rest_address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=rest_address, timeout=30) as client:
        yield client


def events(response: httpx.Response) -> list[Any]:
    """The data of a stream's events; the text `[DONE]` as it is."""
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    data = [block.removeprefix("data: ") for block in blocks]
    return [d if d == "[DONE]" else json.loads(d) for d in data]


def test_chat(http: httpx.Client) -> None:
    asked = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_completion_tokens": 8}
    response = http.post("/v1/chat/completions", json=asked)
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "tiny"
    assert body["system_fingerprint"].startswith("fp_")
    assert abs(body["created"] - time.time()) < 60
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    assert choice["logprobs"] is None
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_chat_stream_says_what_the_answer_says(http: httpx.Client) -> None:
    asked = {"messages": HELLO, "temperature": 0, "max_tokens": 12, "n": 2}
    whole = http.post("/v1/chat/completions", json=asked).json()
    response = http.post("/v1/chat/completions", json={**asked, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response)
    assert done == "[DONE]"
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({c["id"] for c in chunks}) == 1
    assert not any("usage" in c for c in chunks)
    for index in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(c["delta"].get("content", "") for c in mine)
        assert text == whole["choices"][index]["message"]["content"]
        reasons = [c["finish_reason"] for c in mine]
        assert reasons[-1] == whole["choices"][index]["finish_reason"]
        assert reasons[:-1] == [None] * (len(mine) - 1)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_usage_in_a_stream_where_it_is_asked_for(http: httpx.Client, path: str) -> None:
    prompt = {"messages": HELLO} if "chat" in path else {"prompt": "Hello"}
    asked = {**prompt, "temperature": 0, "max_tokens": 6}
    usage = http.post(path, json=asked).json()["usage"]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last, done = events(http.post(path, json={**asked, **options}))
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"] == usage
    assert all(c["usage"] is None for c in chunks)


def test_completions_with_logprobs(http: httpx.Client) -> None:
    asked = {"prompt": "Hello", "temperature": 0, "max_tokens": 5, "logprobs": 2}
    body = http.post("/v1/completions", json={**asked, "logit_bias": NEVER_ENDS}).json()
    assert body["object"] == "text_completion"
    found = body["choices"][0]["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == 5
    assert all(len(top) == 2 for top in found["top_logprobs"])
    assert found["text_offset"][:2] == [0, len(found["tokens"][0])]


def test_completions_name_and_place_halves_of_characters(opened: Bundle) -> None:
    ids = opened.tokenizer.encode("a龘b")
    assert len(ids) == 5
    with scripted_core(opened, "a龘b") as core, doors_over(core) as (rest, _):
        asked = {"prompt": "x", "logprobs": 20}
        choice = httpx.post(f"{rest}/v1/completions", json=asked).json()["choices"][0]
        *pieces, _ = events(httpx.post(f"{rest}/v1/completions", json={**asked, "stream": True}))
    assert choice["text"] == "a龘b"
    found = choice["logprobs"]
    assert found["tokens"] == ["a", r"bytes:\xe9", r"bytes:\xbe", r"bytes:\x98", "b"]
    assert found["text_offset"] == [0, 1, 1, 1, 2]
    assert [len(top) for top in found["top_logprobs"]] == [20] * 5
    assert next(iter(found["top_logprobs"][1])) == r"bytes:\xe9"
    streamed = [piece["choices"][0]["logprobs"] for piece in pieces]
    assert {key: [x for s in streamed for x in s[key]] for key in found} == found


def test_chat_logprobs(http: httpx.Client) -> None:
    asked = {"messages": HELLO, "max_tokens": 4, "logprobs": True, "logit_bias": NEVER_ENDS}
    body = http.post("/v1/chat/completions", json={**asked, "top_logprobs": 3}).json()
    tokens = body["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 4
    for token in tokens:
        assert bytes(token["bytes"]).decode(errors="replace") == token["token"]
        likeliest = [t["logprob"] for t in token["top_logprobs"]]
        assert likeliest == sorted(likeliest, reverse=True)
        assert token["logprob"] <= likeliest[0] <= 0


def test_text_is_sent_as_it_is(opened: Bundle) -> None:
    with scripted_core(opened, "你好🙂") as core, doors_over(core) as (rest, _):
        response = httpx.post(f"{rest}/v1/completions", json={"prompt": "x", "stream": True})
        assert "你" in response.text and "🙂" in response.text
        assert "".join(e["choices"][0]["text"] for e in events(response)[:-1]) == "你好🙂"


def test_events_come_as_they_are_made(opened: Bundle) -> None:
    with scripted_core(opened, "abcdef", pause=0.15) as core, doors_over(core) as (rest, _):
        asked = {"prompt": "x", "stream": True}
        with httpx.stream("POST", f"{rest}/v1/completions", json=asked) as response:
            times = [time.monotonic() for line in response.iter_lines() if line]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert sum(gap > 0.08 for gap in gaps) >= 4


def test_models(http: httpx.Client) -> None:
    body = http.get("/v1/models").json()
    assert body["object"] == "list"
    (model,) = body["data"]
    assert (model["id"], model["object"], model["max_length"]) == ("tiny", "model", 4096)
    assert http.get("/v1/models/tiny").json() == model
    assert http.get("/v1/models/other").status_code == 404


def test_health(http: httpx.Client) -> None:
    response = http.get("/health")
    assert response.status_code == 200
    assert response.json() == {**response.json(), "status": "ok", "model": "tiny", "slots": 2}


def test_connections_that_wait_for_their_next_request_shut_no_one_out(opened: Bundle) -> None:
    with scripted_core(opened, "a") as core, doors_over(core) as (rest, _):
        address = ("127.0.0.1", httpx.URL(rest).port or 0)
        with contextlib.ExitStack() as idle_ones:
            for _ in range(300):
                idle_ones.enter_context(socket.create_connection(address, timeout=10))
            assert httpx.get(f"{rest}/health", timeout=10).status_code == 200


CHAT = "/v1/chat/completions"


def raw(content: bytes, kind: str = "application/json") -> dict[str, Any]:
    """A request with exactly this body."""
    return {"content": content, "headers": {"Content-Type": kind}}


REFUSED: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "broken": ("POST", CHAT, raw(b"{"), 400, "not JSON"),
    "deep": ("POST", CHAT, raw(b"[" * 100_000), 400, "not JSON"),
    "bytes": ("POST", CHAT, raw(b"\xff"), 400, "not JSON"),
    "list": ("POST", CHAT, raw(b"[1]"), 400, "JSON object"),
    "type": ("POST", CHAT, raw(b"{}", "text/plain"), 415, "Content-Type"),
    "field": ("POST", CHAT, {"json": {"messages": HELLO, "temperature": 9}}, 400, "temperature"),
    "surrogate": ("POST", CHAT, raw(b'{"messages": [], "\\udfff": 1}'), 400, "unicode"),
    "model": ("POST", CHAT, {"json": {"messages": HELLO, "model": "other"}}, 404, "other"),
    "large": ("POST", CHAT, {"json": {"x": "y" * MAX_BODY}}, 413, "4 MiB"),
    "method": ("GET", CHAT, {}, 405, "POST"),
    "path": ("GET", "/v2/models", {}, 404, "/v2/models"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_errors_are_openais(http: httpx.Client, case: str) -> None:
    method, path, content, status, says = REFUSED[case]
    response = http.request(method, path, **content)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_stream_that_is_refused_has_a_status(http: httpx.Client) -> None:
    asked = {"prompt": "a", "max_tokens": 5000, "stream": True}
    response = http.post("/v1/completions", json=asked)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_an_error_in_a_stream_is_an_event(opened: Bundle) -> None:
    with scripted_core(opened, "abcdef", fail_at=3) as core, doors_over(core) as (rest, _):
        response = httpx.post(f"{rest}/v1/completions", json={"prompt": "x", "stream": True})
        *pieces, error, done = events(response)
        assert response.status_code == 200
        assert "".join(p["choices"][0]["text"] for p in pieces) == "abc"
        assert error["error"]["code"] == "engine_failed"
        assert done == "[DONE]"
        again = httpx.post(f"{rest}/v1/completions", json={"prompt": "x"})
        assert again.status_code == 503


def test_too_many_are_told_to_come_again(deployment: Running, http: httpx.Client) -> None:
    with post(deployment.rest_port, {"prompt": "a", "n": 3, **FOREVER}):
        until(lambda: deployment.core.stats()["active"] == 2)
        response = http.post("/v1/completions", json={"prompt": "a", "n": 2, **FOREVER})
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
    until(lambda: idle(deployment.core))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_goes_away_frees_its_slot(deployment: Running, stream: bool) -> None:
    with post(deployment.rest_port, {"prompt": "a", "stream": stream, **FOREVER}) as connection:
        until(lambda: deployment.core.stats()["active"] == 1)
        if stream:
            assert b"200 OK" in connection.recv(4096)
    until(lambda: idle(deployment.core), within=2)
    assert deployment.core.stats()["requests"]["cancelled"] >= 1


def test_a_client_that_waits_in_the_queue_may_go_too(opened: Bundle) -> None:
    long = {"prompt": "a", "max_tokens": 400, "stream": True}
    with (
        scripted_core(opened, "a" * 400, slots=1, pause=0.05) as core,
        doors_over(core) as (rest, _),
        post(httpx.URL(rest).port or 0, long),
    ):
        until(lambda: core.stats()["active"] == 1)
        with post(httpx.URL(rest).port or 0, long):
            until(lambda: core.stats()["queued"] == 1)
        until(lambda: core.stats()["queued"] == 0, within=2)
        assert core.stats()["active"] == 1


def post(port: int, body: dict[str, Any]) -> socket.socket:
    """A connection on which a completion was asked for."""
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(head.encode() + content)
    return connection
