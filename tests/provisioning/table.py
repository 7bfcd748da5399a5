"""`python -m tests.provisioning.table REPORT.xml...`: the tables of docs/provisioning.md, anew.

Reads what `pytest --junitxml` wrote, and puts one line per test between the marks of its table:
what was shown, whether it held, and its seconds, the booting and provisioning before it included.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/provisioning.md"
TABLES = {
    "T0": ("test_roles", "test_preflight", "test_runner", "test_hosts"),
    "T1": ("test_sxm_host",),
    "T2": ("test_faults", "test_fleet", "test_cpu_host"),
}


def cases(paths: list[Path]) -> Iterator[tuple[str, str, str, float]]:
    """Module, test, outcome and seconds of every test in the reports."""
    for path in paths:
        for case in ET.parse(path).getroot().iter("testcase"):
            bad = case.find("failure") is not None or case.find("error") is not None
            outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "held"
            module = case.get("classname", "").rsplit(".", 1)[-1]
            yield module, case.get("name", ""), outcome, float(case.get("time", 0))


def spoken(name: str) -> str:
    """A test's name as words."""
    name, _, parameters = name.removeprefix("test_").partition("[")
    words = name.replace("_", " ")
    return f"{words} ({parameters.rstrip(']')})" if parameters else words


def table(found: list[tuple[str, str, str, float]], modules: tuple[str, ...]) -> str:
    """The lines of one table; a module of many small tests is one line."""
    lines = ["| shown | outcome | seconds |", "|---|---|---|"]
    for module in modules:
        rows = [row for row in found if row[0] == module]
        if len(rows) > 25:
            outcomes = {row[2] for row in rows}
            held = "held" if outcomes == {"held"} else ", ".join(sorted(outcomes))
            total = sum(row[3] for row in rows)
            lines.append(f"| {len(rows)} tests of {module}.py | {held} | {total:.1f} |")
            continue
        lines += [f"| {spoken(n)} | {outcome} | {s:.0f} |" for _, n, outcome, s in rows]
    return "\n".join(lines)


def main(paths: list[Path]) -> None:
    """Write the tables whose tests are in the reports; others stay."""
    found = list(cases(paths))
    text = PAGE.read_text(encoding="utf-8")
    for name, modules in TABLES.items():
        if not any(module in modules for module, *_ in found):
            continue
        mark = rf"(<!-- {name} -->\n).*?(\n<!-- end {name} -->)"
        lines = table(found, modules)
        text = re.sub(mark, lambda m, new=lines: f"{m[1]}{new}{m[2]}", text, flags=re.DOTALL)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
