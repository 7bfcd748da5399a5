"""The verbs. Each is a few lines over a function elsewhere, imported when it is called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from appliance.errors import ApplianceError, Interrupted
from appliance.provision_cli import provision_app
from appliance.serve_cli import chat, serve
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
app.add_typer(provision_app, name="provision")

JOB_HELP = "A job's id, the start of one, or `latest`."
JobReference = Annotated[str, typer.Argument(metavar="JOB", help=JOB_HELP)]
RECIPE_HELP = "A recipe: a YAML file, or the bare name of a shipped one such as `quickstart`."
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help=RECIPE_HELP)]


def examples(*lines: str) -> str:
    """Commands shown at the end of a verb's --help, a line each."""
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines)])


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


@app.command(epilog=examples("appliance doctor --deep"))
def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also start Paddle and the engines (about 20 s).")
    ] = False,
) -> None:
    """Say what this machine has, what is missing and how to mend it.

    Exits 1 where something is missing without which nothing can be trained or served.
    """
    from rich.console import Console

    from appliance.doctor import report

    raise typer.Exit(0 if report(Console(highlight=False), deep=deep) else 1)


@recipe_app.command("check", epilog=examples("appliance recipe check my.yaml"))
def recipe_check(recipe: RecipeFile) -> None:
    """Check a recipe whole and say what it will do. Exits 2 with every fault of the file."""
    from appliance.jobs.verbs import check
    from appliance.recipe.summary import summary

    loaded = check(recipe)
    typer.echo(f"{loaded.name}: the recipe is sound")
    for section, text in summary(loaded):
        typer.echo(f"  {section:<7}{text}")


@recipe_app.command("schema", epilog=examples("appliance recipe schema > recipe.schema.json"))
def recipe_schema() -> None:
    """Print the JSON Schema of recipes: every field, its meaning, default and range."""
    import json

    from appliance.recipe import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), ensure_ascii=False, indent=2))


@data_app.command("preview", epilog=examples("appliance data preview quickstart --rows 5"))
def data_preview(
    recipe: RecipeFile,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows to show.")] = 3,
) -> None:
    """Show the first rows as training will see them, what is learnt in colour, and count all."""
    from rich.console import Console

    from appliance.data.preview import preview
    from appliance.recipe import load_recipe

    loaded = load_recipe(recipe, check_engine=False, check_ports=False)
    preview(loaded, Console(highlight=False), rows)


@data_app.command("sources", epilog=examples("appliance data sources"))
def data_sources() -> None:
    """List the text that installed packages carry, for `data.train` and `data.eval`."""
    from appliance.recipe.sources import overview

    for line in overview():
        typer.echo(line)


@bundle_app.command(
    "check", epilog=examples("appliance bundle check ~/.appliance/bundles/quickstart")
)
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


@app.command(
    epilog=examples(
        "appliance up quickstart",
        "appliance up my.yaml --detach",
        "appliance up my.yaml --until evaluate",
    )
)
def up(
    recipe: RecipeFile,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Run in the background; see `logs -f`.")
    ] = False,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")
    ] = None,
) -> None:
    """Train, prove and serve what a recipe describes.

    Stages: prepare, train, evaluate, merge, export, verify, deploy.

    What is done already is not done again. Safe to interrupt: the same command or `resume` goes on.
    """
    from appliance.jobs import verbs
    from appliance.jobs.terminal import Screen

    verbs.up(recipe, Screen(), detach=detach, until=until)


@app.command(
    epilog=examples("appliance resume latest", "appliance resume quickstart-3f2a --detach")
)
def resume(
    job: JobReference,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Run in the background; see `logs -f`.")
    ] = False,
) -> None:
    """Go on with a job that was interrupted or failed."""
    from appliance.jobs import verbs
    from appliance.jobs.terminal import Screen

    verbs.resume(job, Screen(), detach=detach)


@app.command(epilog=examples("appliance ps --all"))
def ps(
    all_: Annotated[bool, typer.Option("--all", "-a", help="Finished ones too.")] = False,
) -> None:
    """List unfinished jobs and running deployments."""
    from rich.console import Console

    from appliance.jobs import listing

    listing.ps(Console(), all_=all_)


@app.command(epilog=examples("appliance logs -f latest", "appliance logs quickstart"))
def logs(
    name: Annotated[
        str, typer.Argument(metavar="JOB", help=f"{JOB_HELP} Or the name of a deployment.")
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
) -> None:
    """Show the log of a job or of a deployment."""
    from rich.console import Console

    from appliance.jobs import verbs

    try:
        verbs.logs(name, Console(), follow=follow)
    except KeyboardInterrupt:
        raise typer.Exit(Interrupted.exit_code) from None


@app.command(epilog=examples("appliance cancel quickstart-3f2a"))
def cancel(job: JobReference) -> None:
    """End a job for good; what its stages finished is kept."""
    from rich.console import Console

    from appliance.jobs import verbs

    verbs.cancel(job, Console())


@app.command(epilog=examples("appliance down quickstart"))
def down(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A deployment; see `appliance ps`.")],
) -> None:
    """Stop serving a deployment."""
    from appliance.jobs import deploy
    from appliance.jobs.store import Store

    typer.echo(deploy.down(Store(), name))


app.command(
    epilog=examples(
        "appliance serve quickstart --rest-port 9000",
        "appliance serve ./bundle --engine onnxruntime --slots 8",
    )
)(serve)
app.command(
    epilog=examples(
        "appliance chat",
        'appliance chat --grpc -m "My printer does not print."',
        "appliance chat http://127.0.0.1:9000 --temperature 0",
    )
)(chat)


def main() -> None:
    """Run a verb; show errors as a message and a hint, never as a traceback."""
    try:
        app()
    except ApplianceError as error:
        stopped = isinstance(error, Interrupted)
        text = error.message if stopped else f"error: {error.message}"
        typer.secho(text, fg="yellow" if stopped else "red", err=True)
        if error.hint:
            typer.echo(error.hint, err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        from appliance.crash import is_full, save_report

        if is_full(error):
            typer.secho(f"error: the disk is full: {error}", fg="red", err=True)
            typer.echo("Make room, then `appliance resume` goes on; nothing is lost.", err=True)
            sys.exit(1)
        typer.secho(f"defect: {type(error).__name__}: {error}", fg="red", err=True)
        typer.echo(f"This is a mistake of ours. A report is at {save_report(error)}", err=True)
        sys.exit(ApplianceError.exit_code)


if __name__ == "__main__":
    main()
