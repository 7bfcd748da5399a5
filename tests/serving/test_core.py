"""The core: text, stop strings, counts and refusals, whichever door asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

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
from serving.core import Core
from serving.requests import ChatRequest, CompletionRequest, parse
from serving.sampling import Sampling
from serving.scheduler import Request
from serving.server import Running
from serving.text import StopText
from tests.serving.conftest import NEVER_ENDS, idle, scripted_core, until

HELLO = [{"role": "user", "content": "Hello"}]


def complete(core: Core, prompt: object = "Hello", **fields: object):
    return core.complete(parse(CompletionRequest, {"prompt": prompt, **fields}))


def chat(core: Core, messages: object = HELLO, **fields: object):
    return core.chat(parse(ChatRequest, {"messages": messages, **fields}))


@pytest.fixture(scope="module")
def core(deployment: Running) -> Core:
    return deployment.core


def test_greedy_text_is_the_engines_tokens(core: Core, opened: Bundle) -> None:
    prompt = tuple(opened.tokenizer.encode("Hello"))
    request = Request(prompt, 40, opened.eos_ids, Sampling(temperature=0))
    tokens = [token.id for token in core._scheduler.submit(request)]
    (whole,) = complete(core, temperature=0, max_tokens=40).gather()
    assert len(tokens) > 1
    assert whole.text == opened.tokenizer.decode(tokens)


def test_chat_is_the_rendered_conversation_completed(core: Core, opened: Bundle) -> None:
    prompt = opened.tokenizer.render(HELLO, add_generation_prompt=True)
    asked = {"temperature": 0, "max_tokens": 24}
    answer, completion = chat(core, **asked), complete(core, prompt, **asked)
    assert answer.gather() == completion.gather()
    assert answer.usage == completion.usage
    assert answer.usage.prompt_tokens == len(opened.tokenizer.encode(prompt))


def test_text_parts_are_the_text(core: Core) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    messages = [{"role": "user", "content": parts}]
    asked = {"temperature": 0, "max_tokens": 8}
    assert chat(core, messages, **asked).gather() == chat(core, **asked).gather()


def test_characters_are_never_halved(opened: Bundle) -> None:
    text = "鱼🙂é🇫🇷 龘"
    assert len(opened.tokenizer.encode(text)) > len(text)
    with scripted_core(opened, text) as core:
        deltas = list(complete(core, max_tokens=100))
    assert "".join(d.text for d in deltas) == text
    assert not any("�" in d.text for d in deltas)
    assert deltas[-1].finish_reason == "stop"


def test_an_answer_cut_in_a_character_shows_what_there_is(opened: Bundle) -> None:
    with scripted_core(opened, "a🙂") as core:
        (whole,) = complete(core, max_tokens=3).gather()
    assert whole.text.startswith("a�")
    assert whole.finish_reason == "length"


@pytest.mark.parametrize("stop", ["STOP", ["ne", "STOP"], ["OP", "TO"], "鱼", " S"])
def test_stop_strings_are_never_shown(opened: Bundle, stop: str | list[str]) -> None:
    text = "one 🙂 STOP 鱼 two"
    stops = [stop] if isinstance(stop, str) else stop
    expected = text[: min(text.find(s) for s in stops if s in text)]
    with scripted_core(opened, text) as core:
        answer = complete(core, max_tokens=100, stop=stop)
        deltas = list(answer)
        until(lambda: idle(core))
        assert core.stats()["requests"]["stop"] == 1
    assert "".join(d.text for d in deltas) == expected
    assert deltas[-1].finish_reason == "stop"
    assert answer.usage.completion_tokens < len(opened.tokenizer.encode(text))


def test_the_beginning_of_a_stop_string_is_shown_if_no_more_comes(opened: Bundle) -> None:
    with scripted_core(opened, "one STO") as core:
        (whole,) = complete(core, max_tokens=100, stop="STOP").gather()
    assert (whole.text, whole.finish_reason) == ("one STO", "stop")


@pytest.mark.parametrize("pieces", [["aSTOPb"], ["a", "S", "T", "O", "P", "b"], ["aST", "OPb"]])
def test_stop_text_does_not_depend_on_the_pieces(pieces: list[str]) -> None:
    text = StopText(["STOP", "STAR"])
    shown = [text.push(piece) for piece in pieces]
    assert ("".join(shown), text.stopped) == ("a", True)


def test_stop_text_holds_back_the_longest_beginning() -> None:
    text = StopText(["aab"])
    assert [text.push(p) for p in ("xa", "a", "a", "c")] == ["x", "", "a", "aac"]


def test_logprobs_spell_the_text_and_stop_with_it(opened: Bundle) -> None:
    with scripted_core(opened, "one 🙂 STOP") as core:
        (whole,) = complete(core, max_tokens=100, stop="STOP", logprobs=2).gather()
    assert whole.text == "one 🙂 "
    assert b"".join(t.bytes for t in whole.logprobs).decode() == whole.text
    assert all(t.top[0].bytes == t.bytes and len(t.top) == 2 for t in whole.logprobs)
    assert all(-0.1 < t.logprob <= 0 for t in whole.logprobs)


def test_choices_have_seeds_of_their_own(core: Core) -> None:
    asked = {"max_tokens": 12, "logit_bias": NEVER_ENDS}
    together = [w.text for w in complete(core, n=3, seed=7, **asked).gather()]
    apart = [complete(core, seed=7 + i, **asked).gather()[0].text for i in range(3)]
    assert together == apart
    assert len(set(together)) == 3


def test_several_prompts(core: Core, opened: Bundle) -> None:
    ids = opened.tokenizer.encode("Goodbye")
    asked = {"temperature": 0, "max_tokens": 5}
    answer = complete(core, ["Hello", "Goodbye"], **asked)
    single = complete(core, ids, **asked)
    assert answer.gather()[1] == single.gather()[0]
    assert answer.usage.prompt_tokens == len(opened.tokenizer.encode("Hello")) + len(ids)


def test_lengths(core: Core, opened: Bundle) -> None:
    answer = complete(core, logit_bias=NEVER_ENDS)
    assert [w.finish_reason for w in answer.gather()] == ["length"]
    assert answer.usage.completion_tokens == 16
    room = core.max_length - 3
    assert complete(core, [5] * room, max_tokens=3, logit_bias=NEVER_ENDS).gather()
    with pytest.raises(PromptTooLong, match="4096 tokens") as caught:
        complete(core, [5] * room, max_tokens=4)
    assert caught.value.param == "prompt"
    assert "serve.max_length" not in caught.value.hint, "the model allows no more"
    with pytest.raises(PromptTooLong):
        chat(core, [{"role": "user", "content": "x " * 5000}])


def test_a_chat_may_fill_the_context(opened: Bundle) -> None:
    with scripted_core(opened, "a" * 1000, max_length=100) as core:
        answer = chat(core)
        assert [w.finish_reason for w in answer.gather()] == ["length"]
        assert answer.usage.total_tokens == 100
        with pytest.raises(PromptTooLong, match="may have 100 tokens together") as caught:
            chat(core, max_tokens=100)
        assert "raise serve.max_length (the model allows 4096)" in caught.value.hint


WRONG: list[tuple[dict[str, object], str | None, str]] = [
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None, "image_url"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "Unicode"),
    ({"temperature": 2.1}, "temperature", "0 to 2"),
    ({"temperature": "warm"}, "temperature", "number"),
    ({"top_p": 0}, "top_p", "above 0"),
    ({"top_k": -1}, "top_k", "0"),
    ({"n": 0}, "n", "greater"),
    ({"n": True}, "n", "integer"),
    ({"max_tokens": 0}, "max_tokens", "greater"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differ"),
    ({"presence_penalty": 3}, "presence_penalty", "-2 to 2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "0.01 to 100"),
    ({"repetition_penalty": 1e-45}, "repetition_penalty", "0.01 to 100"),
    ({"logit_bias": {"9999": 1}}, "logit_bias", "no token 9999"),
    ({"logit_bias": {"word": 1}}, "logit_bias", "token ids"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
    ({"stop": ""}, "stop.0", "at least 1"),
    ({"stop": 5}, "stop", "a text or a list of texts (it is 5)"),
    ({"messages": ["hi"]}, "messages.0", "must be an object (it is 'hi')"),
    ({"logit_bias": [5]}, "logit_bias", "must be an object (it is [5])"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
    ({"top_logprobs": 3}, "top_logprobs", "logprobs: true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ({"tools": [{"type": "function"}]}, "tools", "not supported"),
    ({"temprature": 1}, "temprature", "is it temperature?"),
]


@pytest.mark.parametrize(("fields", "param", "says"), WRONG, ids=[str(w[0])[:40] for w in WRONG])
def test_wrong_fields_are_named(
    core: Core, fields: dict[str, object], param: str | None, says: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(core, **{"messages": HELLO, **fields})
    assert says in f"{caught.value.message} {caught.value.hint}".replace("−", "-")
    if param is not None:
        assert caught.value.param == param


def test_fields_that_ask_for_nothing_pass(core: Core) -> None:
    neutral = {
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "auto",
        "user": "me",
        "metadata": {"a": "b"},
        "seed": None,
        "stop": None,
        "store": False,
    }
    assert chat(core, max_tokens=2, **neutral).gather()


def test_prompts_that_are_refused(core: Core) -> None:
    for prompt in ("", [], [[]], [1.5], ["a", 1], {"a": 1}, [-1], [10**6]):
        with pytest.raises(InvalidRequest) as caught:
            complete(core, prompt)
        assert caught.value.param == "prompt", prompt


def test_another_model_is_not_found(core: Core) -> None:
    with pytest.raises(ModelNotFound, match="gpt-4") as caught:
        chat(core, model="gpt-4")
    assert "'tiny'" in caught.value.hint
    assert chat(core, model="tiny", max_tokens=1).gather()


def test_a_model_without_a_template_does_not_chat(opened: Bundle) -> None:
    plain = dataclasses.replace(
        opened, tokenizer=dataclasses.replace(opened.tokenizer, chat_template=None)
    )
    with scripted_core(plain, "a") as core, pytest.raises(InvalidRequest, match="no chat template"):
        chat(core)


def test_what_the_template_refuses(opened: Bundle) -> None:
    strict = "{{ raise_exception('roles must alternate') }}"
    picky = dataclasses.replace(
        opened, tokenizer=dataclasses.replace(opened.tokenizer, chat_template=strict)
    )
    with scripted_core(picky, "a") as core, pytest.raises(InvalidRequest, match="alternate") as e:
        chat(core)
    assert e.value.param == "messages"


@pytest.mark.parametrize("leave", ["cancel", "abandon"])
def test_leaving_frees_the_slots(core: Core, leave: str) -> None:
    answer = chat(core, n=2, max_tokens=4000, logit_bias=NEVER_ENDS)
    pieces = iter(answer)
    next(pieces)
    until(lambda: core.stats()["active"] == 2)
    if leave == "cancel":
        answer.cancel()
        with pytest.raises(RequestCancelled):
            list(pieces)
    else:
        pieces.close()  # type: ignore[attr-defined]
    until(lambda: idle(core))


def test_a_full_queue_refuses_all_choices(opened: Bundle) -> None:
    with scripted_core(opened, "a" * 400, slots=1, max_queue=2, pause=0.05) as core:
        first = complete(core, max_tokens=400)
        with pytest.raises(Overloaded):
            complete(core, n=3, max_tokens=400)
        assert core.stats()["queued"] <= 1
        first.cancel()
        until(lambda: idle(core))
        assert core.stats()["requests"]["cancelled"] == 1


@pytest.mark.parametrize(("fields", "param"), [({"n": 5}, "n"), ({"prompt": ["a"] * 5}, "prompt")])
def test_more_answers_than_ever_fit_are_no_matter_of_waiting(
    core: Core, fields: dict[str, object], param: str
) -> None:
    with pytest.raises(InvalidRequest, match="5 answers at once; the server holds 4") as caught:
        complete(core, **{"prompt": "a", **fields})
    assert caught.value.param == param


def failing(make: Callable[[Core], object], core: Core, error: type[RequestError]) -> None:
    with pytest.raises(error):
        make(core)
    until(lambda: idle(core))


def test_requests_end_at_their_time(opened: Bundle) -> None:
    with scripted_core(opened, "a" * 400, pause=0.05, timeout=0.5) as core:
        failing(lambda c: complete(c, max_tokens=400).gather(), core, DeadlineExceeded)


def test_an_engine_that_breaks_fails_the_request_and_no_other(opened: Bundle) -> None:
    with scripted_core(opened, "abcdef", fail_at=3) as core:
        failing(lambda c: complete(c, max_tokens=6).gather(), core, EngineFailed)
        (whole,) = complete(core, max_tokens=2).gather()
        assert whole.finish_reason == "length"
