"""The ONNX file as the runtimes like it: weights as initializers, outputs with names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

EXTERNAL_OVER = (2 << 30) - (64 << 20)
"""Bytes from which weights go into a file of their own: protobuf ends at 2 GiB."""


def tidy(model: ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Change a converted model in place.

    Constants become initializers, so that runtimes and quantizers take them for weights;
    Identity nodes go; inputs are put in order and outputs get their names.
    """
    graph = model.graph
    _drop_identities(model)
    used = {name for node in graph.node for name in node.input}
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            value.name = node.output[0]
            if value.name in used:
                graph.initializer.append(value)
        else:
            kept.append(node)
    _replace(graph.node, kept)
    by_name = {value.name: value for value in graph.input}
    _replace(graph.input, [by_name[name] for name in inputs])
    _rename(model, {old.name: new for old, new in zip(graph.output, outputs, strict=True)})


def save(model: ModelProto, path: Path, *, external_over: int = EXTERNAL_OVER) -> None:
    """Write a model; one of more than `external_over` bytes with its weights in `NAME.data`."""
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size <= external_over:
        onnx.save(model, str(path))
        return
    onnx.save(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
        size_threshold=1024,
    )


def _drop_identities(model: ModelProto) -> None:
    """Let readers of an Identity read its input; where it is an output, rename what it copies."""
    source: dict[str, str] = {}
    finals = {value.name for value in model.graph.output}
    kept = []
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = source.get(name, name)
        if node.op_type == "Identity":
            source[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    _replace(model.graph.node, kept)
    _rename(model, {source[name]: name for name in finals if name in source})


def _rename(model: ModelProto, names: dict[str, str]) -> None:
    for node in model.graph.node:
        for names_of in (node.input, node.output):
            for i, name in enumerate(names_of):
                names_of[i] = names.get(name, name)
    for value in model.graph.output:
        value.name = names.get(value.name, value.name)


def _replace(field: Any, values: Sequence[Any]) -> None:
    del field[:]
    field.extend(values)
