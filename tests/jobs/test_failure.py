"""The reason that is shown for a stage that failed, and the room that a stage asks for."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from appliance.errors import ApplianceError, DataError, Interrupted, MachineError, StageError
from appliance.files import write_json
from appliance.jobs import space
from appliance.jobs.failure import failure
from tests.jobs.control import tiny_recipe

TRACEBACK = """\
step 3
Traceback (most recent call last):
  File "train.py", line 3, in <module>
    raise ValueError("first")
ValueError: first

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "train.py", line 5, in <module>
    work()
package.errors.ShapeError: sizes differ: [2, 3]
  and [3, 2]
"""


def test_a_tracebacks_last_cause_is_shown_with_the_lines_that_follow():
    error = failure("train", 1, None, TRACEBACK.splitlines())
    assert type(error) is ApplianceError and error.exit_code == 70
    assert error.message.splitlines()[1:] == [
        "  package.errors.ShapeError: sizes differ: [2, 3]",
        "    and [3, 2]",
    ]


def test_what_the_stage_said_counts_more_than_what_it_printed():
    said = {"type": "DataError", "message": "a.jsonl:1: no rows", "hint": "Add some."}
    error = failure("prepare", 2, said, TRACEBACK.splitlines())
    assert type(error) is DataError
    assert (error.message, error.hint) == ("prepare: a.jsonl:1: no rows", "Add some.")


def test_a_full_disk_is_no_defect():
    printed = ["OSError: [Errno 28] No space left on device: 'model.safetensors'"]
    error = failure("merge", 70, None, printed)
    assert type(error) is StageError and "disk full" in error.message
    assert "APPLIANCE_HOME" in error.hint


@pytest.mark.parametrize(("code", "kind"), [(130, Interrupted), (-15, Interrupted)])
def test_a_stage_stopped_from_outside_is_interrupted(code, kind):
    assert type(failure("train", code, None, [])) is kind


def test_a_signal_is_named():
    assert "SIGSEGV" in failure("export", -11, None, []).message


def test_room_is_asked_for_before_a_stage_writes(tmp_path, monkeypatch):
    artifact = tmp_path / "prepare"
    entry = {"sha256": "", "size": 10**9}
    write_json(artifact / "manifest.json", {"files": {"base/model.safetensors": entry}})
    recipe, inputs = tiny_recipe("tiny", "rows.jsonl"), {"prepare": artifact}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * 10**9))
    space.check_space("train", recipe, inputs, tmp_path)  # lora writes no weights
    full = recipe.model_copy(update={"train": recipe.train.model_copy(update={"method": "full"})})
    with pytest.raises(MachineError, match=r"train may write 13\.1 GB, and .* has 2\.0 GB free"):
        space.check_space("train", full, inputs, tmp_path)
