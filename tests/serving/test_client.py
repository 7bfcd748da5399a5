"""Clients: the official `openai` one, unchanged, and ours where things go wrong."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import openai
import pytest

from appliance.bundle.read import Bundle
from appliance.errors import DeadlineExceeded, DeployError, EngineFailed
from serving.client import Client, RestClient, RpcClient
from serving.server import Running
from tests.serving.conftest import NEVER_ENDS, doors_over, idle, scripted_core, until

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def official(rest_address: str) -> Iterator[openai.OpenAI]:
    address = f"{rest_address}/v1"
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=30) as client:
        yield client


def test_openai_chat(official: openai.OpenAI) -> None:
    asked = {"model": "tiny", "temperature": 0, "max_completion_tokens": 10}
    first = official.chat.completions.create(messages=HELLO, **asked)
    assert first.choices[0].message.role == "assistant"
    assert first.usage is not None and first.usage.completion_tokens > 0
    # Its own message objects go back into the conversation, null fields and all.
    talk = [*HELLO, first.choices[0].message.model_dump(), {"role": "user", "content": "More"}]
    second = official.chat.completions.create(messages=talk, **asked)
    assert second.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_openai_chat_stream(official: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 10}
    whole = official.chat.completions.create(**asked)
    stream = official.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.usage == whole.usage


def test_openai_completions(official: openai.OpenAI) -> None:
    asked = {"model": "tiny", "prompt": ["Hello", "Goodbye"], "temperature": 0, "max_tokens": 6}
    whole = official.completions.create(**asked, logprobs=1)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.choices[0].logprobs is not None
    pieces = list(official.completions.create(**asked, stream=True))
    for choice in whole.choices:
        mine = [p.choices[0].text for p in pieces if p.choices[0].index == choice.index]
        assert "".join(mine) == choice.text


def test_openai_logprobs(official: openai.OpenAI) -> None:
    found = official.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2, seed=1
    )
    assert found.choices[0].logprobs is not None
    assert all(len(t.top_logprobs) == 2 for t in found.choices[0].logprobs.content or [])


def test_openai_models(official: openai.OpenAI) -> None:
    assert [model.id for model in official.models.list()] == ["tiny"]
    assert official.models.retrieve("tiny").id == "tiny"


def test_openai_errors(official: openai.OpenAI) -> None:
    chat = official.chat.completions.create
    with pytest.raises(openai.BadRequestError) as caught:
        chat(model="tiny", messages=HELLO, temperature=5)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as caught:
        chat(model="tiny", messages=HELLO, max_tokens=5000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        chat(model="gpt-4o", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        official.models.retrieve("gpt-4o")


def test_openai_is_told_that_the_queue_is_full(
    official: openai.OpenAI, deployment: Running
) -> None:
    asked = {"model": "tiny", "messages": HELLO, "logit_bias": {"2": -100}}
    with official.chat.completions.create(**asked, n=4, stream=True):
        until(lambda: deployment.core.stats()["active"] == 2)
        with pytest.raises(openai.RateLimitError, match="4 of 4 places"):
            official.chat.completions.create(**asked)
    until(lambda: idle(deployment.core), within=2)


def test_openai_sees_an_error_in_a_stream(opened: Bundle) -> None:
    with scripted_core(opened, "abcdef", fail_at=3) as core, doors_over(core) as (rest, _):
        client = openai.OpenAI(base_url=f"{rest}/v1", api_key="none", max_retries=0)
        seen = []
        with client, pytest.raises(openai.APIError, match="engine"):
            for piece in client.completions.create(model="tiny", prompt="x", stream=True):
                seen.append(piece.choices[0].text)
        assert "".join(seen) == "abc"


def test_openai_closing_a_stream_frees_the_slot(
    official: openai.OpenAI, deployment: Running
) -> None:
    stream = official.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, logit_bias={"2": -100}
    )
    next(iter(stream))
    assert deployment.core.stats()["active"] == 1
    stream.close()
    until(lambda: idle(deployment.core), within=2)


@pytest.fixture(params=[RestClient, RpcClient])
def client(request: pytest.FixtureRequest, rest_address: str, rpc_address: str) -> Iterator[Client]:
    address = rest_address if request.param is RestClient else rpc_address
    with request.param(address) as client:
        yield client


def test_leaving_a_stream_frees_the_slot(client: Client, deployment: Running) -> None:
    stream = client.chat_stream(HELLO, logit_bias=NEVER_ENDS)
    while not next(stream).text:
        pass
    assert deployment.core.stats()["active"] == 1
    stream.close()
    until(lambda: idle(deployment.core), within=2)


@pytest.mark.parametrize("kind", [RestClient, RpcClient])
def test_nothing_listens(kind: type[RestClient] | type[RpcClient]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with kind(address) as client:
            for call in (client.ready, client.models, lambda: client.chat(HELLO)):
                with pytest.raises(DeployError, match=f"nothing answers at .*{address}") as caught:
                    call()
                assert "appliance serve" in caught.value.hint


def test_a_proxy_of_the_environment_is_for_the_outside(
    rest_address: str, rpc_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with RestClient(f"{rest_address}/v1/") as rest, RpcClient(rpc_address) as rpc:
        assert rest.models() == rpc.models()


def test_the_wrong_port(rest_address: str, rpc_address: str) -> None:
    with RestClient(rpc_address) as client, pytest.raises(DeployError, match="not as an") as caught:
        client.ready()
    assert "gRPC has another" in caught.value.hint
    with RestClient(rpc_address) as client, pytest.raises((DeployError, EngineFailed)):
        client.models()
    with RpcClient(rest_address) as client, pytest.raises((DeployError, EngineFailed)):
        client.models()


@pytest.mark.parametrize("kind", [RestClient, RpcClient])
def test_a_call_has_an_end(opened: Bundle, kind: type[RestClient] | type[RpcClient]) -> None:
    with scripted_core(opened, "a" * 400, pause=0.1) as core, doors_over(core) as addresses:
        address = addresses[0] if kind is RestClient else addresses[1]
        with kind(address, timeout=0.5) as client, pytest.raises(DeadlineExceeded):
            client.generate("x", max_completion_tokens=400)
        until(lambda: idle(core), within=2)
