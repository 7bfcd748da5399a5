"""Runs a job: its stages in order, each where no artifact of the same fingerprint exists yet.

The controller may die at any instant: its stage ends with it (the lifeline), and `resume` goes on
from what was published, and from the partial folder of the stage that was running.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from appliance.errors import ApplianceError, Interrupted, StageError
from appliance.home import home
from appliance.jobs import deploy, launcher, processes
from appliance.jobs.artifacts import Stage, is_whole, read_manifest, stage_fingerprint
from appliance.jobs.events import Events
from appliance.jobs.failure import failure
from appliance.jobs.follow import Log
from appliance.jobs.lease import Cancelled, Heartbeat, Signals
from appliance.jobs.live import Display
from appliance.jobs.rows import Job, Lease
from appliance.jobs.sources import source_stamps
from appliance.jobs.space import check_space
from appliance.jobs.store import LeaseLost, Store
from appliance.jobs.watch import Watch
from appliance.jobs.words import outcome
from appliance.machine import measure
from appliance.plan.plan import Plan, PlannedStage, make_plan
from appliance.recipe import Recipe
from appliance.version import __version__

POLL_SECONDS = 0.1


def job_folder(job: str) -> Path:
    """A job's folder."""
    return home() / "jobs" / job


def run(store: Store, job: Job, console: Console, *, programs: str = launcher.PROGRAMS) -> None:
    """Run a queued job to its end, or to the stage that it goes until.

    `programs` is the package of the stage programs. Raises JobError where another controller has
    the job, Interrupted or Cancelled where it is stopped, and the error of a stage that failed;
    the job's state is in the store by then.
    """
    recipe = Recipe.model_validate_json(job.recipe)
    plan = make_plan(recipe, measure(home()))
    lease = store.claim(job.id)
    folder = job_folder(job.id)
    stages = [stage.name for stage in plan.stages]
    if job.until is not None:
        stages = stages[: stages.index(job.until) + 1]
    with (
        contextlib.closing(Log(folder / "log.txt")) as log,
        Heartbeat(store, lease) as heartbeat,
        Signals() as signals,
        Display(job.id, stages, log, console) as display,
    ):
        work = Run(store, lease, recipe, plan, folder, display, heartbeat, signals, programs)
        try:
            work.stages(stages)
        except BaseException as error:
            settle(store, lease, display, error)
            raise
        store.finish(lease, "succeeded")
        log.write(f"{job.id}: succeeded")


def settle(store: Store, lease: Lease, display: Display, error: BaseException) -> None:
    """Write down how a job ended that did not succeed, and say how to go on."""
    resume = f"`appliance resume {lease.job}` goes on from here"
    display.log.write(f"{lease.job}: {error}")
    with contextlib.suppress(LeaseLost):
        if isinstance(error, LeaseLost):
            return
        if isinstance(error, Cancelled):
            store.finish(lease, "cancelled")
        elif isinstance(error, Interrupted):
            store.finish(lease, "interrupted", error.message)
            error.hint = f"Nothing is lost: {resume}."
        elif isinstance(error, ApplianceError):
            store.finish(lease, "failed", error.message.splitlines()[0])
            again = (
                f"When the cause is mended, {resume}; with a changed recipe, `appliance up` does."
            )
            error.hint = f"{error.hint}\n{again}".lstrip()
        else:
            store.finish(lease, "failed", f"defect: {type(error).__name__}: {error}")


@dataclass
class Run:
    """One run of a job by the controller that holds its lease."""

    store: Store
    lease: Lease
    recipe: Recipe
    plan: Plan
    folder: Path
    display: Display
    heartbeat: Heartbeat
    signals: Signals
    programs: str
    artifacts: dict[str, Path] = field(default_factory=dict)

    def stages(self, names: list[str]) -> None:
        """Run the stages of these names, in the plan's order."""
        if ended := launcher.end_leftovers(self.folder):
            self.display.say(f"ended {ended} process(es) that an earlier controller left behind")
        for planned in self.plan.stages:
            if planned.name not in names:
                continue
            self.check()
            if planned.name == "deploy":
                self.deploy(planned)
            else:
                self.artifacts[planned.name] = self.stage(planned)
            if planned.name == "verify":
                link(home() / "bundles" / self.recipe.name, self.artifacts["verify"])

    def check(self) -> None:
        """Raise what stops the run: a lost lease, a cancel, a signal."""
        self.heartbeat.check()
        self.signals.check()

    def watch(self, name: str) -> Watch:
        """Watches what a stage says from now on."""
        return Watch(
            name,
            self.display,
            self.folder / "events.jsonl",
            launcher.output_path(self.folder, name),
        )

    def stage(self, planned: PlannedStage) -> Path:
        """The artifact of a stage, made where it is not there yet."""
        spec = dict(planned.spec)
        if planned.name == "prepare":
            spec["sources"] = source_stamps(self.recipe)
        inputs = {name: self.artifacts[name] for name in planned.inputs}
        fingerprint = stage_fingerprint(planned.name, spec, inputs, __version__)
        final = home() / "artifacts" / planned.name / fingerprint
        about = {"fingerprint": fingerprint, "artifact": str(final)}
        if is_whole(final):
            self.skip(planned.name, about, f"skipped: {made_by(final, self.lease.job)}", final)
            return final
        if final.exists():
            self.display.say(f"{planned.name}: files of {final} are missing; it is made anew")
            shutil.rmtree(final)
        check_space(planned.name, self.recipe, inputs, home())
        stage = Stage(
            planned.name, self.lease.job, spec, inputs, final, self.folder / "events.jsonl"
        )
        self.begin(planned.name, about)
        self.launch(stage)
        self.done(planned.name, final)
        return final

    def launch(self, stage: Stage) -> None:
        """Run a stage's program to its end. Raises its error where it fails."""
        watch = self.watch(stage.name)
        worker = launcher.launch(stage, self.folder, programs=self.programs)
        try:
            self.store.change_stage(
                self.lease,
                stage.name,
                "running",
                pid=worker.pid,
                mark=processes.mark(worker.pid),
            )
            while (code := worker.exit_code()) is None:
                self.check()
                watch.read()
                time.sleep(POLL_SECONDS)
        except BaseException as error:
            self.stop(watch, worker, at_once=isinstance(error, LeaseLost))
            raise
        finally:
            worker.close()
            watch.read()
        launcher.end_leftovers(self.folder, grace=1.0)
        if code == 0 and not is_whole(stage.final):
            raise self.failed(
                stage.name, code, StageError(f"{stage.name} ended without its artifact")
            )
        if code != 0:
            raise self.failed(
                stage.name, code, failure(stage.name, code, watch.error, watch.printed)
            )

    def stop(self, watch: Watch, worker: launcher.Worker, *, at_once: bool) -> None:
        """End a stage's program, which may save its state first where that is still its own."""
        asked = self.signals.count
        try:
            if not at_once:
                self.display.say(f"{watch.name}: stopping; Ctrl-C again ends it at once", "yellow")
        finally:
            worker.end(hurry=lambda: at_once or self.signals.count > asked)
        watch.read()
        self.display.end(watch.name, "stopped", "stopped")

    def failed(self, name: str, code: int | None, error: ApplianceError) -> ApplianceError:
        """Write down that a stage failed; the error to raise."""
        stopped = isinstance(error, Interrupted)
        word = "stopped" if stopped else "failed"
        self.display.end(name, word, word)
        self.store.change_stage(
            self.lease,
            name,
            "interrupted" if stopped else "failed",
            ended=time.time(),
            exit_code=code,
            pid=None,
            mark=None,
        )
        output = launcher.output_path(self.folder, name)
        if output.exists():
            error.hint = "\n".join(filter(None, [error.hint, f"Its output: {output}"]))
        return error

    def begin(self, name: str, about: Mapping[str, Any]) -> None:
        """A stage begins."""
        self.display.start(name)
        self.store.change_stage(
            self.lease,
            name,
            "running",
            started=time.time(),
            ended=None,
            exit_code=None,
            skipped=False,
            **about,
        )

    def done(self, name: str, artifact: Path | None = None) -> None:
        """A stage ended well."""
        self.store.change_stage(
            self.lease, name, "done", ended=time.time(), exit_code=0, pid=None, mark=None
        )
        self.display.end(name, "done", with_outcome("done", name, artifact))

    def skip(
        self, name: str, about: Mapping[str, Any], why: str, artifact: Path | None = None
    ) -> None:
        """A stage need not run."""
        now = time.time()
        self.store.change_stage(
            self.lease, name, "done", started=now, ended=now, skipped=True, **about
        )
        self.display.end(name, "done", with_outcome(why, name, artifact))

    def deploy(self, planned: PlannedStage) -> None:
        """Serve the bundle."""
        target = deploy.Target(self.artifacts["verify"], planned.spec["serve"])
        self.begin("deploy", {"artifact": str(target.bundle)})
        watch = self.watch("deploy")

        def pulse() -> None:
            self.check()
            watch.read()

        events = Events(self.folder / "events.jsonl", "deploy")
        question = deploy.question_for(self.artifacts.get("evaluate"))
        try:
            fresh = deploy.deploy(self.store, self.lease.job, target, question, events, pulse)
        except ApplianceError as error:
            raise self.failed("deploy", None, error) from None
        finally:
            watch.read()
        if fresh:
            self.done("deploy")
        else:
            self.skip("deploy", {}, "skipped: this bundle is served already")


def with_outcome(text: str, stage: str, artifact: Path | None) -> str:
    """The text, and behind it what the stage arrived at."""
    said = outcome(stage, read_manifest(artifact)["metrics"]) if artifact is not None else ""
    return f"{text} · {said}" if said else text


def made_by(artifact: Path, job: str) -> str:
    """Who made an artifact, in words."""
    maker = read_manifest(artifact)["job"]
    return "done before" if maker == job else f"done by {maker}"


def link(path: Path, target: Path) -> None:
    """Make `path` a link to `target`, whatever it was a link to before, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, path)
