"""Asks a deployment: whether it is healthy, and one real question through each door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from appliance.errors import DeployError
from appliance.files import read_json
from appliance.jobs.rows import Deployment

NO_PROXY = [("grpc.enable_http_proxy", 0)]  # a deployment of ours is never behind one
PROBE_SECONDS = 2.0
ANSWER_SECONDS = 120.0
ANSWER_TOKENS = 48


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
    chat = has_chat_template(bundle)
    doors = {"REST": ask_rest, "gRPC": ask_grpc}
    return [[name, question, ask(serving, question, chat)] for name, ask in doors.items()]


def has_chat_template(bundle: Path) -> bool:
    """Whether a bundle renders conversations."""
    return bool(read_json(bundle / "tokenizer_config.json").get("chat_template"))


def ask_rest(serving: Deployment, question: str, chat: bool) -> str:
    """One question through REST. Raises DeployError."""
    body: dict[str, Any] = {"model": serving.name, "temperature": 0, "max_tokens": ANSWER_TOKENS}
    if chat:
        path, body["messages"] = "chat/completions", [{"role": "user", "content": question}]
    else:
        path, body["prompt"] = "completions", question
    url = f"{rest_address(serving)}/v1/{path}"
    try:
        answer = httpx.post(url, json=body, timeout=ANSWER_SECONDS, trust_env=False)
    except httpx.HTTPError as error:
        raise DeployError(f"{url} does not answer: {error}") from None
    if answer.status_code != 200:
        raise DeployError(f"{url} answers {answer.status_code}: {answer.text[:300]}")
    choice = answer.json()["choices"][0]
    return str(choice["message"]["content"] if chat else choice["text"]).strip()


def ask_grpc(serving: Deployment, question: str, chat: bool) -> str:
    """One question through gRPC. Raises DeployError."""
    import grpc

    from serving.rpc.v1 import appliance_pb2 as pb
    from serving.rpc.v1.appliance_pb2_grpc import LanguageModelStub

    options = pb.Options(temperature=0, max_completion_tokens=ANSWER_TOKENS)
    with grpc.insecure_channel(grpc_address(serving), NO_PROXY) as channel:
        stub = LanguageModelStub(channel)
        try:
            if chat:
                messages = [pb.Message(role="user", content=question)]
                asked = pb.ChatRequest(model=serving.name, messages=messages, options=options)
                answer = stub.Chat(asked, timeout=ANSWER_SECONDS)
            else:
                text = pb.GenerateRequest(model=serving.name, text=question, options=options)
                answer = stub.Generate(text, timeout=ANSWER_SECONDS)
        except grpc.RpcError as error:
            raise DeployError(
                f"gRPC at {grpc_address(serving)} answers {error.code().name}: {error.details()}"
            ) from None
    return str(answer.choices[0].text).strip()
