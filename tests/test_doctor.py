"""`appliance doctor` says what is there and what is missing."""

import io
import subprocess
import sys

from rich.console import Console

from appliance import doctor
from appliance.doctor import at_least, examine
from appliance.machine import GIB


def test_names_the_parts_that_the_lock_installs():
    findings = {finding.subject: finding for finding in examine()}
    assert findings["Paddle"].found.startswith("paddlepaddle 3.1.1")
    assert findings["paddlenlp"].state == "ok"
    assert findings["onnxruntime"].state == "ok"


def test_every_finding_that_is_not_ok_has_a_remedy():
    assert all(f.remedy for f in examine() if f.state != "ok")


def test_too_small_a_disk_is_said_with_both_figures():
    finding = at_least("Disk", 3 * GIB, 10 * GIB, "Mend.")
    assert finding.state == "note"
    assert "3.0 GiB" in finding.found
    assert "10 GiB" in finding.found


def test_the_report_says_the_remedy_below_and_whether_nothing_is_missing(monkeypatch):
    found = [
        doctor.Finding("Python", "ok", "3.10"),
        doctor.Finding("Paddle", "missing", "not installed", "Run `make setup`."),
    ]
    monkeypatch.setattr(doctor, "examine", lambda deep: iter(found))
    console = Console(file=io.StringIO(), width=80)
    assert doctor.report(console) is False
    assert console.file.getvalue().splitlines() == [
        "✓ Python: 3.10",
        "✗ Paddle: not installed",
        "    Run `make setup`.",
    ]
    found.pop()
    assert doctor.report(console) is True


def test_does_not_import_paddle():
    code = (
        "import sys; from appliance.doctor import examine; list(examine());"
        "print('paddle' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
