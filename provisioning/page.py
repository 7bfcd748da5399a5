"""The report as one HTML page that asks for nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment

TEMPLATE = Path(__file__).parent / "page.html.j2"


def page(run: Mapping[str, Any]) -> str:
    """The page of a run's report, everything of it escaped."""
    text = TEMPLATE.read_text(encoding="utf-8")
    return Environment(autoescape=True).from_string(text).render(run=run)
