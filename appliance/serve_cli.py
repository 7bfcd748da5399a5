"""The verbs of served models: `appliance serve` and `appliance chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from serving.client.results import Options as ChatOptions

BundleName = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="A bundle's folder, or its name at home.")
]
Host = Annotated[
    str, typer.Option(help="Address to listen on; 0.0.0.0 opens the server to the network.")
]
RestPort = Annotated[int, typer.Option(min=0, max=65535, help="Port of REST; 0: any free one.")]
GrpcPort = Annotated[int, typer.Option(min=0, max=65535, help="Port of gRPC; 0: any free one.")]
Engine = Annotated[str, typer.Option(help="fastdeploy or onnxruntime.")]
Backend = Annotated[str, typer.Option(help="Inside FastDeploy: onnxruntime, paddle or openvino.")]
Slots = Annotated[int, typer.Option(min=1, help="Sequences generated at once.")]
MaxLength = Annotated[
    int | None,
    typer.Option(min=16, help="Longest prompt and answer, in tokens. Default: at most 1024."),
]
MaxQueue = Annotated[int, typer.Option(min=0, help="Requests that may wait.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds after which a request is ended.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of the engine. Default: all cores.")
]
ModelName = Annotated[str | None, typer.Option(help="The model's name. Default: the bundle's.")]


def serve(
    bundle: BundleName,
    host: Host = "127.0.0.1",
    rest_port: RestPort = 8000,
    grpc_port: GrpcPort = 8001,
    engine: Engine = "fastdeploy",
    backend: Backend = "onnxruntime",
    slots: Slots = 4,
    max_length: MaxLength = None,
    max_queue: MaxQueue = 64,
    request_timeout: Timeout = 300.0,
    threads: Threads = None,
    name: ModelName = None,
) -> None:
    """Serve a bundle over REST and gRPC, here, until Ctrl-C."""
    from appliance.home import home
    from serving import server

    server.log_to_stderr()
    server.serve(
        server.Options(
            bundle=Path(bundle) if Path(bundle).exists() else home() / "bundles" / bundle,
            host=host,
            rest_port=rest_port,
            grpc_port=grpc_port,
            engine=engine,
            backend=backend,
            slots=slots,
            max_length=max_length,
            max_queue=max_queue,
            request_timeout=request_timeout,
            threads=threads,
            name=name,
        )
    )


Address = Annotated[
    str | None,
    typer.Argument(
        metavar="ADDRESS",
        help="An address or a deployment's name. Default: the running deployment, "
        "else http://127.0.0.1:8000, or 127.0.0.1:8001 for gRPC.",
    ),
]
Grpc = Annotated[bool, typer.Option("--grpc", help="Talk over gRPC.")]
Message = Annotated[
    str | None, typer.Option("-m", "--message", help="Say this, print the answer, leave.")
]
System = Annotated[str | None, typer.Option(help="System message.")]
Model = Annotated[str | None, typer.Option(help="Model. Default: the served one.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[
    float | None, typer.Option(help="0 (always the likeliest) to 2. Default: 1.")
]
Seed = Annotated[int | None, typer.Option(help="Same seed, same answer.")]


def chat(
    address: Address = None,
    grpc: Grpc = False,
    message: Message = None,
    system: System = None,
    model: Model = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
) -> None:
    """Talk to a served model. /help in it lists its commands."""
    from appliance.jobs.address import address_of
    from serving.client import chat as terminal

    options = chat_options(model, max_tokens, temperature, seed)
    with terminal.connect(address_of(address, grpc=grpc), grpc=grpc) as client:
        conversation = terminal.Conversation(client, options, system)
        if message is not None:
            terminal.once(conversation, message, write)
        else:
            terminal.converse(conversation, model or client.models()[0].id, write)


def chat_options(
    model: str | None, max_tokens: int | None, temperature: float | None, seed: int | None
) -> ChatOptions:
    """What was given; the server has the defaults of the rest."""
    options: ChatOptions = {}
    if model is not None:
        options["model"] = model
    if max_tokens is not None:
        options["max_completion_tokens"] = max_tokens
    if temperature is not None:
        options["temperature"] = temperature
    if seed is not None:
        options["seed"] = seed
    return options


def write(text: str) -> None:
    """Print at once; to a terminal without what would steer it."""
    from appliance.jobs.words import clean

    sys.stdout.write(clean(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
