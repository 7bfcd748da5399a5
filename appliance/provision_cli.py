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


Where = Annotated[
    str | None, typer.Argument(metavar="TARGET", help="USER@HOST, or a YAML inventory.")
]
Profile = Annotated[
    str | None, typer.Option(help="What the hosts are: a100-80g-x8, a100-40g-x4 or cpu.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before changing.")]
Check = Annotated[bool, typer.Option("--check", help="Show what would change, only.")]
FromBundle = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Take all packages from this bundle.")
]
Mirror = Annotated[
    str | None, typer.Option(metavar="URL", help="Take them from a bundle served over HTTP.")
]
MakeBundle = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Make the offline bundle of --profile.")
]
AptSources = Annotated[
    Path | None, typer.Option(metavar="FILE", help="With --bundle: apt sources to use.")
]
Packages = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="With --bundle: a further package.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A role's variable.")
]
Limit = Annotated[
    list[str] | None, typer.Option(metavar="HOST", help="Only this host of the inventory.")
]
Reboot = Annotated[bool, typer.Option(help="Reboot where a new driver needs it.")]
Rollback = Annotated[
    bool, typer.Option("--rollback", help="Go back to the pins before the last change.")
]
AskPassword = Annotated[
    bool, typer.Option("--ask-sudo-password", "-K", help="Ask for the hosts' sudo password.")
]
PasswordFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Read it from a file.")]
Deadline = Annotated[float, typer.Option(metavar="MINUTES", help="For the whole run.")]


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
    target: Where = None,
    profile: Profile = None,
    yes: Yes = False,
    check: Check = False,
    from_bundle: FromBundle = None,
    mirror: Mirror = None,
    bundle: MakeBundle = None,
    apt_sources: AptSources = None,
    package: Packages = None,
    setting: Settings = None,
    limit: Limit = None,
    reboot: Reboot = True,
    rollback: Rollback = False,
    ask_sudo_password: AskPassword = False,
    sudo_password_file: PasswordFile = None,
    deadline: Deadline = 240.0,
) -> None:
    """Provision hosts: preflight, plan, confirm, converge, one reboot at most, burn-in, report."""
    if bundle:
        make_bundle(bundle, profile, setting or [], apt_sources, package or [])
        return
    if not target:
        raise UserError("no target", hint="appliance provision USER@HOST, or an inventory's path")
    from rich.console import Console

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
    if code := provision(target, options, Console()):
        raise typer.Exit(code)


def make_bundle(
    path: Path,
    profile: str | None,
    settings: list[str],
    sources: Path | None,
    packages: list[str],
) -> None:
    """Make the offline bundle of a profile and say what is in it. Raises UserError without one."""
    from rich.console import Console

    from provisioning import bundle

    if not profile:
        raise UserError("--bundle needs --profile", hint="a100-80g-x8, a100-40g-x4 or cpu")
    console = Console(highlight=False)
    manifest = bundle.make_bundle(
        path,
        profile,
        settings=settings,
        sources=sources,
        packages=packages,
        say=lambda words: console.print(f"bundle: {words}"),
    )
    console.print(bundle.describe(manifest))


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
