"""A recipe's YAML: read safely, keys once each, and the line of every field kept for messages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from appliance.errors import RecipeError

Place = tuple[str | int, ...]
SHIPPED = Path(__file__).parent.parent / "recipes"


@dataclass(frozen=True)
class Document:
    """The values of a YAML file and the lines (from 1) where they stand."""

    path: Path
    values: Any
    lines: dict[Place, int]

    def line(self, place: Place) -> int:
        """The line of a field, or of the section that should hold it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def find_recipe(path: Path) -> Path:
    """The file that a user means: a path, or the bare name of a shipped recipe.

    Raises RecipeError where there is neither.
    """
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(SHIPPED.glob("*.yaml"))}
    if str(path) in shipped:
        return shipped[str(path)]
    what = "is a folder" if path.is_dir() else "does not exist"
    near = f"Did you mean `{path.stem}`? " if path.stem in shipped else ""
    raise RecipeError(
        f"recipe {path} {what}",
        hint=f"{near}Name a YAML file, or a shipped recipe: {', '.join(shipped)}.",
    )


def read_document(path: Path) -> Document:
    """Read a recipe's YAML. Raises RecipeError with the line of a bad spelling or repeated key."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Place, int] = {}
        problems: list[str] = []
        if root is not None:
            _walk(root, (), lines, problems)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"{path}{_line_of(error)}: not YAML: {_cause(error)}",
            hint="Indent with spaces, and put text with a colon or a # into quotes.",
        ) from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not UTF-8 text", hint="Save it as UTF-8.") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from None
    if problems:
        raise RecipeError(
            "\n".join(f"{path}:{problem}" for problem in problems), hint="Keep one of them."
        )
    return Document(path, values, lines)


def _walk(node: yaml.Node, place: Place, lines: dict[Place, int], problems: list[str]) -> None:
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = (*place, str(key.value))
            line = key.start_mark.line + 1
            if child in lines:
                name = ".".join(map(str, child))
                problems.append(f"{line}: {name} is given twice, first in line {lines[child]}")
                continue
            lines[child] = line
            _walk(value, child, lines, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*place, index), lines, problems)


def _line_of(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark else ""


def _cause(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error)
