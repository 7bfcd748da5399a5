"""The store of jobs and deployments: one SQLite file, and the only SQL of the project.

A job's controller holds its lease: a token, renewed before it runs out. Each transition names the
state that it leaves and the lease that it holds, so of two controllers one changes the row and
the other finds none to change: it raises JobError and stops.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from appliance.errors import JobError, MachineError
from appliance.home import home
from appliance.jobs import processes
from appliance.jobs.rows import (
    Deployment,
    DeploymentStatus,
    Job,
    JobStatus,
    Lease,
    StageRow,
    StageStatus,
)

LEASE_SECONDS = 15.0
BUSY_SECONDS = 10.0  # how long a statement waits for another process's transaction

Row = TypeVar("Row")


def first_tables(db: sqlite3.Connection) -> None:
    """Jobs, their stages, deployments."""
    db.execute(
        """CREATE TABLE jobs (
            id TEXT PRIMARY KEY, name TEXT NOT NULL, recipe TEXT NOT NULL, digest TEXT NOT NULL,
            until TEXT, status TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
            created REAL NOT NULL, updated REAL NOT NULL, lease TEXT, lease_expires REAL,
            lease_pid INTEGER, lease_mark TEXT, cancel_requested INTEGER NOT NULL DEFAULT 0)"""
    )
    db.execute(
        """CREATE TABLE stages (
            job TEXT NOT NULL REFERENCES jobs(id), name TEXT NOT NULL, position INTEGER NOT NULL,
            status TEXT NOT NULL DEFAULT 'waiting', fingerprint TEXT, artifact TEXT, pid INTEGER,
            mark TEXT, started REAL, ended REAL, skipped INTEGER NOT NULL DEFAULT 0,
            exit_code INTEGER, PRIMARY KEY (job, name))"""
    )
    db.execute(
        """CREATE TABLE deployments (
            name TEXT PRIMARY KEY, bundle TEXT NOT NULL, job TEXT NOT NULL, pid INTEGER, mark TEXT,
            host TEXT NOT NULL, rest_port INTEGER NOT NULL, grpc_port INTEGER NOT NULL,
            status TEXT NOT NULL, options TEXT NOT NULL, previous TEXT, updated REAL NOT NULL)"""
    )


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (first_tables,)


class Store:
    """The store in one file. One object may be used by several threads.

    Raises MachineError where the file's folder cannot be written to.
    """

    def __init__(self, path: Path | None = None, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self.path = path or home() / "jobs.sqlite"
        if not os.access(self.path.parent, os.W_OK):
            raise MachineError(
                f"{self.path.parent} cannot be written to",
                hint="Set APPLIANCE_HOME to a folder that you may write to.",
            )
        self.lease_seconds = lease_seconds
        self._lock = threading.RLock()
        self._db = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA foreign_keys = ON")
        # Two processes that make the file at once: SQLite does not wait while it turns WAL on.
        with self.path.with_suffix(".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._migrate()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _migrate(self) -> None:
        with self._transaction() as db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied REAL)"
            )
            applied = {row["name"] for row in db.execute("SELECT name FROM migrations")}
            known = {step.__name__ for step in MIGRATIONS}
            if newer := applied - known:
                raise JobError(
                    f"{self.path} was written by a newer version of the appliance ({min(newer)})",
                    hint="Use that version, or set APPLIANCE_HOME to another folder.",
                )
            for step in MIGRATIONS:
                if step.__name__ not in applied:
                    step(db)
                    db.execute("INSERT INTO migrations VALUES (?, ?)", (step.__name__, time.time()))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, kind: type[Row], sql: str, *values: object) -> list[Row]:
        with self._lock:
            return [kind(**dict(row)) for row in self._db.execute(sql, values)]

    def _change(self, sql: str, *values: object) -> bool:
        with self._lock:
            return self._db.execute(sql, values).rowcount == 1

    # --- jobs ---------------------------------------------------------------------------------

    def submit(
        self, name: str, recipe: str, digest: str, stages: Sequence[str], until: str | None = None
    ) -> tuple[Job, JobStatus | None]:
        """The queued job of a recipe, and the state that it was found in.

        That is the newest job of the same digest which is neither succeeded nor cancelled; where
        there is none, a new one, found in no state. Raises JobError where a controller runs it.
        """
        with self._transaction() as db:
            rows = self._rows(
                Job,
                "SELECT * FROM jobs WHERE digest = ? AND status IN"
                " ('queued', 'running', 'interrupted', 'failed') ORDER BY created DESC LIMIT 1",
                digest,
            )
            if rows:
                self.requeue(rows[0].id, until)
                return self.job(rows[0].id), rows[0].status
            now = time.time()
            job = f"{name}-{secrets.token_hex(2)}"
            while db.execute("SELECT 1 FROM jobs WHERE id = ?", (job,)).fetchone():
                job = f"{name}-{secrets.token_hex(3)}"
            db.execute(
                "INSERT INTO jobs (id, name, recipe, digest, until, status, created, updated)"
                " VALUES (?, ?, ?, ?, ?, 'queued', ?, ?)",
                (job, name, recipe, digest, until, now, now),
            )
            db.executemany(
                "INSERT INTO stages (job, name, position) VALUES (?, ?, ?)",
                [(job, stage, position) for position, stage in enumerate(stages)],
            )
            return self.job(job), None

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        return self._rows(Job, "SELECT * FROM jobs ORDER BY created DESC, rowid DESC")

    def job(self, reference: str) -> Job:
        """The job with this id, the only one whose id starts so, or `latest`.

        Raises JobError where there is none or more than one.
        """
        jobs = self.jobs()
        if reference == "latest" and jobs:
            return jobs[0]
        exact = [job for job in jobs if job.id == reference]
        found = exact or [job for job in jobs if job.id.startswith(reference)]
        if len(found) == 1:
            return found[0]
        if found:
            some = ", ".join(job.id for job in found[:6])
            raise JobError(
                f"{reference!r} could be any of {len(found)} jobs",
                hint=f"Say which: {some}{', …' if len(found) > 6 else ''}.",
            )
        raise JobError(f"no job is called {reference!r}", hint="`appliance ps --all` lists them.")

    def reap(self) -> None:
        """Call `interrupted` the running jobs whose controller is gone."""
        for job in self._rows(Job, "SELECT * FROM jobs WHERE status = 'running'"):
            expired = (job.lease_expires or 0.0) < time.time()
            if expired or processes.surely_gone(job.lease_pid, job.lease_mark):
                with self._transaction():
                    if self._change(
                        "UPDATE jobs SET status = 'interrupted', reason = 'its controller is gone',"
                        " lease = NULL, updated = ? WHERE id = ? AND status = 'running'"
                        " AND lease = ? AND lease_expires = ?",
                        time.time(), job.id, job.lease, job.lease_expires,
                    ):  # fmt: skip
                        self._stop_stages(job.id, "interrupted")

    def requeue(self, job: str, until: str | None) -> None:
        """Queue an interrupted or failed job again. Raises JobError from any other state."""
        if not self._change(
            "UPDATE jobs SET status = 'queued', reason = '', until = ?, updated = ?"
            " WHERE id = ? AND status IN ('queued', 'interrupted', 'failed') AND lease IS NULL",
            until, time.time(), job,
        ):  # fmt: skip
            raise self._refusal(job, "be resumed")

    def claim(self, job: str) -> Lease:
        """Take the lease of a queued job, which makes it `running`. Raises JobError if taken."""
        lease = Lease(job, secrets.token_hex(16))
        now = time.time()
        if not self._change(
            "UPDATE jobs SET status = 'running', cancel_requested = 0, updated = ?, lease = ?,"
            " lease_expires = ?, lease_pid = ?, lease_mark = ?"
            " WHERE id = ? AND status = 'queued' AND lease IS NULL",
            now, lease.token, now + self.lease_seconds, os.getpid(), processes.mark(os.getpid()),
            job,
        ):  # fmt: skip
            raise self._refusal(job, "be run")
        return lease

    def renew(self, lease: Lease) -> bool:
        """Keep the lease; whether a cancel was asked for. Raises JobError where it is lost."""
        with self._transaction() as db:
            if not self._change(
                "UPDATE jobs SET lease_expires = ? WHERE id = ? AND status = 'running'"
                " AND lease = ?",
                time.time() + self.lease_seconds, lease.job, lease.token,
            ):  # fmt: skip
                raise lost(lease)
            row = db.execute("SELECT cancel_requested FROM jobs WHERE id = ?", (lease.job,))
            return bool(row.fetchone()[0])

    def finish(self, lease: Lease, status: JobStatus, reason: str = "") -> None:
        """End a running job and give up its lease. Raises JobError where the lease is lost."""
        with self._transaction():
            if not self._change(
                "UPDATE jobs SET status = ?, reason = ?, lease = NULL, cancel_requested = 0,"
                " updated = ? WHERE id = ? AND status = 'running' AND lease = ?",
                status, reason, time.time(), lease.job, lease.token,
            ):  # fmt: skip
                raise lost(lease)
            self._stop_stages(lease.job, "failed" if status == "failed" else "interrupted")

    def cancel(self, job: str) -> bool:
        """Cancel a job that nobody runs: True. Ask the controller of a running one: False.

        Raises JobError for a job that has ended.
        """
        with self._transaction():
            if self._change(
                "UPDATE jobs SET status = 'cancelled', updated = ? WHERE id = ?"
                " AND status IN ('queued', 'interrupted', 'failed') AND lease IS NULL",
                time.time(), job,
            ):  # fmt: skip
                return True
            if self._change(
                "UPDATE jobs SET cancel_requested = 1 WHERE id = ? AND status = 'running'", job
            ):
                return False
        raise self._refusal(job, "be cancelled")

    def _refusal(self, job: str, what: str) -> JobError:
        row = self.job(job)
        hints = {
            "running": f"`appliance logs -f {job}` follows it, `appliance cancel {job}` ends it.",
            "queued": "Another controller is starting it: see `appliance ps`.",
            "succeeded": "`appliance up` with the same recipe reuses what it made.",
            "cancelled": "`appliance up` with its recipe starts anew and reuses what it made.",
        }
        refused = "already" if row.status == "running" else f"and cannot {what}"
        return JobError(f"{job} is {row.status} {refused}", hint=hints.get(row.status, ""))

    # --- stages -------------------------------------------------------------------------------

    def stages(self, job: str) -> list[StageRow]:
        """The stages of a job, in order."""
        return self._rows(StageRow, "SELECT * FROM stages WHERE job = ? ORDER BY position", job)

    def change_stage(self, lease: Lease, name: str, status: StageStatus, **fields: object) -> None:
        """Set a stage's status and other fields. Raises JobError where the lease is lost."""
        unknown = set(fields) - set(StageRow.__dataclass_fields__)
        assert not unknown, unknown
        columns = "".join(f", {field} = ?" for field in fields)
        if not self._change(
            f"UPDATE stages SET status = ?{columns} WHERE job = ? AND name = ? AND EXISTS"
            " (SELECT 1 FROM jobs WHERE id = ? AND status = 'running' AND lease = ?)",
            status, *fields.values(), lease.job, name, lease.job, lease.token,
        ):  # fmt: skip
            raise lost(lease)

    def _stop_stages(self, job: str, status: StageStatus) -> None:
        self._db.execute(
            "UPDATE stages SET status = ?, ended = ? WHERE job = ? AND status = 'running'",
            (status, time.time(), job),
        )

    # --- deployments --------------------------------------------------------------------------

    def deployments(self) -> list[Deployment]:
        """All deployments by name, stopped ones too."""
        return self._rows(Deployment, "SELECT * FROM deployments ORDER BY name")

    def deployment(self, name: str) -> Deployment | None:
        """The deployment of this name."""
        rows = self._rows(Deployment, "SELECT * FROM deployments WHERE name = ?", name)
        return rows[0] if rows else None

    def put_deployment(
        self,
        *,
        bundle: Path,
        job: str,
        pid: int,
        options: Mapping[str, Any],
        previous: str | None,
    ) -> None:
        """Record a server that was just started. It is `starting` until `set_deployment`."""
        self._change(
            "INSERT OR REPLACE INTO deployments"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'starting', ?, ?, ?)",
            options["name"], str(bundle), job, pid, processes.mark(pid), options["host"],
            options["rest_port"], options["grpc_port"], json.dumps(options), previous, time.time(),
        )  # fmt: skip

    def set_deployment(self, seen: Deployment, status: DeploymentStatus) -> bool:
        """Set the status of a deployment that has not changed since it was seen; whether so."""
        return self._change(
            "UPDATE deployments SET status = ?, previous = NULL, updated = ?"
            " WHERE name = ? AND pid IS ? AND status = ?",
            status, time.time(), seen.name, seen.pid, seen.status,
        )  # fmt: skip


class LeaseLost(JobError):
    """Another controller took the job over: whoever reads this stops at once."""


def lost(lease: Lease) -> LeaseLost:
    """The error of a controller whose job another one took over."""
    return LeaseLost(
        f"this controller no longer holds {lease.job}: another one took it over, or this one stood"
        " still for too long",
        hint=f"`appliance logs -f {lease.job}` follows it, `appliance resume {lease.job}` goes on"
        " with it where nobody does.",
    )


def running_deployments() -> list[Deployment]:
    """The deployments of this home whose server process lives."""
    if not (home() / "jobs.sqlite").exists():
        return []
    store = Store()
    try:
        return [deployment for deployment in store.deployments() if deployment.lives]
    finally:
        store.close()
