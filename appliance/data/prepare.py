"""A recipe's conversations, read, split and rendered: what training and preview both show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from appliance.bundle.tokenizer import Tokenizer
from appliance.data.read import Conversation, Tally, read_conversations
from appliance.data.render import IGNORED, Example, render
from appliance.data.split import distinct, hold_out, without_questions_of
from appliance.errors import DataError
from appliance.recipe import DataSection


@dataclass(frozen=True)
class Rows:
    """Conversations to train on and held-out ones; `repeated` and `shared` were left out."""

    train: list[Conversation]
    eval: list[Conversation]
    tally: Tally
    repeated: int
    shared: int


@dataclass
class Counts:
    """What rendering did, summed over examples. Tokens are counted after truncation."""

    tokens: int = 0
    learnt_tokens: int = 0
    truncated: int = 0
    rounds_cut: int = 0
    tokens_cut: int = 0
    longest: int = field(default=0)

    def add(self, example: Example) -> None:
        """Count one example."""
        self.tokens += len(example.input_ids)
        self.learnt_tokens += sum(label != IGNORED for label in example.labels)
        self.truncated += example.truncated
        self.rounds_cut += example.rounds_cut
        self.tokens_cut += example.tokens_cut
        self.longest = max(self.longest, len(example.input_ids))


def read_rows(data: DataSection, seed: int) -> Rows:
    """Read a recipe's conversations and hold some out. Raises DataError where too few are left."""
    tally = Tally()
    found = list(read_conversations(data.train, data, tally))
    rows = distinct(found) if data.deduplicate else found
    shared = 0
    if data.eval:
        held = distinct(list(read_conversations(data.eval, data, tally)))
        train = without_questions_of(rows, held)
        shared = len(rows) - len(train)
    else:
        train, held = hold_out(rows, data.eval_fraction, seed)
        held = distinct(held)
    if not train or (not held and (data.eval or data.eval_fraction)):
        raise _too_few(found, held, data, tally)
    return Rows(train, held, tally, len(found) - len(rows), shared)


def _too_few(
    found: Sequence[Conversation], held: Sequence[Conversation], data: DataSection, tally: Tally
) -> DataError:
    """Why nothing is left to train on, or nothing to hold out."""
    if not found and tally.skipped:
        return DataError(
            f"all rows of data.train were skipped, {tally.skipped} in number, the first for: "
            f"{tally.reasons[0]}",
            hint="Mend the rows; `data.format` may name another format than they have.",
        )
    if not found:
        return DataError("data.train holds no rows", hint="Its files are empty; add rows.")
    if data.eval and not held:
        return DataError("data.eval holds no rows", hint="Its files are empty; add rows.")
    if data.eval:
        return DataError(
            "each row of data.train asks what a row of data.eval asks, so none is left to train on",
            hint="Take other rows into data.eval, or leave it out.",
        )
    return DataError(
        "data.train asks only one question, so no row can be trained on while another is held out",
        hint="Add rows, or name rows to hold out in data.eval.",
    )


def render_rows(
    rows: Sequence[Conversation],
    tokenizer: Tokenizer,
    max_length: int,
    counts: Counts,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Example]:
    """Render each row, adding to `counts`. Raises DataError with the row's place."""
    for done, row in enumerate(rows, 1):
        example = render(tokenizer, row.messages, max_length=max_length, where=row.where)
        counts.add(example)
        progress(done, len(rows))
        yield example
