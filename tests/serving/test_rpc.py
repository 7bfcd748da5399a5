"""The gRPC door over real sockets: health, reflection, cancellation, deadlines, error details."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from appliance.bundle.read import Bundle
from appliance.errors import DeployError
from serving.rpc.door import RpcDoor
from serving.rpc.v1 import appliance_pb2 as pb
from serving.rpc.v1 import appliance_pb2_grpc as pb_grpc
from serving.rpc.wire import ERROR_KEY, MAX_REQUEST, SERVICE
from serving.server import Running
from tests.serving.conftest import NEVER_ENDS, doors_over, idle, scripted_core, until

FOREVER = pb.Options(max_completion_tokens=4000, logit_bias=NEVER_ENDS)
HELLO = [pb.Message(role="user", content="Hello")]


@pytest.fixture
def channel(rpc_address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(rpc_address) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> pb_grpc.LanguageModelStub:
    return pb_grpc.LanguageModelStub(channel)


def test_a_stream_says_what_the_answer_says(stub: pb_grpc.LanguageModelStub) -> None:
    options = pb.Options(temperature=0, max_completion_tokens=12, n=2, logprobs=1)
    request = pb.ChatRequest(model="tiny", messages=HELLO, options=options)
    whole = stub.Chat(request, timeout=30)
    *chunks, last = stub.ChatStream(request, timeout=30)
    assert last.usage == whole.usage
    assert not last.HasField("choice")
    for choice in whole.choices:
        mine = [c.choice for c in chunks if c.choice.index == choice.index]
        assert "".join(c.text for c in mine) == choice.text
        assert mine[-1].finish_reason == choice.finish_reason != pb.FINISH_REASON_UNSPECIFIED
        assert [t for c in mine for t in c.logprobs] == list(choice.logprobs)


def test_token_ids_are_a_prompt(stub: pb_grpc.LanguageModelStub, opened: Bundle) -> None:
    options = pb.Options(temperature=0, max_completion_tokens=8)
    ids = pb.TokenIds(ids=opened.tokenizer.encode("Hello"))
    by_ids = stub.Generate(pb.GenerateRequest(tokens=ids, options=options), timeout=30)
    by_text = stub.Generate(pb.GenerateRequest(text="Hello", options=options), timeout=30)
    assert by_ids.choices == by_text.choices


def test_models(stub: pb_grpc.LanguageModelStub) -> None:
    (model,) = stub.Models(pb.ModelsRequest(), timeout=10).models
    assert (model.id, model.max_length) == ("tiny", 4096)


def test_health(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        found = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert found.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="other"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_is_watched(opened: Bundle) -> None:
    with scripted_core(opened, "a") as core:
        door = RpcDoor("127.0.0.1", 0, requests=1)
        door.open(core)
        with grpc.insecure_channel(f"127.0.0.1:{door.port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            seen = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)
            status = health_pb2.HealthCheckResponse
            assert next(seen).status == status.SERVING
            door.refuse()
            assert next(seen).status == status.NOT_SERVING
            seen.cancel()
        door.close(grace=0)


def test_reflection_describes_the_service(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
    service = DescriptorPool(database).FindServiceByName(SERVICE)
    methods = {method.name for method in service.methods}
    assert methods == {"Generate", "GenerateStream", "Chat", "ChatStream", "Models"}


def test_errors_carry_what_rest_says(stub: pb_grpc.LanguageModelStub) -> None:
    request = pb.ChatRequest(messages=HELLO, options=pb.Options(temperature=9))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Chat(request, timeout=10)
    error = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    detail = pb.Error.FromString(dict(error.trailing_metadata())[ERROR_KEY])
    assert detail.message == error.details()
    assert (detail.param, detail.type) == ("temperature", "invalid_request_error")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_cancelling_frees_the_slot(
    deployment: Running, stub: pb_grpc.LanguageModelStub, stream: bool
) -> None:
    request = pb.GenerateRequest(text="a", options=FOREVER)
    call = stub.GenerateStream(request) if stream else stub.Generate.future(request)
    until(lambda: deployment.core.stats()["active"] == 1)
    if stream:
        assert next(call).choice.text
    call.cancel()
    until(lambda: idle(deployment.core), within=2)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_deadline_frees_the_slot(
    deployment: Running, stub: pb_grpc.LanguageModelStub, stream: bool
) -> None:
    request = pb.GenerateRequest(text="a", options=FOREVER)
    with pytest.raises(grpc.RpcError) as caught:
        if stream:
            list(stub.GenerateStream(request, timeout=0.3))
        else:
            stub.Generate(request, timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: idle(deployment.core), within=2)


def test_a_call_that_waits_may_be_cancelled(opened: Bundle) -> None:
    request = pb.GenerateRequest(text="a", options=pb.Options(max_completion_tokens=400))
    with (
        scripted_core(opened, "a" * 400, slots=1, pause=0.05) as core,
        doors_over(core) as (_, rpc),
        grpc.insecure_channel(rpc) as channel,
    ):
        stub = pb_grpc.LanguageModelStub(channel)
        first = stub.GenerateStream(request)
        assert next(first).choice.text
        second = stub.GenerateStream(request)
        until(lambda: core.stats()["queued"] == 1)
        second.cancel()
        until(lambda: core.stats()["queued"] == 0, within=2)
        assert core.stats()["active"] == 1
        first.cancel()


def test_an_error_in_a_stream_ends_it_with_its_status(opened: Bundle) -> None:
    with (
        scripted_core(opened, "abcdef", fail_at=3) as core,
        doors_over(core) as (_, rpc),
        grpc.insecure_channel(rpc) as channel,
    ):
        stub, seen = pb_grpc.LanguageModelStub(channel), []
        with pytest.raises(grpc.RpcError) as caught:
            for chunk in stub.GenerateStream(pb.GenerateRequest(text="x"), timeout=10):
                seen.append(chunk.choice.text)
        assert "".join(seen) == "abc"
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_large_messages_are_refused(stub: pb_grpc.LanguageModelStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Generate(pb.GenerateRequest(text="x" * (MAX_REQUEST + 1)), timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_taken_port_is_named(deployment: Running) -> None:
    with pytest.raises(DeployError, match=str(deployment.grpc_port)) as caught:
        RpcDoor("127.0.0.1", deployment.grpc_port, requests=1)
    assert "--grpc-port" in caught.value.hint


def test_more_calls_than_slots_are_all_answered(
    deployment: Running, stub: pb_grpc.LanguageModelStub
) -> None:
    options = pb.Options(temperature=0, max_completion_tokens=20, logit_bias=NEVER_ENDS)
    request = pb.GenerateRequest(text="Hello", options=options)
    calls = [stub.Generate.future(request, timeout=30) for _ in range(4)]
    texts = {call.result().choices[0].text for call in calls}
    assert len(texts) == 1
