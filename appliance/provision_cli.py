"""The verbs of `appliance provision`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from appliance.errors import UserError


class TargetOrVerb(TyperGroup):
    """`provision TARGET` is `provision run TARGET`: a word that is no verb is a target."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Put the verb in where it was left out."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


provision_app = typer.Typer(
    cls=TargetOrVerb,
    help="From a bare server to a proven one: provision TARGET, history, diff HOST.",
    no_args_is_help=True,
)


@provision_app.command(
    "run",
    epilog="\n\n".join(
        [
            "Examples:",
            "  appliance provision ops@10.0.0.5 --profile a100-80g-x8",
            "  appliance provision inventory.yaml --check",
            "  appliance provision --bundle out.tar --profile cpu",
            "  appliance provision inventory.yaml --from-bundle out.tar --yes",
        ]
    ),
)
def run(
    target: Annotated[
        str | None, typer.Argument(metavar="TARGET", help="USER@HOST, or a YAML inventory.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="What the hosts are: a100-80g-x8, a100-40g-x4 or cpu.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before changing.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Show what would change, only.")] = False,
    from_bundle: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take all packages from this bundle.")
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Take them from a bundle served over HTTP.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Make the offline bundle of --profile.")
    ] = None,
    apt_sources: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --bundle: apt sources to use.")
    ] = None,
    package: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="With --bundle: a further package.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A role's variable.")
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="Only this host of the inventory.")
    ] = None,
    reboot: Annotated[bool, typer.Option(help="Reboot where a new driver needs it.")] = True,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to the pins before the last change.")
    ] = False,
    ask_sudo_password: Annotated[
        bool, typer.Option("--ask-sudo-password", "-K", help="Ask for the hosts' sudo password.")
    ] = False,
    sudo_password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read it from a file.")
    ] = None,
    deadline: Annotated[float, typer.Option(metavar="MINUTES", help="For the whole run.")] = 240.0,
) -> None:
    """Provision hosts: preflight, plan, confirm, converge, one reboot at most, burn-in, report."""
    from rich.console import Console

    console = Console(stderr=False)
    if bundle:
        from provisioning.bundle import describe, make_bundle

        if not profile:
            raise UserError("--bundle needs --profile", hint="a100-80g-x8, a100-40g-x4 or cpu")
        manifest = make_bundle(
            bundle,
            profile,
            settings=setting or [],
            sources=apt_sources,
            packages=package or [],
            say=lambda words: console.print(f"bundle: {words}", highlight=False),
        )
        console.print(describe(manifest), highlight=False)
        return
    if not target:
        raise UserError("no target", hint="appliance provision USER@HOST, or an inventory's path")
    from provisioning.command import Options, provision

    options = Options(
        profile=profile,
        settings=setting or [],
        limit=limit or [],
        yes=yes,
        check=check,
        reboot=reboot,
        rollback=rollback,
        bundle=from_bundle,
        mirror=mirror,
        sudo_password_file=sudo_password_file,
        ask_sudo_password=ask_sudo_password,
        deadline=deadline,
    )
    if code := provision(target, options, console):
        raise typer.Exit(code)


@provision_app.command("history")
def history() -> None:
    """All runs, oldest first."""
    from rich.console import Console

    from provisioning.show import history as show_history

    show_history(Console())


@provision_app.command("diff")
def diff(
    host: Annotated[str, typer.Argument(metavar="HOST", help="A host of earlier runs.")],
) -> None:
    """What differs between a host's last two runs."""
    from rich.console import Console

    from provisioning.show import difference

    difference(host, Console())
