"""The tables of `appliance ps`, as wide as a terminal, or whole where there is none."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from appliance.jobs import listing
from appliance.jobs.store import Store


def page(**options):
    return Console(file=io.StringIO(), width=80, **options)


def printed(console):
    return console.file.getvalue().splitlines()


COLUMNS = ["DEPLOYMENT", "STATUS", "REST", "GRPC", "SINCE", "JOB"]
ROW = ["quickstart", "running", "127.0.0.1:18100", "127.0.0.1:18101", "19 h", "quickstart-3f2a"]


def test_a_terminal_cuts_the_last_column_alone():
    console = page(force_terminal=True, color_system=None)
    listing.show(console, COLUMNS, [ROW])
    head, row = printed(console)
    assert len(row) <= 80 and row.startswith("   ".join(ROW[:5])) and row.endswith("…")
    assert [head.index(name) for name in COLUMNS[:5]] == [row.index(cell) for cell in ROW[:5]]


def test_what_goes_into_a_pipe_is_whole():
    console = page()
    listing.show(console, COLUMNS, [ROW, [*ROW[:5], "x" * 100]])
    assert printed(console)[2].endswith("x" * 100)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (119, "119 s"), (121, "2 min"), (7100, "118 min"), (80000, "22 h"), (2e5, "2 d")],
)
def test_age(seconds, text):
    assert listing.age(time.time() - seconds) == text


def test_a_reason_is_text_and_does_not_steer_the_terminal(home):
    store = Store()
    job, _ = store.submit("tiny", "{}", "digest", ["train"])
    store.finish(store.claim(job.id), "failed", "it says [bold]\x1b[2J")
    store.close()
    console = page()
    listing.ps(console)
    assert printed(console)[1].endswith("it says [bold]\ufffd[2J")
