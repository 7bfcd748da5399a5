"""Shows the first rows of a recipe's data as training will see them."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from appliance.bundle.peek import import_tokenizer
from appliance.bundle.tokenizer import Tokenizer
from appliance.data.documents import read_sections, shares
from appliance.data.prepare import Counts, read_rows, render_rows
from appliance.data.read import Tally
from appliance.data.render import IGNORED, Example
from appliance.data.template import with_template
from appliance.files import from_here
from appliance.recipe import Recipe

LEARNT = "bold green"
MARKS = "⟦", "⟧"  # around what is learnt, where there is no colour


def preview(recipe: Recipe, console: Console, rows: int) -> None:
    """Print the first `rows` rows, and counts of all. Raises DataError, ModelError."""
    if recipe.train.method == "pretrain":
        _preview_text(recipe, console, rows)
    else:
        _preview_conversations(recipe, console, rows)


def _preview_text(recipe: Recipe, console: Console, rows: int) -> None:
    tally = Tally()
    sections = read_sections(recipe.data, recipe.train.seed, tally)
    for number, section in enumerate(sections[:rows], 1):
        _heading(console, f"section {number}: {len(section)} characters")
        console.print(Text(section), soft_wrap=True)
    train, held, test = shares(recipe.data.split, len(sections))
    console.rule(style="dim")
    _say(
        console,
        f"{sum(map(len, sections)):,} characters in {len(sections):,} sections: {train:,} to train "
        f"on, {held:,} held out, {test:,} for tests.",
        "Every token is learnt; the tokenizer is trained in the stage prepare.",
    )
    _say_skipped(console, tally)


def _preview_conversations(recipe: Recipe, console: Console, rows: int) -> None:
    assert recipe.model.base is not None
    with console.status("Reading the data"), tempfile.TemporaryDirectory() as folder:
        found = read_rows(recipe.data, recipe.train.seed)
        import_tokenizer(recipe.model.base, Path(folder))
        tokenizer, template = with_template(Tokenizer.load(Path(folder)))
        counts = Counts()
        everything = [*found.train, *found.eval]
        rendered = list(render_rows(everything, tokenizer, recipe.data.max_length, counts))
    for row, example in itertools.islice(zip(found.train, rendered, strict=False), rows):
        _heading(console, f"{from_here(row.where)}: {_size(example)}")
        plain = console.no_color or console.color_system is None
        console.print(_coloured(example, tokenizer, marks=plain), soft_wrap=True)
    console.rule(style="dim")
    _say(
        console,
        f"{found.tally.formats.total():,} rows, format {found.tally.format}: "
        f"{len(found.train):,} to train on, {len(found.eval):,} held out.",
        f"Left out, as they repeat another row word for word: {found.repeated:,}."
        if found.repeated
        else "",
        f"Left out, as they ask what a held-out row asks: {found.shared:,}."
        if found.shared
        else "",
        f"{counts.tokens:,} tokens, {counts.learnt_tokens:,} of them learnt; the longest row has "
        f"{counts.longest:,}.",
        f"Longer than data.max_length {recipe.data.max_length} and cut: {counts.truncated:,}."
        if counts.truncated
        else "",
        f"The base model has no chat template; the {template} one will be used."
        if template
        else "",
    )
    _say_skipped(console, found.tally)


def _heading(console: Console, text: str) -> None:
    console.print(Text(f"── {text}", style="dim"), soft_wrap=True)


def _size(example: Example) -> str:
    """How long a row is, and what was left out of it."""
    tokens = len(example.input_ids)
    parts = [f"{tokens:,} tokens"]
    if example.tokens_cut:
        parts = [f"{tokens:,} of {tokens + example.tokens_cut:,} tokens"]
    if example.rounds_cut:
        parts.append(f"without its oldest {example.rounds_cut} rounds")
    return ", ".join(parts)


def _say(console: Console, *sentences: str) -> None:
    for sentence in filter(None, sentences):
        console.print(sentence, soft_wrap=True)


def _say_skipped(console: Console, tally: Tally) -> None:
    if tally.skipped:
        _say(console, f"Skipped: {tally.skipped:,} rows. The first of them:")
        for reason in tally.reasons:
            console.print(Text(f"  {reason}"), soft_wrap=True)


def _coloured(example: Example, tokenizer: Tokenizer, *, marks: bool) -> Text:
    """The tokens' text, special ones too; what is learnt in colour, or between marks.

    Every other token is underlined, so that one sees where they part.
    """
    text = Text()
    pairs = zip(example.input_ids, example.labels, strict=True)
    for learnt, group in itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        parts = list(_pieces(tokenizer, [token for token, _ in group]))
        if learnt and marks:
            parts = [MARKS[0], *parts, MARKS[1]]
        for index, part in enumerate(parts):
            style = f"{LEARNT if learnt else ''} {'underline' if index % 2 else ''}"
            text.append(part, style=style.strip() or None)
    return text


def _pieces(tokenizer: Tokenizer, ids: list[int]) -> Iterator[str]:
    """The text of each token; tokens that share a character come together."""
    pending: list[int] = []
    for token in ids:
        pending.append(token)
        text = tokenizer.backend.decode(pending, skip_special_tokens=False)
        if not text.endswith("\ufffd"):
            yield text
            pending = []
    if pending:
        yield tokenizer.backend.decode(pending, skip_special_tokens=False)
