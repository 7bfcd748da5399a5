"""What no single field can tell: sections that must fit each other, the data, the machine's ports.

Each check looks only at sections that are sound by themselves, so that all faults of a file show
at once.
"""

from __future__ import annotations

import errno
import importlib.util
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import UserError
from appliance.recipe.problems import Problem
from appliance.recipe.schema import (
    DataSection,
    ExportSection,
    ModelSection,
    ServeSection,
    Shape,
    TrainSection,
)
from appliance.recipe.sources import PREFIX, package_files


@dataclass(frozen=True)
class Parts:
    """The sections of a recipe; None where one has faults of its own.

    `context` is the model's, in tokens; None where it is not known.
    """

    model: ModelSection | None
    data: DataSection | None
    train: TrainSection | None
    export: ExportSection | None
    serve: ServeSection | None
    context: int | None = None


def find_context(model: ModelSection | None) -> tuple[int | None, list[Problem]]:
    """The context of the model, and what is wrong with a base model."""
    if model is None:
        return None, []
    if model.base is None:
        return (model.config.max_position_embeddings if model.config else None), []
    from appliance.bundle.peek import context_length

    try:
        return context_length(model.base), []
    except UserError as error:
        text = error.message.removeprefix("model.base: ")
        return None, [Problem(("model", "base"), f"{text}. {error.hint}")]


def cross_checks(parts: Parts) -> Iterator[Problem]:
    """The faults that show only when sections are seen together."""
    if parts.model:
        yield from _shape(parts.model.config)
        if parts.train:
            yield from _start(parts.model, parts.train)
    if parts.train:
        yield from _training(parts.train)
    if parts.data and parts.train:
        yield from _sources(parts.data, parts.train)
    yield from _lengths(parts)
    if parts.serve:
        yield from _doors(parts.serve)


def _shape(shape: Shape | None) -> Iterator[Problem]:
    if shape is None:
        return
    heads, groups = shape.num_attention_heads, shape.num_key_value_heads
    at = ("model", "config")
    if shape.hidden_size % heads:
        yield Problem(
            (*at, "hidden_size"),
            f"found {shape.hidden_size}; must be a multiple of num_attention_heads ({heads})",
        )
    elif shape.hidden_size // heads % 2:
        yield Problem(
            (*at, "hidden_size"),
            f"found {shape.hidden_size}; hidden_size / num_attention_heads "
            f"({shape.hidden_size // heads}) must be even, for rotary embedding turns pairs",
        )
    if groups is not None and heads % groups:
        yield Problem(
            (*at, "num_key_value_heads"),
            f"found {groups}; must divide num_attention_heads ({heads})",
        )


def _start(model: ModelSection, train: TrainSection) -> Iterator[Problem]:
    """`pretrain` begins with `config` and `tokenizer`, the others with `base`."""
    if train.method == "pretrain":
        if model.base is not None:
            yield Problem(
                ("model", "base"),
                "method pretrain starts from scratch: give model.config and model.tokenizer "
                "instead, or train the base with method full or lora",
            )
        for name in ("config", "tokenizer"):
            if getattr(model, name) is None:
                yield Problem(("model", name), "missing; method pretrain starts from scratch")
        return
    if model.base is None:
        yield Problem(("model", "base"), f"missing; method {train.method} trains a base model")
    for name in ("config", "tokenizer"):
        if getattr(model, name) is not None:
            yield Problem(
                ("model", name),
                f"only method pretrain makes a model from scratch, this is {train.method}",
            )


def _training(train: TrainSection) -> Iterator[Problem]:
    if train.bf16 and train.fp16:
        yield Problem(("train", "fp16"), "bf16 and fp16 are both true; keep one, bf16 on an A100")
    if train.max_steps == 0:
        yield Problem(("train", "max_steps"), "found 0; must be at least 1, or -1 for whole epochs")


def _sources(data: DataSection, train: TrainSection) -> Iterator[Problem]:
    from appliance.data.read import check_source

    plain = train.method == "pretrain"
    if plain and data.eval:
        yield Problem(("data", "eval"), "method pretrain holds out by data.split; leave eval out")
    if plain and (shares := [float(s) for s in data.split.split(",")]) and not all(shares[:2]):
        yield Problem(("data", "split"), f"found {data.split!r}; training and evaluation need text")
    if not plain and not data.eval and not data.eval_fraction:
        yield Problem(
            ("data", "eval_fraction"),
            "found 0; must be greater than 0 where data.eval is empty; "
            "the proof asks what was held out",
        )
    for field, sources in (("train", data.train), ("eval", data.eval)):
        for index, source in enumerate(sources):
            place = ("data", field, index)
            try:
                if not source.startswith(PREFIX):
                    check_source(source, plain=plain)
                elif (package_files(source)[0].kind == "dialogues") == plain:
                    kinds = ("plain text", "conversations")
                    yield Problem(
                        place,
                        f"{source} holds {kinds[plain]}; "
                        f"method {train.method} learns {kinds[not plain]}",
                    )
            except UserError as error:
                yield Problem(place, f"{error.message}. {error.hint}")


def _lengths(parts: Parts) -> Iterator[Problem]:
    context = parts.context
    graph = (parts.export.max_length if parts.export else None) or context
    limits = (
        ("data", parts.data, context, "the model's context"),
        ("export", parts.export, context, "the model's context"),
        ("serve", parts.serve, graph, "the graph's length (export.max_length)"),
    )
    for name, section, limit, what in limits:
        length = getattr(section, "max_length", None)
        if length is not None and limit is not None and length > limit:
            yield Problem((name, "max_length"), f"found {length}; must be at most {limit}, {what}")


def _doors(serve: ServeSection) -> Iterator[Problem]:
    if serve.rest_port == serve.grpc_port:
        yield Problem(
            ("serve", "grpc_port"), f"found {serve.grpc_port}, which is serve.rest_port too"
        )


def engine_checks(serve: ServeSection) -> Iterator[Problem]:
    """The engine of the recipe, where this machine has it not."""
    if importlib.util.find_spec(serve.engine) is None:
        text = f"{serve.engine} is not installed here"
        if serve.engine == "fastdeploy":
            text += (
                "; its wheels are for Python 3.10 and older on x86-64 Linux. "
                "Choose `engine: onnxruntime`, which runs the same graph"
            )
        yield Problem(("serve", "engine"), text)


def port_checks(serve: ServeSection, ours: Collection[int]) -> Iterator[Problem]:
    """Ports of the recipe that another program holds; those in `ours` are this appliance's own."""
    for field in ("rest_port", "grpc_port"):
        port = getattr(serve, field)
        if port in ours:
            continue
        problem = _bind(serve.host, port)
        if problem:
            yield Problem(("serve", "host" if problem.startswith("host") else field), problem)
            if problem.startswith("host"):
                return


def _bind(host: str, port: int) -> str:
    """Why a program cannot listen there; empty where it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"port {port} is in use by another program; stop it or choose another port"
        if error.errno == errno.EACCES:
            return f"port {port} needs root; choose one above 1023"
        return f"host {host} cannot be listened on: {error.strerror}"
    return ""


def absolute(source: str, folder: Path) -> str:
    """A source as it reads from anywhere: paths are relative to the recipe's folder."""
    if source.startswith(PREFIX):
        return source
    return str(folder / Path(source).expanduser())
