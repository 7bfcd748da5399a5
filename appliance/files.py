"""Files that a user could lose: written under a temporary name, fsynced, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under `path` only when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as stream:
            os.fchmod(stream.fileno(), 0o644)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic(path) as stream:
        stream.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sync_folder(path: Path) -> None:
    """Make renames inside a folder last through a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """The SHA-256, in hex, of a value's canonical JSON: same value, same fingerprint."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def list_files(folder: Path, but: str) -> dict[str, dict[str, Any]]:
    """Every file below `folder`, `but` one: relative path to SHA-256 and size in bytes."""
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "size": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / but
    }


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """`manifest` as it reads back from JSON, with its own fingerprint under `seal`."""
    plain: dict[str, Any] = json.loads(json.dumps({**manifest}))
    plain.pop("seal", None)
    return {**plain, "seal": fingerprint(plain)}


def from_here(path: str) -> str:
    """A path as a reader in the current folder writes it; anything else stays as it is."""
    here = os.path.join(os.getcwd(), "")
    return path.removeprefix(here)


def link_or_copy(source: Path, target: Path) -> None:
    """Give `target` the bytes of `source`: a hard link where the file system can, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as reader, atomic(target) as writer:
            while block := reader.read(1 << 20):
                writer.write(block)
