"""Weights as safetensors, read and written one tensor at a time.

The safetensors library writes a file from tensors that are all in memory and has no bfloat16 for
numpy; a model of 7 billion parameters asks for better, and the format is a JSON header and bytes:
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import ModelError
from appliance.files import atomic, read_json

Progress = Callable[[int, int], None]
"""Told how many of how many tensors are done."""

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_MAX_HEADER = 100 << 20  # the format's own limit


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's place. `dtype` is safetensors' name: F32, F16 or BF16."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


class Weights:
    """The tensors of a model folder, mapped from disk and read when asked for."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self.tensors = tensors

    @classmethod
    def open(cls, folder: Path) -> Weights:
        """Open model.safetensors or the shards that its index names. Raises ModelError."""
        tensors: dict[str, TensorInfo] = {}
        for path in _files(folder):
            tensors |= _read_header(path)
        return cls(tensors)

    def raw(self, name: str) -> NDArray[Any]:
        """The tensor as it is stored, bfloat16 as its uint16 bits; mapped, not read."""
        info = self.tensors[name]
        shape = info.shape or (1,)
        found: NDArray[Any] = np.memmap(
            info.file, _DTYPES[info.dtype], "r", offset=info.offset, shape=shape
        )
        return found.reshape(info.shape)

    def float32(self, name: str) -> NDArray[np.float32]:
        """The tensor in float32."""
        stored = self.raw(name)
        if self.tensors[name].dtype == "BF16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(stored, dtype=np.float32)

    def check(self, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
        """Raise ModelError where a tensor of `shapes` is missing or of another shape."""
        for name, shape in shapes.items():
            if name not in self.tensors:
                raise ModelError(
                    f"{where}: weight {name} is missing",
                    hint="The files are not whole, or config.json is another model's.",
                )
            if self.tensors[name].shape != shape:
                raise ModelError(
                    f"{where}: weight {name} is {list(self.tensors[name].shape)}; "
                    f"config.json asks for {list(shape)}",
                    hint="config.json and the weights belong to different models.",
                )


def write_weights(
    path: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    load: Callable[[str], NDArray[Any]],
    *,
    progress: Progress | None = None,
) -> None:
    """Write a safetensors file, holding one tensor at a time in memory.

    `tensors` gives each name's safetensors dtype and shape; `load` gives its values, bfloat16 as
    uint16 bits. The file appears whole or not at all.
    """
    names = sorted(tensors)
    with atomic(path) as stream:
        stream.write(_header(names, tensors))
        for done, name in enumerate(names, 1):
            dtype, shape = tensors[name]
            _write_tensor(stream, name, load(name), np.dtype(_DTYPES[dtype]), shape)
            if progress is not None:
                progress(done, len(names))


def weights_sha256(folder: Path) -> str:
    """The SHA-256, in hex, over names, dtypes, shapes and bytes of all tensors, sorted by name.

    How the tensors are spread over files does not change it.
    """
    weights = Weights.open(folder)
    digest = hashlib.sha256()
    for name in sorted(weights.tensors):
        info = weights.tensors[name]
        digest.update(f"{name} {info.dtype} {list(info.shape)}\n".encode())
        digest.update(np.ascontiguousarray(weights.raw(name)).data)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(
                f"{folder / INDEX} is not an index of weights", hint="Fetch the file anew."
            ) from error
        return [folder / name for name in names]
    hint = "Name a folder that holds model.safetensors, or shards and their index."
    if any(folder.glob("*.bin")) or any(folder.glob("*.pdparams")):
        hint = "Only safetensors are read; `save_pretrained(…)` of the model's library writes them."
    raise ModelError(f"{folder} holds no safetensors", hint=hint)


def _read_header(path: Path) -> dict[str, TensorInfo]:
    broken = ModelError(f"{path} is not a whole safetensors file", hint="Fetch the file anew.")
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _MAX_HEADER:
                raise broken
            header = json.loads(stream.read(length))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", hint="Fetch the shard that is missing.") from None
    except (struct.error, ValueError) as error:
        raise broken from error
    header.pop("__metadata__", None)
    size = path.stat().st_size
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        if 8 + length + end > size:
            raise broken
        if entry["dtype"] not in _DTYPES:
            raise ModelError(
                f"{path}: weight {name} is of type {entry['dtype']}",
                hint="Use the model's weights in float32, float16 or bfloat16.",
            )
        shape = tuple(entry["shape"])
        if end - start != int(np.prod(shape)) * np.dtype(_DTYPES[entry["dtype"]]).itemsize:
            raise broken
        tensors[name] = TensorInfo(path, 8 + length + start, entry["dtype"], shape)
    return tensors


def _header(names: list[str], tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt"}
    }  # transformers refuses files without
    offset = 0
    for name in names:
        dtype, shape = tensors[name]
        end = offset + int(np.prod(shape)) * np.dtype(_DTYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_tensor(
    stream: IO[bytes], name: str, values: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> None:
    if values.shape != shape:
        raise ModelError(
            f"weight {name} is {list(values.shape)}; the model's shape asks for {list(shape)}",
            hint="The file is not whole, or it is not a Llama.",
        )
    stream.write(np.ascontiguousarray(values, dtype=dtype).data)
