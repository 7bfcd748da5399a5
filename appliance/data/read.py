"""Reads the sources of a recipe: conversations, or plain text, each row with its place."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.data import packages
from appliance.data.formats import Message, RowError, detect, to_messages, to_text
from appliance.errors import DataError
from appliance.recipe import DataSection
from appliance.recipe.sources import PREFIX, package_files

_ROW_FILES = (".jsonl", ".json")


@dataclass(frozen=True)
class Conversation:
    """One conversation and where it stands, as `file:line`."""

    messages: list[Message]
    where: str


@dataclass(frozen=True)
class Document:
    """One plain text and where it stands."""

    text: str
    where: str


@dataclass
class Tally:
    """What was read: rows by format, rows left out, and the first few of them with the reason."""

    formats: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)

    def skip(self, reason: str) -> None:
        """Count a row that is left out."""
        self.skipped += 1
        if len(self.reasons) < 5:
            self.reasons.append(reason)

    @property
    def format(self) -> str:
        """The formats found, for the reader."""
        return ", ".join(sorted(self.formats))


def read_conversations(
    sources: list[str], data: DataSection, tally: Tally
) -> Iterator[Conversation]:
    """Give the conversations of `sources` in order, with `data.system` put in where it is missing.

    Raises DataError (file and line) for a malformed row unless `data.on_error` is skip.
    """
    for item in _items(sources, data, tally):
        if isinstance(item, Document):
            _refuse(data, tally, item.where, "plain text; methods lora and full learn answers")
            continue
        messages = item.messages
        if data.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": data.system}, *messages]
        yield Conversation(messages, item.where)


def read_documents(sources: list[str], data: DataSection, tally: Tally) -> Iterator[Document]:
    """Give the texts of `sources` in order. Raises DataError as `read_conversations` does."""
    for item in _items(sources, data, tally):
        if isinstance(item, Conversation):
            _refuse(data, tally, item.where, "a conversation; method pretrain learns plain text")
        elif item.text.strip():
            yield item


def _refuse(data: DataSection, tally: Tally, where: str, reason: str) -> None:
    if data.on_error == "refuse":
        raise DataError(
            f"{where}: {reason}",
            hint="Mend the line, or leave such lines out with `data.on_error: skip`.",
        )
    tally.skip(f"{where}: {reason}")


def _items(
    sources: list[str], data: DataSection, tally: Tally
) -> Iterator[Conversation | Document]:
    for source in sources:
        if source.startswith(PREFIX):
            yield from _package_items(source, tally)
        else:
            for path in source_files(source):
                yield from _file_items(path, data, tally)


def source_files(source: str) -> list[Path]:
    """The files that a path or glob names. Raises DataError where there are none."""
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    files = [p for p in found if p.is_file()]
    if not files:
        missing = "matches no file" if glob.has_magic(source) else "does not exist"
        what = "is a folder" if path.is_dir() else missing
        raise DataError(
            f"{source} {what}", hint="Name a file or a glob such as data/*.jsonl in data.train."
        )
    return files


def check_source(source: str, *, plain: bool) -> None:
    """Refuse what can be seen without reading rows: no file, one that no reader is for, one of
    plain text where conversations are learnt, nothing in any of them. Raises DataError."""
    files = source_files(source)
    for path in files:
        if _is_text(path) and not plain:
            raise DataError(
                f"{path} is plain text; methods lora and full learn answers",
                hint="Give conversations (.jsonl, .json), or learn text with method pretrain.",
            )
    if not any(path.stat().st_size for path in files):
        raise DataError(f"{source} is empty", hint="Add rows to it.")


def _is_text(path: Path) -> bool:
    """Whether a file is plain text, not rows. Raises DataError for a file of another kind."""
    if path.suffix in _ROW_FILES:
        return False
    if path.suffix == ".txt":
        return True
    raise DataError(
        f"{path}: files named {path.suffix or 'without an ending'} are not read",
        hint="Name it .jsonl (a row a line), .json (a list of rows) or .txt (plain text).",
    )


def _package_items(source: str, tally: Tally) -> Iterator[Conversation | Document]:
    for file in package_files(source):
        if file.kind == "dialogues":
            for messages, where in packages.dialogues(file, tally.skip):
                tally.formats[PREFIX + "dialogues"] += 1
                yield Conversation(messages, where)
        else:
            for text, where in packages.texts(file):
                tally.formats[PREFIX + "text"] += 1
                yield Document(text, where)


def _file_items(path: Path, data: DataSection, tally: Tally) -> Iterator[Conversation | Document]:
    if _is_text(path):
        tally.formats["text"] += 1
        yield Document(_read_text(path), str(path))
        return
    for row, where in _rows(path, data, tally):
        try:
            format = detect(row) if data.format == "auto" else data.format
            item = (
                Document(to_text(row), where)
                if format == "text"
                else Conversation(to_messages(row, format), where)
            )
        except RowError as error:
            _refuse(data, tally, where, str(error))
            continue
        tally.formats[format] += 1
        yield item


def _read_text(path: Path) -> str:
    """Text of a file: UTF-8, a byte order mark left out, line ends made `\\n`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _not_utf8(f"{path}:{line}") from None


def _not_utf8(where: str) -> DataError:
    return DataError(
        f"{where}: not UTF-8 text",
        hint="Convert the file, for instance with `iconv -f GB18030 -t UTF-8`.",
    )


def _rows(path: Path, data: DataSection, tally: Tally) -> Iterator[tuple[dict[str, Any], str]]:
    with path.open("rb") as stream:
        first = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if path.suffix == ".json" and first.startswith(b"["):
        found = _list_rows(path)
    else:
        found = _line_rows(path, data, tally)
    for value, where in found:
        if isinstance(value, dict):
            yield value, where
        else:
            _refuse(data, tally, where, "the row is no JSON object")


def _list_rows(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        values = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON: {error.msg}, column {error.colno}",
            hint="Mend the file; a .json file is one list of rows.",
        ) from None
    for index, value in enumerate(values):
        yield value, f"{path}[{index}]"


def _line_rows(path: Path, data: DataSection, tally: Tally) -> Iterator[tuple[Any, str]]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                value = json.loads(line) if line else None
            except UnicodeDecodeError:
                _refuse(data, tally, where, "not UTF-8 text")
                continue
            except json.JSONDecodeError as error:
                _refuse(data, tally, where, f"not JSON: {error.msg}, column {error.colno}")
                continue
            if line:
                yield value, where
