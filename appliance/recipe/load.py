"""Reads a recipe and checks it whole: all errors of the file at once, each with its field."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from appliance.errors import RecipeError
from appliance.recipe.checks import (
    Parts,
    absolute,
    cross_checks,
    engine_checks,
    find_context,
    port_checks,
)
from appliance.recipe.document import Document, find_recipe, read_document
from appliance.recipe.problems import Problem, explain
from appliance.recipe.schema import Recipe


def load_recipe(
    path: Path,
    *,
    check_engine: bool = True,
    check_ports: bool = True,
    our_ports: Collection[int] = frozenset(),
) -> Recipe:
    """Read a recipe file, or a shipped recipe by its bare name.

    Paths in it become absolute; lengths that it leaves out become the defaults or what the model's
    context allows. What neither proves nor serves needs no engine here. `our_ports` are held by
    deployments of this appliance, so being in use is no fault of theirs. Raises RecipeError with a
    line for each fault.
    """
    document = read_document(find_recipe(path))
    if not isinstance(document.values, dict):
        raise RecipeError(
            f"{document.path} holds no sections; a recipe has {', '.join(Recipe.model_fields)}",
            hint="See `appliance recipe schema` and the shipped recipes.",
        )
    problems, parts = _validate(document)
    context, faults = find_context(parts.model)
    parts = _settle(dataclasses.replace(parts, context=context))
    problems += [*faults, *cross_checks(parts)]
    if check_engine and parts.serve:
        problems += engine_checks(parts.serve)
    if check_ports and parts.serve:
        problems += port_checks(parts.serve, our_ports)
    if problems:
        raise _error(document, problems)
    sections = {name: getattr(parts, name) for name in _SECTIONS}
    return Recipe(name=document.values["name"], **sections)


_SECTIONS = [field.name for field in dataclasses.fields(Parts) if field.name != "context"]


def _validate(document: Document) -> tuple[list[Problem], Parts]:
    """The faults of single fields, and the sections as far as they have none."""
    problems: list[Problem] = []
    try:
        Recipe.model_validate(document.values)
    except ValidationError as error:
        problems = explain(error)
    folder = document.path.absolute().parent
    sections = {name: _sound(name, document.values.get(name, {}), problems) for name in _SECTIONS}
    return problems, _with_paths(Parts(**sections), folder)


def _sound(name: str, value: Any, problems: list[Problem]) -> Any:
    """A section without its faulty fields, so that what is left is still checked; else None."""
    section = Recipe.model_fields[name].annotation
    assert isinstance(section, type) and issubclass(section, BaseModel)
    faulty = {problem.place[1:2] for problem in problems if problem.place[:1] == (name,)}
    if not isinstance(value, dict):
        return None
    try:
        return section.model_validate({k: v for k, v in value.items() if (k,) not in faulty})
    except ValidationError:
        return None


def _with_paths(parts: Parts, folder: Path) -> Parts:
    model, data = parts.model, parts.data
    if model and model.base:
        model = model.model_copy(update={"base": absolute(model.base, folder)})
    if data:
        sources = {
            "train": [absolute(source, folder) for source in data.train],
            "eval": [absolute(source, folder) for source in data.eval],
        }
        data = data.model_copy(update={k: v for k, v in sources.items() if v})
    return dataclasses.replace(parts, model=model, data=data)


def _settle(parts: Parts) -> Parts:
    """Lower lengths that the recipe leaves out to what the model, or the graph, can hold."""
    if parts.context is None:
        return parts
    graph = min(parts.context, (parts.export and parts.export.max_length) or parts.context)
    data, serve = parts.data, parts.serve
    if data and "max_length" not in data.model_fields_set:
        data = data.model_copy(update={"max_length": min(data.max_length, parts.context)})
    if serve and "max_length" not in serve.model_fields_set:
        serve = serve.model_copy(update={"max_length": min(serve.max_length, graph)})
    return dataclasses.replace(parts, data=data, serve=serve)


def _error(document: Document, problems: list[Problem]) -> RecipeError:
    ordered = sorted(problems, key=lambda problem: document.line(problem.place))
    count = f"{len(ordered)} error" + ("s" if len(ordered) > 1 else "")
    lines = [
        f"  line {document.line(problem.place)}: {problem.field}: {problem.text}"
        for problem in ordered
    ]
    return RecipeError(
        "\n".join([f"{document.path} has {count}", *lines]),
        hint="`appliance recipe schema` describes every field.",
    )
