"""The verbs. Each is a few lines over a function elsewhere, imported when it is called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from appliance.errors import ApplianceError
from appliance.version import __version__

app = typer.Typer(
    name="appliance",
    help="Train a language model, prove it, serve it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
recipe_app = typer.Typer(help="Check recipes.", no_args_is_help=True)
data_app = typer.Typer(help="Look at training data.", no_args_is_help=True)
app.add_typer(recipe_app, name="recipe")
app.add_typer(data_app, name="data")
bundle_app = typer.Typer(help="Check bundles.", no_args_is_help=True)
app.add_typer(bundle_app, name="bundle")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file.")]


def show_version(value: bool) -> None:
    """Print the version and leave."""
    if value:
        typer.echo(f"appliance {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Train a language model, prove it, serve it."""


@app.command()
def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also start Paddle and the engines (about 20 s).")
    ] = False,
) -> None:
    """Say what this machine has, what is missing and how to mend it.

    Exits 1 where something is missing without which nothing can be trained or served.
    """
    from appliance.doctor import examine

    signs = {"ok": ("✓", "green"), "note": ("!", "yellow"), "missing": ("✗", "red")}
    missing = False
    for finding in examine(deep=deep):
        sign, colour = signs[finding.state]
        missing |= finding.state == "missing"
        typer.echo(f"{typer.style(sign, fg=colour)} {finding.subject}: {finding.found}")
        if finding.remedy:
            typer.echo(f"    {finding.remedy}")
    raise typer.Exit(int(missing))


@bundle_app.command("check")
def bundle_check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A bundle.")],
) -> None:
    """Read every byte of a bundle and compare it with the seal."""
    from rich.progress import Progress

    from appliance.bundle.read import open_bundle

    with Progress(disable=not sys.stdout.isatty(), transient=True) as bar:
        task = bar.add_task("checking", total=None)
        bundle = open_bundle(
            folder, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    files = bundle.manifest["files"]
    size = sum(entry["size"] for entry in files.values())
    typer.echo(f"{bundle.name}: whole, {len(files)} files, {size / 1e6:,.1f} MB")
    typer.echo(f"seal {bundle.manifest['seal']}")


def main() -> None:
    """Run a verb; show errors as a message and a hint, never as a traceback."""
    try:
        app()
    except ApplianceError as error:
        typer.secho(f"error: {error.message}", fg="red", err=True)
        if error.hint:
            typer.echo(error.hint, err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
