"""The fields of a GGUF file, read in a fraction of a second.

`gguf.GGUFReader` makes an array of every string, which takes seconds for a vocabulary; here the
header alone is walked. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO, Any

from appliance.errors import ModelError

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_MOST = 1 << 28  # bytes or entries that a field of a real model stays below


def read_fields(path: Path) -> dict[str, Any]:
    """All fields of a little-endian GGUF file by name. Raises ModelError where it is none."""
    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            version, _, count = struct.unpack("<IQQ", stream.read(20))
            if version not in (2, 3):
                raise ValueError(f"version {version} is unknown")
            return {_string(stream): _value(stream, _number(stream, "I")) for _ in range(count)}
    except (ValueError, KeyError, OSError, struct.error) as error:
        raise ModelError(
            f"{path} is not a GGUF file that can be read: {error}", hint="Fetch it anew."
        ) from error


def _value(stream: IO[bytes], kind: int) -> Any:
    if kind == _STRING:
        return _string(stream)
    if kind != _ARRAY:
        return _number(stream, _SCALARS[kind])
    kind, size = _number(stream, "I"), _size(stream)
    if kind in (_STRING, _ARRAY):
        return [_value(stream, kind) for _ in range(size)]
    layout = f"<{size}{_SCALARS[kind]}"
    return list(struct.unpack(layout, stream.read(struct.calcsize(layout))))


def _number(stream: IO[bytes], code: str) -> Any:
    return struct.unpack(f"<{code}", stream.read(struct.calcsize(f"<{code}")))[0]


def _size(stream: IO[bytes]) -> int:
    size = int(_number(stream, "Q"))
    if size > _MOST:
        raise ValueError(f"a field of {size} entries")
    return size


def _string(stream: IO[bytes]) -> str:
    return stream.read(_size(stream)).decode("utf-8", errors="replace")
