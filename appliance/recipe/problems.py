"""What is wrong with a recipe's fields, in words: where, what was found, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from appliance.recipe.document import Place
from appliance.recipe.schema import Recipe


class Problem(NamedTuple):
    """One fault of one field."""

    place: Place
    text: str

    @property
    def field(self) -> str:
        """The field as a reader writes it: `data.train[0]`."""
        name = ""
        for part in self.place:
            name += f"[{part}]" if isinstance(part, int) else f".{part}"
        return name.removeprefix(".") or "recipe"


def explain(error: ValidationError) -> list[Problem]:
    """All faults that pydantic found, in a reader's words."""
    return [_problem(fault) for fault in error.errors()]


def _problem(fault: Mapping[str, Any]) -> Problem:
    place: Place = tuple(fault["loc"])
    kind, found, context = fault["type"], fault["input"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return Problem(place, f"unknown field; {_near(place)}")
    if kind == "missing":
        return Problem(place, f"missing; {_help(place)}")
    if kind in ("model_type", "model_attributes_type"):
        known = ", ".join(_fields(place))
        return Problem(place, f"found {_show(found)}; must be a section with the fields {known}")
    allowed = {
        "literal_error": "must be {expected}",
        "greater_than_equal": "must be at least {ge}",
        "greater_than": "must be greater than {gt}",
        "less_than_equal": "must be at most {le}",
        "less_than": "must be less than {lt}",
        "too_short": "must have at least {min_length} entry",
    }
    words = {
        "string_type": "must be text",
        "list_type": "must be a list",
        "int_type": "must be a whole number",
        "int_parsing": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number",
        "float_parsing": "must be a number",
        "bool_type": "must be true or false",
        "bool_parsing": "must be true or false",
    }
    if kind == "string_pattern_mismatch":
        rule = f"must match {context['pattern']}. {_help(place)}"
    elif kind in allowed:
        rule = allowed[kind].format(**context)
    else:
        rule = words.get(kind, str(fault["msg"]))
    return Problem(place, f"found {_show(found)}; {rule}")


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _section(place: Place) -> type[BaseModel] | None:
    """The section that holds the field at `place`."""
    section: type[BaseModel] = Recipe
    for part in place[:-1]:
        found = section.model_fields.get(str(part))
        types = [found.annotation, *getattr(found.annotation, "__args__", ())] if found else []
        models = [t for t in types if isinstance(t, type) and issubclass(t, BaseModel)]
        if not models:
            return None
        section = models[0]
    return section


def _fields(place: Place) -> list[str]:
    """The fields of the section at `place`."""
    section = _section((*place, ""))
    return list(section.model_fields) if section else []


def _near(place: Place) -> str:
    known = _fields(place[:-1])
    name = str(place[-1])
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if near:
        return f"did you mean {near[0]}?"
    for section, info in Recipe.model_fields.items():
        model = info.annotation
        fields = getattr(model, "model_fields", {})
        if name in fields:
            return f"it belongs into the section {section}"
    return f"known are {', '.join(known)}"


def _help(place: Place) -> str:
    section = _section(place)
    found = section.model_fields.get(str(place[-1])) if section else None
    if found is not None and found.description:
        return found.description
    return f"a section with the fields {', '.join(_fields(place))}"
