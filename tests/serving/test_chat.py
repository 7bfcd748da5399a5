"""`appliance chat` as a user runs it: a process, and a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from appliance.bundle.read import Bundle
from serving.client import RestClient
from serving.client.chat import Conversation
from serving.core import Core
from tests.serving.conftest import doors_over, idle, scripted_core, until

ROOT = Path(__file__).parents[2]
CHAT = ("-m", "appliance.cli", "chat")
FIXED = ("--temperature", "0", "--max-tokens", "12")


def run(*arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *CHAT, *arguments],
        input=said,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("grpc", [False, True], ids=["rest", "grpc"])
def test_one_message(rest_address: str, rpc_address: str, grpc: bool) -> None:
    address = (rpc_address, "--grpc") if grpc else (rest_address,)
    done = run(*address, "-m", "Hello", "--system", "Be kind.", *FIXED)
    with RestClient(rest_address) as client:
        talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
        expected = client.chat(talk, temperature=0, max_completion_tokens=12)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected.text + "\n"


def test_the_conversation_is_kept(rest_address: str) -> None:
    with RestClient(rest_address) as client:
        asked = {"temperature": 0.0, "max_completion_tokens": 12}
        talk = [{"role": "user", "content": "Hello"}]
        first = client.chat(talk, **asked).text
        talk += [{"role": "assistant", "content": first}, {"role": "user", "content": "More"}]
        second, alone = client.chat(talk, **asked).text, client.chat(talk[-1:], **asked).text
    assert second != alone
    done = run(rest_address, *FIXED, said="Hello\nMore\n/reset\nMore\n/exit\nnever said\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{first}\n{second}\n(the conversation is forgotten)\n{alone}\n"


def test_what_failed_is_not_kept(rest_address: str) -> None:
    with RestClient(rest_address) as client:
        conversation = Conversation(client, {"temperature": 9.0}, "Be kind.")
        with pytest.raises(Exception, match="temperature"):
            list(conversation.say("Hello"))
        assert conversation.messages == [{"role": "system", "content": "Be kind."}]


@pytest.mark.parametrize("flags", [(), ("--grpc",)], ids=["rest", "grpc"])
def test_nothing_listens(flags: tuple[str, ...]) -> None:
    done = run("127.0.0.1:1", *flags, "-m", "Hello")
    assert done.returncode == 2
    assert "nothing answers at" in done.stderr and "127.0.0.1:1" in done.stderr
    assert "appliance serve" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_is_not_served(rest_address: str) -> None:
    done = run(rest_address, "--model", "other", "-m", "Hello")
    assert done.returncode == 2
    assert "'other' is not served here" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(params=["rest", "grpc"])
def slow(request: pytest.FixtureRequest, opened: Bundle) -> Iterator[tuple[Core, list[str]]]:
    """A model that says "a" twenty times a second, and how to reach it."""
    with scripted_core(opened, "a" * 400, pause=0.05) as core, doors_over(core) as (rest, rpc):
        yield core, [rest] if request.param == "rest" else [rpc, "--grpc"]


def test_at_a_terminal(slow: tuple[Core, list[str]]) -> None:
    core, address = slow
    environment = {**os.environ, "TERM": "dumb"}
    arguments = [*CHAT, *address]
    terminal = pexpect.spawn(
        sys.executable, arguments, cwd=str(ROOT), env=environment, timeout=15, encoding="utf-8"
    )
    terminal.expect_exact("Talking to tiny.")
    terminal.expect_exact("> ")
    terminal.sendline("/help")
    terminal.expect_exact("/reset")
    terminal.expect_exact("> ")
    terminal.sendline("/what")
    terminal.expect_exact("/what is no command")
    terminal.expect_exact("> ")
    terminal.sendline("word " * 200)
    terminal.expect_exact("prompt and answer may have 512 tokens together")
    terminal.expect_exact("/reset forgets")
    terminal.expect_exact("> ")
    terminal.sendline("Hello")
    terminal.expect_exact("aaa")
    terminal.sendintr()
    terminal.expect_exact("(stopped)")
    until(lambda: idle(core), within=2)
    terminal.expect_exact("> ")
    terminal.sendintr()
    terminal.expect_exact("Ctrl-D leaves")
    terminal.expect_exact("> ")
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_an_answer_does_not_steer_the_terminal(opened: Bundle) -> None:
    said = "a\x1b[2Jb\r\x9bc👩‍👩‍👧é你"
    with scripted_core(opened, said) as core, doors_over(core) as (rest, _):
        arguments = [*CHAT, rest, "-m", "Hello"]
        shown, status = pexpect.run(
            " ".join([sys.executable, *arguments]), cwd=str(ROOT), timeout=30, withexitstatus=True
        )
        piped = run(rest, "-m", "Hello").stdout
    assert (shown.decode(), status) == ("a\ufffd[2Jb\ufffd\ufffdc👩‍👩‍👧é你\r\n", 0)
    assert piped == said.replace("\r", "\n") + "\n", "as it is; text mode reads \\r as an end"


def test_a_stopped_answer_is_kept_as_far_as_it_came(opened: Bundle) -> None:
    with (
        scripted_core(opened, "a" * 400, pause=0.02) as core,
        doors_over(core) as (rest, _),
        RestClient(rest) as client,
    ):
        conversation = Conversation(client, {})
        pieces = conversation.say("Hello")
        seen = next(pieces) + next(pieces)
        pieces.close()
        assert conversation.messages[-1] == {"role": "assistant", "content": seen}
        until(lambda: idle(core), within=2)
