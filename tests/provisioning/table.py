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
    "T2": ("test_faults", "test_fleet", "test_toolkit", "test_cpu_host"),
}


def cases(paths: list[Path]) -> Iterator[tuple[str, str, str, float]]:
    """Module, test, outcome and seconds of every test in the reports."""
    for path in paths:
        for case in ET.parse(path).getroot().iter("testcase"):
            bad = case.find("failure") is not None or case.find("error") is not None
            outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "held"
            module = case.get("classname", "").rsplit(".", 1)[-1]
            yield module, case.get("name", ""), outcome, float(case.get("time", 0))


def table(found: list[tuple[str, str, str, float]], modules: tuple[str, ...]) -> str:
    """The lines of one table; the cases of one test are one line, and many small tests too."""
    lines = ["| shown | outcome | seconds |", "|---|---|---|"]
    for module in modules:
        rows = [(name.partition("[")[0], *rest) for m, name, *rest in found if m == module]
        if len(rows) > 25:
            rows = [(module, *rest) for _, *rest in rows]
        for name in dict.fromkeys(name for name, *_ in rows):
            cases = [(outcome, seconds) for n, outcome, seconds in rows if n == name]
            outcomes = ", ".join(sorted({outcome for outcome, _ in cases}))
            words = name.removeprefix("test_").replace("_", " ")
            many = f" ({len(cases)} cases)" if len(cases) > 1 else ""
            lines.append(f"| {words}{many} | {outcomes} | {sum(s for _, s in cases):.0f} |")
    return "\n".join(lines)


def main(paths: list[Path]) -> None:
    """Write the tables whose tests are in the reports; others stay."""
    # A test that was run again counts as it went last.
    found = list({(row[0], row[1]): row for row in cases(paths)}.values())
    text = PAGE.read_text(encoding="utf-8")
    for name, modules in TABLES.items():
        if not any(module in modules for module, *_ in found):
            continue
        mark = rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)"
        lines = table(found, modules)
        text = re.sub(mark, lambda m, new=lines: f"{m[1]}{new}\n{m[2]}", text, flags=re.DOTALL)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
