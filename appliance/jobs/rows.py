"""What the store's tables hold, a frozen dataclass each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from appliance.jobs import processes

JobStatus = Literal["queued", "running", "succeeded", "failed", "interrupted", "cancelled"]
StageStatus = Literal["waiting", "running", "done", "failed", "interrupted"]
DeploymentStatus = Literal["starting", "running", "stopped", "failed"]


@dataclass(frozen=True)
class Job:
    """One job. `recipe` is the checked recipe as JSON, `digest` its fingerprint."""

    id: str
    name: str
    recipe: str
    digest: str
    until: str | None
    status: JobStatus
    reason: str
    created: float
    updated: float
    lease: str | None
    lease_expires: float | None
    lease_pid: int | None
    lease_mark: str | None
    cancel_requested: bool


@dataclass(frozen=True)
class StageRow:
    """One stage of a job. `pid` leads its process group."""

    job: str
    name: str
    position: int
    status: StageStatus
    fingerprint: str | None
    artifact: str | None
    pid: int | None
    mark: str | None
    started: float | None
    ended: float | None
    skipped: bool
    exit_code: int | None


@dataclass(frozen=True)
class Deployment:
    """One name that serves a bundle. `options` is the recipe's serve section as JSON;
    `previous` the bundle and options that served before, while a replacement starts."""

    name: str
    bundle: str
    job: str
    pid: int | None
    mark: str | None
    host: str
    rest_port: int
    grpc_port: int
    status: DeploymentStatus
    options: str
    previous: str | None
    updated: float

    @property
    def lives(self) -> bool:
        """Whether its process lives."""
        return self.status in ("starting", "running") and processes.lives(self.pid, self.mark)


@dataclass(frozen=True)
class Lease:
    """The right to run one job."""

    job: str
    token: str
