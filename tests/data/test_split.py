"""Nothing that is held out is trained on, and the same seed holds out the same."""

import pytest

from appliance.data.prepare import read_rows
from appliance.data.read import Conversation
from appliance.data.split import distinct, first_question, hold_out, without_questions_of
from appliance.errors import DataError
from appliance.recipe import DataSection


def row(question, answer):
    return Conversation(
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], "here"
    )


ROWS = [row(f"question {n % 40}", f"answer {n}") for n in range(200)]


def test_no_question_is_on_both_sides():
    train, held = hold_out(ROWS, 0.1, seed=1)
    assert len(train) + len(held) == 200
    assert 20 <= len(held) <= 30
    asked = {first_question(r.messages) for r in held}
    assert not asked & {first_question(r.messages) for r in train}


def test_the_split_is_the_seeds():
    assert hold_out(ROWS, 0.1, seed=1) == hold_out(ROWS, 0.1, seed=1)
    assert hold_out(ROWS, 0.1, seed=1) != hold_out(ROWS, 0.1, seed=2)


def test_near_copies_of_a_question_count_as_the_same():
    rows = [row("What  is IT?", "a"), row("what is it?", "b")]
    assert hold_out(rows, 0.5, seed=0) == (rows, [])


def test_few_rows_still_hold_one_out_and_none_where_none_is_asked_for():
    rows = [row("a", "1"), row("b", "2"), row("c", "3")]
    train, held = hold_out(rows, 0.01, seed=3)
    assert (len(train), len(held)) == (2, 1)
    assert hold_out(rows, 0.0, seed=3) == (rows, [])


def test_a_question_that_half_of_the_rows_ask_is_not_held_out():
    rows = [row("hello", str(n)) for n in range(50)] + [row(str(n), "x") for n in range(50)]
    for seed in range(20):
        _, held = hold_out(rows, 0.1, seed)
        assert len(held) == 10
        assert "hello" not in {first_question(r.messages) for r in held}


def test_where_all_questions_repeat_the_rarest_is_held_out():
    rows = [row("a", str(n)) for n in range(9)] + [row("b", str(n)) for n in range(4)]
    assert hold_out(rows, 0.1, seed=0) == (rows[:9], rows[9:])


def test_repetitions_go_and_order_stays():
    rows = [row("a", "1"), row("b", "2"), row("a", "1"), row("a", "3")]
    assert distinct(rows) == [rows[0], rows[1], rows[3]]
    assert without_questions_of(rows, [row("A", "other")]) == [rows[1]]


def test_the_quickstarts_held_out_questions_are_never_trained_on():
    sources = [f"package:chatterbot-corpus/english/{t}" for t in ("tech_support", "trivia")]
    found = read_rows(DataSection(train=sources, eval_fraction=0.1), seed=42)
    assert (len(found.train), len(found.eval), found.repeated) == (243, 27, 1040)
    asked = {first_question(r.messages) for r in found.eval}
    assert not asked & {first_question(r.messages) for r in found.train}


def test_questions_of_given_eval_rows_are_taken_out_of_training():
    source = "package:chatterbot-corpus/english/ai"
    found = read_rows(DataSection(train=[source], eval=[source.replace("ai", "trivia")]), seed=1)
    assert (found.shared, len(found.eval)) == (0, 260)
    mixed = DataSection(
        train=["package:chatterbot-corpus/english/ai", "package:chatterbot-corpus/english/food"],
        eval=["package:chatterbot-corpus/english/food"],
    )
    found = read_rows(mixed, seed=1)
    assert found.shared == 17
    assert {r.where.split("[")[0] for r in found.train} == {source}


def few(tmp_path, train, **settings):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(f'{{"src": "{q}", "tgt": "{a}"}}\n' for q, a in train))
    with pytest.raises(DataError) as refused:
        read_rows(DataSection(train=[str(path)], **settings), seed=1)
    return refused.value.message


def test_too_few_rows_are_refused_with_the_reason(tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text("")
    rows = [("a", "1"), ("b", "2")]
    assert few(tmp_path, []) == "data.train holds no rows"
    assert "only one question" in few(tmp_path, [("a", "1")])
    assert "only one question" in few(tmp_path, [("a", "1"), ("a", "2"), ("a", "3")])
    assert few(tmp_path, rows, eval=[str(held)]) == "data.eval holds no rows"
    held.write_text('{"src": "A", "tgt": "3"}\n{"src": "b", "tgt": "4"}\n')
    assert "what a row of data.eval asks" in few(tmp_path, rows, eval=[str(held)])
    skipped = few(tmp_path, [("a", "")], on_error="skip")
    assert "1 in number" in skipped and skipped.endswith("train.jsonl:1: an answer is empty")
