"""The ONNX file as the runtimes like it: weights as initializers, outputs with names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from appliance.files import atomic

EXTERNAL_OVER = (2 << 30) - (64 << 20)
"""Bytes from which weights go into a file of their own: protobuf ends at 2 GiB."""
_PAGE = 4096


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


def save(
    model: ModelProto,
    path: Path,
    weights: Mapping[str, Callable[[], NDArray[np.float32]]],
    *,
    external: bool,
) -> None:
    """Write a model whose nodes read `weights` by name, taken one at a time.

    With `external` they lie in a file of their own, `NAME.data`, at offsets that can be mapped.
    """
    used = {name for node in model.graph.node for name in node.input}
    kept = {name: load for name, load in weights.items() if name in used}
    if external:
        with atomic(path.with_name(f"{path.name}.data")) as stream:
            for name, load in kept.items():
                stream.write(bytes(-stream.tell() % _PAGE))
                model.graph.initializer.append(_external(name, load(), stream, path))
    else:
        model.graph.initializer.extend(
            numpy_helper.from_array(load(), name) for name, load in kept.items()
        )
    with atomic(path) as stream:
        stream.write(model.SerializeToString())


def _external(name: str, values: NDArray[np.float32], stream: IO[bytes], path: Path) -> TensorProto:
    """Write values at the stream's end; gives the tensor that points there."""
    tensor = TensorProto(
        name=name,
        data_type=TensorProto.FLOAT,
        dims=values.shape,
        data_location=TensorProto.EXTERNAL,
    )
    place = {
        "location": f"{path.name}.data",
        "offset": str(stream.tell()),
        "length": str(values.nbytes),
    }
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    stream.write(np.ascontiguousarray(values, dtype="<f4").data)
    return tensor


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
