"""Asks a deployment: whether it is healthy, and one real question through each door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from appliance.errors import DeployError, PromptTooLong, RequestError
from appliance.files import read_json
from appliance.jobs.rows import Deployment

if TYPE_CHECKING:
    from serving.client import Client

NO_PROXY = [("grpc.enable_http_proxy", 0)]  # a deployment of ours is never behind one
PROBE_SECONDS = 2.0
ANSWER_SECONDS = 120.0
ANSWER_TOKENS = 48
GREETING = "Hello!"


def reach(host: str) -> str:
    """The address to reach a server at that listens on `host`, as it stands in a URL."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def rest_address(serving: Deployment) -> str:
    """The REST door's URL."""
    return f"http://{reach(serving.host)}:{serving.rest_port}"


def grpc_address(serving: Deployment) -> str:
    """The gRPC door's address."""
    return f"{reach(serving.host)}:{serving.grpc_port}"


def healthy(serving: Deployment) -> bool:
    """Whether both doors say that they serve."""
    return rest_healthy(serving) and grpc_healthy(serving)


def rest_healthy(serving: Deployment) -> bool:
    """Whether /health of the REST door answers 200."""
    try:
        answer = httpx.get(
            f"{rest_address(serving)}/health", timeout=PROBE_SECONDS, trust_env=False
        )
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def grpc_healthy(serving: Deployment) -> bool:
    """Whether the gRPC health service (grpc.health.v1) says SERVING."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(grpc_address(serving), NO_PROXY) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def ask_both(serving: Deployment, bundle: Path, question: str) -> list[list[str]]:
    """Ask a question through REST and through gRPC, greedily: rows of door, question, answer.

    As a conversation where the bundle has a chat template, else as a text to continue. Raises
    DeployError where a door does not answer it.
    """
    from serving.client import RestClient, RpcClient

    chat = has_chat_template(bundle)
    rows = []
    with (
        RestClient(rest_address(serving), timeout=ANSWER_SECONDS) as rest,
        RpcClient(grpc_address(serving), timeout=ANSWER_SECONDS) as rpc,
    ):
        doors: tuple[tuple[str, Client], ...] = (("REST", rest), ("gRPC", rpc))
        for name, client in doors:
            try:
                asked, answer = ask_within(client, serving, question, chat=chat)
            except (DeployError, RequestError) as error:
                raise DeployError(
                    f"{name} of {serving.name} does not answer a question: {error.message}",
                    hint=error.hint,
                ) from error
            rows.append([name, asked, answer])
    return rows


def ask_within(
    client: Client, serving: Deployment, question: str, *, chat: bool
) -> tuple[str, str]:
    """Ask the question, or a greeting where the served context is too short for it; both texts."""
    tokens = min(ANSWER_TOKENS, int(json.loads(serving.options)["max_length"]) // 4)
    try:
        return question, ask(client, serving.name, question, tokens, chat=chat)
    except PromptTooLong:
        return GREETING, ask(client, serving.name, GREETING, tokens, chat=chat)


def ask(client: Client, model: str, question: str, tokens: int, *, chat: bool) -> str:
    """One greedy answer of at most so many tokens."""
    if chat:
        answer = client.chat(
            [{"role": "user", "content": question}],
            model=model,
            temperature=0.0,
            max_completion_tokens=tokens,
        )
    else:
        answer = client.generate(
            question, model=model, temperature=0.0, max_completion_tokens=tokens
        )
    return answer.text.strip()


def has_chat_template(bundle: Path) -> bool:
    """Whether a bundle renders conversations."""
    return bool(read_json(bundle / "tokenizer_config.json").get("chat_template"))
