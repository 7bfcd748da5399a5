"""Reads the files that data packages carry (`appliance.recipe.sources` finds them)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import yaml

from appliance.data.formats import Message
from appliance.recipe.sources import PackageFile


def dialogues(
    file: PackageFile, skip: Callable[[str], None]
) -> Iterator[tuple[list[Message], str]]:
    """Conversations of one chatterbot-corpus topic, each with its place.

    A dialogue's lines are said in turn, the user first; a last question without an answer is left
    out. The corpus has a few entries that are no dialogues; a user cannot mend them, so they are
    given to `skip` rather than refused.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = yaml.load(file.path.read_text(encoding="utf-8"), Loader=loader)
    for index, lines in enumerate(content.get("conversations") or ()):
        where = f"{file.name}[{index}]"
        if not isinstance(lines, list) or not all(isinstance(t, (str, int, float)) for t in lines):
            skip(f"{where}: no list of lines")
            continue
        texts = [str(text).strip() for text in lines][: len(lines) // 2 * 2]
        if not texts or not all(texts):
            skip(f"{where}: no question and answer")
            continue
        roles = ("user", "assistant")
        yield [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)], where


def texts(file: PackageFile) -> Iterator[tuple[str, str]]:
    """The plain texts of one file, each with its place: a play, or a novel's chapters."""
    content = file.path.read_text(encoding="utf-8-sig")
    if file.kind == "plays":
        yield content, file.name
        return
    for index, chapter in enumerate(json.loads(content)):
        yield chapter, f"{file.name}[{index}]"
