"""The same cases through both doors: text, usage, reason for the end, error."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from appliance.bundle.read import Bundle
from appliance.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PromptTooLong,
    RequestCancelled,
    RequestError,
)
from serving.answer import Whole
from serving.client import Chunk, Client, RestClient, RpcClient
from serving.client.results import Options
from serving.core import Answer, Core
from serving.requests import CompletionRequest
from serving.server import Running
from tests.serving.conftest import NEVER_ENDS, doors_over, idle, scripted_core, until

SYSTEM = {"role": "system", "content": "Answer in one word."}
HELLO = {"role": "user", "content": "Hello"}
TALK = [
    SYSTEM,
    HELLO,
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "你好🙂"},
]

Ask = Callable[..., Any]
Case = tuple[str, Any, dict[str, Any]]

CASES: dict[str, Case] = {
    "greedy": ("chat", [HELLO], {"temperature": 0, "max_completion_tokens": 40}),
    "talk": ("chat", TALK, {"temperature": 0, "max_completion_tokens": 40}),
    "seeded": ("chat", [HELLO], {"seed": 5, "max_completion_tokens": 40}),
    "several": ("chat", [HELLO], {"seed": 5, "n": 3, "max_completion_tokens": 20}),
    "narrow": ("chat", [HELLO], {"seed": 1, "top_p": 0.5, "top_k": 9, "max_completion_tokens": 20}),
    "penalties": (
        "chat",
        [HELLO],
        {
            "temperature": 0,
            "presence_penalty": 1.5,
            "frequency_penalty": 0.5,
            "repetition_penalty": 1.3,
            "max_completion_tokens": 30,
        },
    ),
    "biased": ("chat", [HELLO], {"logit_bias": {65: 100.0}, "max_completion_tokens": 5}),
    "ends": ("chat", [HELLO], {"logit_bias": {2: 100.0}}),
    "stop": ("generate", "Hello", {"seed": 3, "stop": ["e", "a"], "max_completion_tokens": 200}),
    "default length": ("generate", "Hello", {"seed": 3, "logit_bias": NEVER_ENDS}),
    "ids": ("generate", [10, 11, 12], {"temperature": 0, "max_completion_tokens": 10}),
    "logprobs": ("chat", [HELLO], {"temperature": 0, "logprobs": 3, "max_completion_tokens": 8}),
    "logprobs of chosen": ("generate", "Hello", {"temperature": 0, "logprobs": 0}),
    "logprobs of halves": (
        "generate",
        "你好",
        {
            "temperature": 0,
            "logprobs": 20,
            # The bytes of 你 and the beginnings of many other characters.
            "logit_bias": dict.fromkeys(range(103, 259), 50.0),
        },
    ),
    "named": ("generate", "Hello", {"temperature": 0, "model": "tiny"}),
}

FIELDS: dict[str, dict[str, Any]] = {
    "model": {"model": "tiny"},
    "max_completion_tokens": {"max_completion_tokens": 5},
    "temperature": {"temperature": 1.9},
    "top_p": {"top_p": 0.2},
    "top_k": {"top_k": 2},
    "n": {"n": 2},
    "stop": {"stop": ["e", "a", "t"]},
    "presence_penalty": {"presence_penalty": 2.0},
    "frequency_penalty": {"frequency_penalty": 2.0},
    "repetition_penalty": {"repetition_penalty": 3.0},
    "logit_bias": {"logit_bias": {**NEVER_ENDS, 70: 9.0}},
    "seed": {"seed": 77},
    "logprobs": {"logprobs": 2},
}
"""Each option of the clients, with a value that changes the answer below."""

REFUSED: dict[str, tuple[Case, type[RequestError]]] = {
    "field": (("chat", [HELLO], {"temperature": 3.0}), InvalidRequest),
    "choices": (("chat", [HELLO], {"n": 500}), InvalidRequest),
    "alternatives": (("chat", [HELLO], {"logprobs": 21}), InvalidRequest),
    "stops": (("chat", [HELLO], {"stop": list("abcde")}), InvalidRequest),
    "bias": (("chat", [HELLO], {"logit_bias": {99999: 1.0}}), InvalidRequest),
    "nobody spoke": (("chat", [], {}), InvalidRequest),
    "no role": (("chat", [{"role": "", "content": "a"}], {}), InvalidRequest),
    "empty": (("generate", "", {}), InvalidRequest),
    "no such token": (("generate", [99999], {}), InvalidRequest),
    "model": (("chat", [HELLO], {"model": "other"}), ModelNotFound),
    "long prompt": (("generate", [5] * 5000, {}), PromptTooLong),
    "long answer": (("chat", [HELLO], {"max_completion_tokens": 5000}), PromptTooLong),
    "crowd": (("chat", [HELLO], {"n": 9, "logit_bias": NEVER_ENDS}), InvalidRequest),
}


@pytest.fixture(scope="module")
def clients(rest_address: str, rpc_address: str) -> Iterator[tuple[Client, Client]]:
    with RestClient(rest_address) as rest, RpcClient(rpc_address) as rpc:
        yield rest, rpc


def ask(client: Client, case: Case, *, stream: bool = False) -> Any:
    kind, about, options = case
    return getattr(client, f"{kind}_stream" if stream else kind)(about, **options)


def texts(chunks: Sequence[Chunk], count: int) -> list[tuple[str, str | None]]:
    """Each choice's text and reason for the end."""
    found = []
    for index in range(count):
        mine = [c for c in chunks if c.index == index and c.usage is None]
        found.append(("".join(c.text for c in mine), mine[-1].finish_reason))
    return found


@pytest.mark.parametrize("name", CASES)
def test_both_doors_answer_the_same(clients: tuple[Client, Client], name: str) -> None:
    by_rest, by_rpc = (ask(client, CASES[name]) for client in clients)
    assert by_rest.choices == by_rpc.choices
    assert by_rest.usage == by_rpc.usage
    assert by_rest.model == by_rpc.model == "tiny"
    assert by_rest.usage.total_tokens > 0
    assert all(choice.finish_reason in ("stop", "length") for choice in by_rest.choices)


@pytest.mark.parametrize("name", CASES)
def test_both_doors_stream_the_same(clients: tuple[Client, Client], name: str) -> None:
    answer = ask(clients[0], CASES[name])
    for client in clients:
        chunks = list(ask(client, CASES[name], stream=True))
        expected = [(choice.text, choice.finish_reason) for choice in answer.choices]
        assert texts(chunks, len(answer.choices)) == expected
        assert chunks[-1].usage == answer.usage


def test_every_option_has_its_case() -> None:
    assert FIELDS.keys() == Options.__annotations__.keys()


@pytest.mark.parametrize("kind", ["chat", "generate"])
@pytest.mark.parametrize("name", FIELDS)
def test_every_option_does_the_same_through_both_doors(
    clients: tuple[Client, Client], kind: str, name: str
) -> None:
    about: Any = [HELLO] if kind == "chat" else "Hello"
    # The same byte again and again is likely, for the penalties to lower.
    plain = {"seed": 3, "max_completion_tokens": 24, "logit_bias": {**NEVER_ENDS, 70: 6.0}}
    without = ask(clients[0], (kind, about, plain))
    by_rest, by_rpc = (ask(client, (kind, about, {**plain, **FIELDS[name]})) for client in clients)
    assert by_rest.choices == by_rpc.choices
    assert by_rest.usage == by_rpc.usage
    assert (by_rest.choices == without.choices) is (name == "model")


def refusal(call: Callable[[], object]) -> tuple[type[RequestError], str, str | None]:
    with pytest.raises(RequestError) as caught:
        call()
    return type(caught.value), caught.value.message, caught.value.param


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", REFUSED)
def test_both_doors_refuse_the_same(
    clients: tuple[Client, Client], name: str, stream: bool
) -> None:
    case, error = REFUSED[name]

    def refused_by(client: Client) -> tuple[type[RequestError], str, str | None]:
        return refusal(
            lambda: list(ask(client, case, stream=True)) if stream else ask(client, case)
        )

    by_rest, by_rpc = map(refused_by, clients)
    assert by_rest == by_rpc
    assert by_rest[0] is error


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_both_doors_are_full_together(
    clients: tuple[Client, Client], deployment: Running, stream: bool
) -> None:
    case: Case = (
        "generate",
        "a",
        {"n": 4, "max_completion_tokens": 4000, "logit_bias": NEVER_ENDS},
    )
    running = ask(clients[0], case, stream=True)
    next(running)
    found = {refusal(lambda: list(ask(c, case, stream=stream))) for c in clients}  # noqa: B023
    running.close()
    until(lambda: idle(deployment.core))
    assert {f[0] for f in found} == {Overloaded}
    assert len(found) == 1


@contextlib.contextmanager
def both(core: Core) -> Iterator[tuple[Client, Client]]:
    with doors_over(core) as (rest, rpc), RestClient(rest) as one, RpcClient(rpc) as other:
        yield one, other


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_both_doors_say_that_the_time_is_up(opened: Bundle, stream: bool) -> None:
    case: Case = ("generate", "a", {"max_completion_tokens": 400})
    with scripted_core(opened, "a" * 400, pause=0.05, timeout=0.4) as core, both(core) as clients:
        found = {refusal(lambda: list(ask(c, case, stream=stream))) for c in clients}  # noqa: B023
    assert {f[0] for f in found} == {DeadlineExceeded}
    assert len(found) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_both_doors_say_that_the_engine_broke(opened: Bundle, stream: bool) -> None:
    case: Case = ("generate", "a", {})
    with scripted_core(opened, "abcdef", fail_at=2) as core, both(core) as clients:
        found = {refusal(lambda: list(ask(c, case, stream=stream))) for c in clients}  # noqa: B023
    assert {f[0] for f in found} == {EngineFailed}
    assert len(found) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_both_doors_say_that_the_answer_was_cancelled(
    opened: Bundle, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    case: Case = ("generate", "a", {"max_completion_tokens": 400})
    with scripted_core(opened, "a" * 400, pause=0.02) as core, both(core) as clients:
        complete = core.complete

        def cancelled(request: CompletionRequest) -> Answer:
            answer = complete(request)
            threading.Timer(0.1, answer.cancel).start()
            return answer

        monkeypatch.setattr(core, "complete", cancelled)
        found = {refusal(lambda: list(ask(c, case, stream=stream))) for c in clients}  # noqa: B023
    assert {f[0] for f in found} == {RequestCancelled}
    assert len(found) == 1


def test_a_model_without_a_template_completes_and_does_not_chat(opened: Bundle) -> None:
    plain = dataclasses.replace(
        opened, tokenizer=dataclasses.replace(opened.tokenizer, chat_template=None)
    )
    with scripted_core(plain, "abc") as core, both(core) as clients:
        for stream in (False, True):
            case: Case = ("chat", [HELLO], {})
            found = {refusal(lambda: list(ask(c, case, stream=stream))) for c in clients}  # noqa: B023
            ((kind, message, param),) = found
            assert kind is InvalidRequest
            assert "no chat template" in message and "/v1/completions" in message
            assert param == "messages"
        assert [ask(client, ("generate", "a", {})).text for client in clients] == ["abc", "abc"]


def test_a_defect_of_ours_is_no_ones_to_read(
    opened: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(request: object) -> None:
        raise RuntimeError("a secret of the house")

    with scripted_core(opened, "a") as core, both(core) as clients:
        monkeypatch.setattr(core, "chat", broken)
        found = {refusal(lambda: ask(c, ("chat", [HELLO], {}))) for c in clients}  # noqa: B023
    assert len(found) == 1
    assert "secret" not in next(iter(found))[1]
    assert caplog.text.count("RuntimeError: a secret of the house") == 2


@pytest.mark.parametrize(
    "text", ["你好，世界🙂👩‍👩‍👧é", "a\u2028b\u2029c\x85d\x0b\x0c\x1ce\r\nf\tg\x00h"]
)
def test_both_doors_give_text_as_it_is(opened: Bundle, text: str) -> None:
    case: Case = ("generate", "x", {"max_completion_tokens": 100})
    with scripted_core(opened, text) as core, both(core) as clients:
        for client in clients:
            assert ask(client, case).text == text
            chunks = list(ask(client, case, stream=True))
            assert texts(chunks, 1) == [(text, "stop")]
            assert not any("\ufffd" in chunk.text for chunk in chunks)


def test_both_doors_give_long_answers_whole(
    opened: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many choices with log-probabilities are longer than gRPC's usual 4 MiB."""
    long = Whole("好" * (3 << 20), [], "stop")
    monkeypatch.setattr(Answer, "gather", lambda self: [long])
    with scripted_core(opened, "a") as core, both(core) as clients:
        assert [ask(c, ("generate", "x", {})).text == long.text for c in clients] == [True, True]


def test_both_doors_list_the_model(clients: tuple[Client, Client]) -> None:
    rest, rpc = clients
    assert rest.models() == rpc.models()
    assert [m.id for m in rest.models()] == ["tiny"]
    assert rest.ready() and rpc.ready()
