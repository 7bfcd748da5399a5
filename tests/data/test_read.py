"""Every format that users bring becomes the same conversation; what is malformed is named."""

import json

import pytest

from appliance.data.read import Tally, read_conversations, read_documents
from appliance.errors import DataError
from appliance.recipe import DataSection

ROUNDS = [
    {"role": "system", "content": "Sei kurz."},
    {"role": "user", "content": "天气如何？"},
    {"role": "assistant", "content": "很好 😀"},
    {"role": "user", "content": "And tomorrow?"},
    {"role": "assistant", "content": "Rain."},
]
ONE = {"messages": ROUNDS[1:3]}
FORMATS = {
    "messages": {"messages": ROUNDS},
    "alpaca": {
        "system": "Sei kurz.",
        "history": [["天气如何？", "很好 😀"]],
        "instruction": "And tomorrow?",
        "input": "",
        "output": "Rain.",
    },
    "sharegpt": {
        "system": "Sei kurz.",
        "conversations": [
            {"from": "human", "value": "天气如何？"},
            {"from": "gpt", "value": "很好 😀"},
            {"from": "human", "value": "And tomorrow?"},
            {"from": "gpt", "value": "Rain."},
        ],
    },
    "src_tgt": {
        "src": ["天气如何？", "And tomorrow?"],
        "tgt": ["很好 😀", "Rain."],
        "context": {"system": "Sei kurz."},
    },
}


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read(path, **settings):
    tally = Tally()
    data = DataSection(train=[str(path)], **settings)
    return list(read_conversations(data.train, data, tally)), tally


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_is_detected_and_gives_the_same_conversation(tmp_path, format):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(FORMATS[format]), encoding="utf-8")
    rows, tally = read(path)
    assert rows[0].messages == ROUNDS
    assert rows[0].where == f"{path}:1"
    assert tally.format == format


def test_src_and_tgt_may_be_plain_text_and_alpaca_adds_its_input(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        lines(
            {"src": "Hi", "tgt": "Hello"},
            {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"},
        )
    )
    rows, tally = read(path)
    assert [m["content"] for m in rows[0].messages] == ["Hi", "Hello"]
    assert rows[1].messages[0]["content"] == "Translate.\nGuten Tag"
    assert tally.format == "alpaca, src_tgt"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_mark_and_windows_line_ends(tmp_path, end):
    path = tmp_path / "rows.jsonl"
    text = lines(ONE, FORMATS["alpaca"]).replace("\n", end)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [row.messages[0]["content"] for row in read(path)[0]] == ["天气如何？", "Sei kurz."]


def test_a_json_list_and_a_glob(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([ONE, FORMATS["messages"]]))
    (tmp_path / "b.json").write_text("\n " + json.dumps([FORMATS["sharegpt"]]))
    rows, _ = read(tmp_path / "*.json")
    assert [row.where for row in rows] == [
        f"{tmp_path}/a.json[0]",
        f"{tmp_path}/a.json[1]",
        f"{tmp_path}/b.json[0]",
    ]


def test_the_systems_message_is_put_only_where_none_is(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(ONE, FORMATS["messages"]))
    rows, _ = read(path, system="Be brief.")
    assert [row.messages[0]["content"] for row in rows] == ["Be brief.", "Sei kurz."]


def turn(role, content):
    return {"role": role, "content": content}


BROKEN = {
    "not JSON": '{"messages": [',
    "no JSON object": "[1, 2]",
    "no known format": lines({"question": "a", "reply": "b"}),
    "role is 'bot'": lines({"messages": [turn("user", "a"), turn("bot", "b")]}),
    "content is missing": lines({"messages": [turn("user", "a"), {"role": "assistant"}]}),
    "take turns": lines({"messages": [turn("user", "a"), turn("user", "b")]}),
    "no answer to learn": lines({"messages": [turn("user", "a")]}),
    "an answer is empty": lines({"messages": [turn("user", "a"), turn("assistant", " ")]}),
    "without a question": lines({"messages": [turn("system", "a")]}),
    "2 rounds but 'tgt' has 1": lines({"src": ["a", "b"], "tgt": ["c"]}),
    "'output' is 7": lines({"instruction": "a", "output": 7}),
    "'history' must be": lines({"instruction": "a", "output": "b", "history": [["x"]]}),
    "conversations[0].from is None": lines({"conversations": [{"value": "x"}]}),
    "plain text": lines({"text": "no conversation"}),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_malformed_line_is_refused_with_its_place_or_skipped_and_counted(tmp_path, problem):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(ONE) + "\n" + BROKEN[problem].rstrip("\n") + "\n" + lines(ONE))
    with pytest.raises(DataError) as refused:
        read(path)
    assert f"{path}:3: " in refused.value.message
    assert problem in refused.value.message
    assert "on_error: skip" in refused.value.hint
    rows, tally = read(path, on_error="skip")
    assert (len(rows), tally.skipped) == (2, 1)
    assert problem in tally.reasons[0]


def test_bytes_that_are_no_utf8_are_named_with_their_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(ONE).encode() + '{"text": "天"}'.encode("gb18030") + b"\n")
    with pytest.raises(DataError, match=r"rows.jsonl:2: not UTF-8"):
        read(path)
    text = tmp_path / "book.txt"
    text.write_bytes(b"first\nsecond\n" + "天".encode("gb18030"))
    with pytest.raises(DataError, match=r"book.txt:3: not UTF-8") as refused:
        read(text)
    assert "iconv" in refused.value.hint


@pytest.mark.parametrize(
    ("name", "problem"), [("none.jsonl", "does not exist"), ("table.csv", "named .csv")]
)
def test_a_file_that_is_missing_or_of_another_kind(tmp_path, name, problem):
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(DataError, match=problem):
        read(tmp_path / name)


def test_a_named_format_is_held_to(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines({"instruction": "a", "output": "b", "text": "a b"}))
    with pytest.raises(DataError, match="'messages' is missing"):
        read(path, format="messages")


def test_plain_text_from_lines_and_files(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines({"text": "行一\n"}, {"text": "  "}, {"text": "two"}))
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfline\r\nline")
    data = DataSection(train=[f"{tmp_path}/a.jsonl", f"{tmp_path}/b.txt"])
    found = [d.text for d in read_documents(data.train, data, Tally())]
    assert found == ["行一\n", "two", "line\nline"]
    (tmp_path / "c.jsonl").write_text(lines(ONE))
    chat = DataSection(train=[f"{tmp_path}/c.jsonl"])
    with pytest.raises(DataError, match=r"c.jsonl:1: a conversation; method pretrain"):
        list(read_documents(chat.train, chat, Tally()))
