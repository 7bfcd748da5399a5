"""What `up` shows, on a terminal of 80 columns and where there is none."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from appliance.jobs import watch
from appliance.jobs.follow import Follower, Log
from appliance.jobs.live import Display, clock, figure

STAGES = ["prepare", "train", "evaluate"]


@pytest.fixture
def log(tmp_path):
    made = Log(tmp_path / "log.txt")
    yield made
    made.close()


def plain(log):
    return Display("demo-1", STAGES, log, Console(file=io.StringIO(), width=80))


def progress(done, total=40, **more):
    return {
        "kind": "progress",
        "stage": "train",
        "done": done,
        "total": total,
        "unit": "steps",
    } | more


def printed(display):
    return display.console.file.getvalue().splitlines()


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(log):
    display = plain(log)
    display.start("train")
    for step in range(1, 41):
        display.event(progress(step, loss=2.5, tokens_per_second=1234.5, seconds_left=75))
    display.end("train", "done", "done")
    assert printed(display) == [
        "train: started",
        "train: 1/40 steps · loss 2.5 · 1,234 tokens/s · 1:15 left",
        "train: 40/40 steps · loss 2.5 · 1,234 tokens/s · 1:15 left",
        "train: done · loss 2.5 (0:00)",
    ]


def test_a_terminal_shows_all_stages_within_80_columns(log):
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    display = Display("demo-1", STAGES, log, console)
    display.end("prepare", "done", "skipped: done by demo-0")
    display.start("train")
    display.event(progress(20, loss=1.23456, tokens_per_second=987654, seconds_left=3700))
    with console.capture() as shown:
        console.print(display.render())
    page = Console(file=io.StringIO(), width=80, color_system=None)
    page.print(display.render())
    lines = page.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "✓ prepare  skipped: done by demo-0" in lines[1]
    assert "20/40 steps · loss 1.235 · 987,654 tokens/s · 1:01:40 left" in lines[2]
    assert lines[3].startswith("· evaluate")
    assert set(lines[4]) <= {"━", "╸", "╺", " "} and "━" in lines[4]
    assert "\x1b[" in shown.get(), "in colour"


def test_a_figure_of_every_step_is_shown_once_and_is_all_in_the_log(log, tmp_path):
    display = plain(log)
    for value in (3.0, 2.5, 2.25):
        display.event({"kind": "metric", "stage": "train", "name": "eval_loss", "value": value})
    assert printed(display) == ["train: eval_loss 3"]
    assert "train: eval_loss 2.25" in (tmp_path / "log.txt").read_text()


def test_long_answers_wrap_inside_their_table(log, tmp_path):
    display = plain(log)
    rows = [["My printer does not print at all." * 3, "Nothing.", "Please restart it. " * 10, None]]
    columns = ["question", "before", "after", "reference"]
    display.event(
        {"kind": "table", "stage": "evaluate", "title": "Answers", "columns": columns, "rows": rows}
    )
    assert printed(display)[0] == "Answers"
    assert max(map(len, printed(display))) <= 80
    words = "".join("".join(printed(display)).split())
    assert words.count("restart") >= 8, "nothing is cut off"
    assert "Answers" in (tmp_path / "log.txt").read_text()


def test_markup_in_a_models_answer_is_text(log):
    display = plain(log)
    display.event({"kind": "note", "stage": "evaluate", "text": "it says [/bold] and [red]"})
    assert printed(display) == ["evaluate: it says [/bold] and [red]"]


def test_a_models_answer_does_not_steer_the_terminal(log, tmp_path):
    display = plain(log)
    rows = [["\x1b[2Jgone", "好\x07"]]
    display.event(
        {"kind": "table", "stage": "evaluate", "title": "T", "columns": ["a", "b"]} | {"rows": rows}
    )
    display.event({"kind": "note", "stage": "evaluate", "text": "\x1b]0;title\x07"})
    display.output("evaluate", "\x1b[31mred")
    shown = "\n".join(printed(display)) + (tmp_path / "log.txt").read_text()
    assert "\x1b" not in shown and "\x07" not in shown
    assert "\ufffd[2Jgone" in shown and "好" in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2.0, "2"), (1234567.0, "1,234,567"), (0.00012341, "0.0001234")]
)
def test_figure(value, text):
    assert figure(value) == text


def test_a_silent_stage_is_said_aloud_then_less_often(log, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "STALL_SECONDS", 0.2)
    display, output = plain(log), tmp_path / "output.txt"
    watched = watch.Watch("train", display, tmp_path / "events.jsonl", output)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        watched.read()
        time.sleep(0.01)
    said = [line for line in printed(display) if "no sign of life" in line]
    assert len(said) == 2, "after 0.2 and 0.4 seconds"
    output.write_text("a line\n")
    watched.read()
    time.sleep(0.1)
    watched.read()
    assert len(printed(display)) == 2, "any line is a sign of life"


def test_a_follower_gives_whole_lines_only(tmp_path):
    path = tmp_path / "grows"
    follower = Follower(path)
    assert follower.lines() == []
    path.write_bytes(b"eins\nzw")
    assert follower.lines() == ["eins"]
    with path.open("ab") as stream:
        stream.write("ölf\n10%\r90%\r100%\n".encode())
    assert follower.lines() == ["zwölf", "100%"]
