"""What the verbs on jobs do; `cli.py` gives them their names and options."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from appliance.errors import DeployError, JobError, UserError
from appliance.files import fingerprint
from appliance.home import home
from appliance.jobs import ask, controller, deploy, launcher
from appliance.jobs.follow import Follower, last_lines
from appliance.jobs.rows import Deployment, Job
from appliance.jobs.store import Store, running_deployments
from appliance.machine import measure
from appliance.plan.plan import make_plan
from appliance.recipe import Recipe, find_recipe, load_recipe

DETACH_SECONDS = 30.0  # until a controller in the background must hold its job
CANCEL_SECONDS = 110.0  # until a controller must have ended its stage; longer than its grace
POLL_SECONDS = 0.2


def up(
    path: Path,
    console: Console,
    *,
    detach: bool = False,
    until: str | None = None,
    programs: str = launcher.PROGRAMS,
) -> None:
    """Check a recipe and run it. A job of the same recipe that was not finished is gone on with."""
    recipe = check(path, serves=until in (None, "deploy"))
    store = Store()
    job = submit(store, recipe, find_recipe(path), console, until=until)
    start(store, job, console, detach=detach, programs=programs)


def check(path: Path, *, serves: bool = True) -> Recipe:
    """The recipe, fit to run here and now: its ports are free, or held by what it will replace.

    Ports matter only to what `serves`: a run that ends before deploy needs none.

    Raises RecipeError, and DeployError where another deployment of ours has a port of it.
    """
    if not serves:
        return load_recipe(path, check_ports=False)
    serving = running_deployments()
    recipe = load_recipe(path, our_ports={p for d in serving for p in (d.rest_port, d.grpc_port)})
    check_deployments(recipe, serving)
    return recipe


def submit(
    store: Store, recipe: Recipe, path: Path, console: Console, *, until: str | None = None
) -> Job:
    """The queued job of a recipe: one of the same recipe that was not finished, or a new one.

    `path` is the recipe's file, kept with the job. Raises UserError for an unknown stage, JobError
    where a controller is running the recipe.
    """
    names = [stage.name for stage in make_plan(recipe, measure(home())).stages]
    if until is not None and until not in names:
        raise UserError(f"no stage is called {until!r}", hint=f"Stages: {', '.join(names)}.")
    text = recipe.model_dump_json()
    digest = fingerprint(recipe.model_dump(mode="json"))
    store.reap()
    job, found = store.submit(recipe.name, text, digest, names, until)
    if found is not None:
        tell(console, f"{job.id} has the same recipe and is {found}: going on with it")
        return job
    folder = controller.job_folder(job.id)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / "recipe.yaml")
    return job


def resume(
    reference: str,
    console: Console,
    *,
    detach: bool = False,
    programs: str = launcher.PROGRAMS,
) -> None:
    """Go on with a job that was interrupted or failed."""
    store = Store()
    store.reap()
    job = store.job(reference)
    store.requeue(job.id, job.until)
    start(store, store.job(job.id), console, detach=detach, programs=programs)


def start(store: Store, job: Job, console: Console, *, detach: bool, programs: str) -> None:
    """Run a queued job here, or in the background."""
    if detach:
        run_behind(store, job)
        tell(console, f"{job.id} runs in the background; `appliance logs -f {job.id}` follows it")
        return
    controller.run(store, job, console, programs=programs)
    farewell(store, store.job(job.id), console)


def run_behind(store: Store, job: Job) -> None:
    """Start a controller of its own session, and wait until it holds the job."""
    said = launcher.output_path(controller.job_folder(job.id), "controller")
    offset = said.stat().st_size if said.exists() else 0
    with said.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "appliance.cli", "resume", job.id],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + DETACH_SECONDS
    while store.job(job.id).status == "queued":
        if process.poll() is not None or time.monotonic() > deadline:
            words = "".join(f"\n  {line}" for line in last_lines(said, offset, 5))
            raise JobError(f"the controller of {job.id} did not start{words}", hint=f"See {said}.")
        time.sleep(POLL_SECONDS)


def check_deployments(recipe: Recipe, serving: list[Deployment]) -> None:
    """Raise DeployError where a deployment of another name has a port that the recipe wants."""
    name = recipe.serve.name or recipe.name
    for other in serving:
        for field in ("rest_port", "grpc_port"):
            port = getattr(recipe.serve, field)
            if other.name != name and port in (other.rest_port, other.grpc_port):
                raise DeployError(
                    f"serve.{field}: port {port} is taken by the deployment {other.name}",
                    hint=f"`appliance down {other.name}` frees it, or give another `{field}`.",
                )


def farewell(store: Store, job: Job, console: Console) -> None:
    """Say how to go on after a job that succeeded."""
    if job.until not in (None, "deploy"):
        tell(console, f"{job.id} is done up to {job.until}, as asked.")
        return
    recipe = Recipe.model_validate_json(job.recipe)
    serving = store.deployment(recipe.serve.name or recipe.name)
    if serving is None:
        return
    url = f"{ask.rest_address(serving)}/v1"
    if ask.has_chat_template(Path(serving.bundle)):
        what, chat = "Talk to it", [f"  appliance chat {serving.name}"]
        url, body = f"{url}/chat/completions", '{"messages": [{"role": "user", "content": "Hi!"}]}'
    else:
        what, chat = "Let it continue a text", []
        url, body = f"{url}/completions", '{"prompt": "Once upon a time", "max_tokens": 48}'
    tell(console, f"\n{serving.name} is served. {what}:", style="bold")
    for line in (
        *chat,
        f"  curl {url} \\",
        "       -H 'Content-Type: application/json' \\",
        f"       -d '{body}'",
        f"  gRPC at {ask.grpc_address(serving)}, service appliance.v1.LanguageModel",
        f"Stop it with `appliance down {serving.name}`.",
    ):
        tell(console, line)


def tell(console: Console, text: str, style: str = "") -> None:
    """Print a text as it is: no markup, no line broken at the console's width."""
    console.print(Text(text, style=style), soft_wrap=True)


def cancel(reference: str, console: Console) -> None:
    """Cancel a job, whether its controller lives or not."""
    store = Store()
    job = store.job(reference)
    store.reap()
    while not store.cancel(job.id):  # its controller is asked to
        if ended(store, job).status == "cancelled":
            break
    else:
        launcher.end_leftovers(controller.job_folder(job.id))
    tell(console, f"{job.id} is cancelled; what it finished is kept and reused")


def ended(store: Store, job: Job) -> Job:
    """The job when nobody runs it any more. Raises JobError where that takes too long."""
    deadline = time.monotonic() + CANCEL_SECONDS
    while store.job(job.id).status == "running":
        if time.monotonic() > deadline:
            raise JobError(
                f"the controller of {job.id} does not answer within {CANCEL_SECONDS:.0f} s",
                hint=f"It is process {job.lease_pid}: end that, then cancel again.",
            )
        time.sleep(POLL_SECONDS)
        store.reap()
    return store.job(job.id)


def logs(reference: str, console: Console, *, follow: bool = False) -> None:
    """Show the log of a job or a deployment; `follow` goes on until it ends."""
    store = Store()
    serving = None if reference == "latest" else store.deployment(reference)
    if serving is not None:
        logs_of_deployment(store, serving.name, console, follow=follow)
    else:
        logs_of_job(store, store.job(reference).id, console, follow=follow)


def logs_of_deployment(store: Store, name: str, console: Console, *, follow: bool) -> None:
    """Show what a server printed; `follow` goes on until it ends."""

    def grows() -> bool:
        serving = store.deployment(name)
        return serving is not None and serving.lives

    show(deploy.folder(name) / "log.txt", console, grows if follow else lambda: False)


def logs_of_job(store: Store, job: str, console: Console, *, follow: bool) -> None:
    """Show a job's log, and how it ended if not well; `follow` goes on until it ends."""

    def grows() -> bool:
        store.reap()
        return store.job(job).status in ("queued", "running")

    show(controller.job_folder(job) / "log.txt", console, grows if follow else lambda: False)
    row = store.job(job)
    if row.status != "succeeded":
        reason = f": {row.reason}" if row.reason else ""
        tell(Console(stderr=True), f"{job} is {row.status}{reason}")


def show(path: Path, console: Console, grows: Callable[[], bool]) -> None:
    """Print a file's lines, and those that are added to it as long as it grows."""
    follower = Follower(path)
    more = True
    while more:
        more = grows()  # asked first: what is written until it ends is read once more
        for line in follower.lines():
            tell(console, line)
        if more:
            time.sleep(POLL_SECONDS)
