"""What `up` shows, on a terminal of 80 columns and where there is none."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import sys
import termios
import time

import pytest
from rich.cells import cell_len
from rich.console import Console

from appliance.jobs import watch
from appliance.jobs.follow import Follower, Log
from appliance.jobs.live import Display
from appliance.jobs.tables import table
from appliance.jobs.words import clock, figure, outcome

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
        "unit": "step",
    } | more


def printed(display):
    return display.console.file.getvalue().splitlines()


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(log):
    display = plain(log)
    display.start("train")
    for step in range(1, 41):
        display.event(progress(step, loss=2.5, tokens_per_second=1234.5, seconds_left=75))
    display.end("train", "done", "done · held-out loss 2.1")
    assert printed(display) == [
        "train: started",
        "train: step 1/40 · loss 2.5 · 1,234 tokens/s · 1:15 left",
        "train: step 40/40 · loss 2.5 · 1,234 tokens/s",
        "train: done · held-out loss 2.1 (0:00)",
    ]


def test_a_terminal_shows_all_stages_within_80_columns(log):
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    display = Display("demo-1", STAGES, log, console)
    display.end("prepare", "done", "skipped: done by demo-0")
    display.start("train")
    starting = Console(file=io.StringIO(), width=80, color_system=None)
    starting.print(display.render())
    assert "train    starting" in starting.file.getvalue().splitlines()[2]
    display.event(
        {"kind": "metric", "stage": "train", "name": "eval_loss", "value": 2.75, "step": 10}
    )
    display.event(progress(20, loss=1.23456, tokens_per_second=987654, seconds_left=3700))
    with console.capture() as shown:
        console.print(display.render())
    page = Console(file=io.StringIO(), width=80, color_system=None)
    page.print(display.render())
    lines = page.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "✓ prepare  skipped: done by demo-0" in lines[1]
    assert "step 20/40 · loss 1.235 · held-out loss 2.75 · 987,654 tokens/s" in lines[2]
    assert lines[3].startswith("· evaluate")
    assert re.fullmatch(r"[━╸╺ ]+ 1:01:40 left", lines[4]) and "━" in lines[4]
    assert "eval_loss" not in console.file.getvalue(), "it has its place in the list of stages"
    assert "\x1b[" in shown.get(), "in colour"


def test_a_figure_of_every_step_is_shown_now_and_then_and_is_all_in_the_log(log, tmp_path):
    display = plain(log)
    event = {"kind": "metric", "stage": "train", "name": "eval_loss"}
    for step, value in ((10, 3.0), (20, 2.5), (30, 2.25)):
        display.event(event | {"value": value, "step": step})
    assert printed(display) == ["train: held-out loss 3 at step 10"]
    assert "train: held-out loss 2.25 at step 30" in (tmp_path / "log.txt").read_text()


def test_a_figure_that_is_measured_once_is_said_in_words(log):
    display = plain(log)
    for name, value in (("loss_before", 3.25), ("loss_after", 2.125), ("seconds", 7.0)):
        display.event({"kind": "metric", "stage": "evaluate", "name": name, "value": value})
    assert printed(display) == [
        "evaluate: held-out loss before training 3.25",
        "evaluate: held-out loss after training 2.125",
        "evaluate: seconds 7",
    ]


@pytest.mark.parametrize(
    ("stage", "metrics", "text"),
    [
        ("prepare", {"rows": 1300, "train": 1250, "eval": 50}, "1,250 to train on, 50 held out"),
        ("train", {"train_loss": 1.5, "eval_loss": 2.139}, "held-out loss 2.139"),
        ("train", {"train_loss": 1.5}, ""),
        (
            "evaluate",
            {"loss_before": 6.771, "loss_after": 2.139},
            "held-out loss 6.771 before, 2.139 after training",
        ),
        (
            "evaluate",
            {"loss_before": None, "loss_after": 2.139},
            "held-out loss 2.139 after training",
        ),
        ("verify", {"largest_difference": 1.6e-05}, "proven, logits within 1.6e-05"),
        ("merge", {"sha256": "ab"}, ""),
    ],
)
def test_what_a_stage_arrived_at(stage, metrics, text):
    assert outcome(stage, metrics) == text


PROOF = ["link", "against", "compared", "difference", "verdict", "where they part"]


def laid_out(columns, rows, width):
    page = Console(file=io.StringIO(), width=width, color_system=None)
    page.print(table(columns, rows, width))
    lines = [line.rstrip() for line in page.file.getvalue().splitlines()]
    assert max(map(cell_len, lines)) <= width
    return lines


def test_a_table_breaks_no_word_and_leaves_out_a_column_that_says_nothing():
    rows = [
        ["rendering", "training", "4 conversations, token ids", "", "agree", ""],
        ["merged", "trained", "4 prompts, 256 greedy steps", "9.5e-06", "agree", ""],
    ]
    lines = laid_out(PROOF, rows, 80)
    assert len(lines) == 6, "a line a row"
    assert "rendering   training   4 conversations, token ids" in lines[3]
    assert "part" not in "".join(lines)
    narrow = laid_out(PROOF, rows, 70)
    words = {word.strip(",") for word in " ".join(narrow).split()}
    assert {"conversations", "prompts", "rendering", "difference"} <= words


def test_a_table_with_much_text_is_a_list():
    parts = "prompt 2, step 17: logits differ by 0.41, merged chooses 311, trained 17"
    lines = laid_out(PROOF, [["merged", "trained", "4 prompts", "0.41", "PART", parts]], 80)
    assert " link             merged" in lines and " difference       0.41" in lines
    assert f" where they part  {parts[:50]}"[:60] in "\n".join(lines)


def test_empty_lines_of_a_text_are_left_out_of_a_table():
    lines = laid_out(["question", "after"], [["Chapter\n\n\n   It was", "cold"]], 80)
    assert [line.split() for line in lines[3:5]] == [["Chapter", "cold"], ["It", "was"]]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_long_answers_are_whole_at_any_width(width):
    rows = [["我的打印机不打印。" * 9, "Nothing.", "Please restart it. " * 10]]
    text = "".join("".join(laid_out(["question", "before", "after"], rows, width)).split())
    assert text.count("我的打印机不打印。") == 9 and text.count("restart") == 10


def test_a_table_is_in_the_log_too(log, tmp_path):
    display = plain(log)
    event = {"kind": "table", "stage": "evaluate", "title": "Answers", "columns": ["a", "b"]}
    display.event(event | {"rows": [["one", None], ["two", 0.5]]})
    assert printed(display)[0] == "Answers"
    logged = (tmp_path / "log.txt").read_text()
    assert "Answers" in logged and "two" in logged and "–" in logged


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


def test_a_stage_that_is_stopped_says_how_far_it_came(log):
    display = plain(log)
    display.start("train")
    display.event(progress(13))
    display.end("train", "stopped", "stopped")
    assert printed(display)[-1] == "train: stopped at step 13/40 (0:00)"


CTRL_C = """
import sys, time
from pathlib import Path
from rich.console import Console
from appliance.jobs.follow import Log
from appliance.jobs.live import Display
from appliance.jobs.lease import Signals
display = Display("demo-1", ["prepare", "train"], Log(Path(sys.argv[1])), Console())
with Signals() as signals, display:
    display.start("prepare")
    print("ready", flush=True)
    while not signals.count:
        time.sleep(0.01)
"""


def test_ctrl_c_leaves_no_mark_in_the_display_and_the_terminal_as_it_was(tmp_path):
    """On a terminal of its own, as its foreground process: the terminal must not write ^C."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, "-c", CTRL_C, str(tmp_path / "log.txt")])
    before = termios.tcgetattr(terminal)
    shown = b""
    while b"ready" not in shown:
        shown += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while block := os.read(terminal, 4096):
            shown += block
    assert os.waitpid(pid, 0)[1] == 0, shown
    assert b"prepare" in shown and b"^C" not in shown
    assert before[3] & termios.ECHOCTL and termios.tcgetattr(terminal) == before
    os.close(terminal)
