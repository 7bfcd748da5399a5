"""A conversation at the terminal: `appliance chat`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from appliance.errors import DeployError, PromptTooLong, RequestError
from serving.client.rest import DEFAULT_ADDRESS as REST_ADDRESS
from serving.client.rest import RestClient
from serving.client.results import Client, Options
from serving.client.rpc import DEFAULT_ADDRESS as RPC_ADDRESS
from serving.client.rpc import RpcClient

HELP = """\
/reset        forget the conversation
/help         show this
/exit         leave; so does Ctrl-D
Ctrl-C        stop the answer"""

RESET = "/reset forgets the conversation and makes room."


@dataclass
class Conversation:
    """Messages so far. An answer that was stopped is kept as far as it came."""

    client: Client
    options: Options
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def say(self, text: str) -> Generator[str, None, None]:
        """Send a message; give the answer's pieces. Raises as the client does; what failed is not
        kept, so that it may be said again."""
        asked = [*self.messages, {"role": "user", "content": text}]
        answer = ""
        try:
            with contextlib.closing(self.client.chat_stream(asked, **self.options)) as chunks:
                for chunk in chunks:
                    answer += chunk.text
                    yield chunk.text
        except (RequestError, DeployError):
            answer = ""
            raise
        finally:
            if answer:
                self.messages = [*asked, {"role": "assistant", "content": answer}]


def connect(address: str | None, *, grpc: bool) -> Client:
    """A client of the server at `address`, which must answer. Raises DeployError."""
    client: Client = (
        RpcClient(address or RPC_ADDRESS) if grpc else RestClient(address or REST_ADDRESS)
    )
    if not client.ready():
        raise DeployError(
            "the server answers, but takes no requests now",
            hint="It is stopping, or its engine failed: its log says which.",
        )
    return client


def once(conversation: Conversation, text: str, write: Callable[[str], object]) -> None:
    """One message, one answer. Raises as the client does."""
    with contextlib.closing(conversation.say(text)) as pieces:
        for piece in pieces:
            write(piece)
    write("\n")


def converse(conversation: Conversation, name: str, write: Callable[[str], object]) -> None:
    """Read messages until the end of input, and answer them."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # gives `input` a history and an editable line
        write(f"Talking to {name}. /help lists the commands; Ctrl-D leaves.\n")
    while True:
        try:
            text = input("> " if terminal else "").strip()
        except EOFError:
            write("\n" if terminal else "")
            return
        except KeyboardInterrupt:
            write("\n(Ctrl-D leaves)\n")
            continue
        if text == "/exit":
            return
        if text:
            _turn(conversation, text, write, keep_on=terminal)


def _turn(
    conversation: Conversation, text: str, write: Callable[[str], object], *, keep_on: bool
) -> None:
    if text == "/reset":
        conversation.reset()
        write("(the conversation is forgotten)\n")
    elif text == "/help":
        write(HELP + "\n")
    elif text.startswith("/"):
        write(f"{text.split()[0]} is no command here; /help lists them\n")
    else:
        try:
            once(conversation, text, write)
        except KeyboardInterrupt:
            write("\n(stopped)\n")
        except (RequestError, DeployError) as error:
            if not keep_on:
                raise
            hint = RESET if isinstance(error, PromptTooLong) else error.hint
            write(f"\nerror: {error.message}\n{hint}\n")
