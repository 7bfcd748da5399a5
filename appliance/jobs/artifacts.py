"""How stages speak: a stage reads the artifacts that its stage.json names, writes into a folder
of its own, and publishes that folder by one rename with a manifest.

    artifacts/STAGE/FINGERPRINT.partial/   while the stage works; kept after a kill, so that
                                           training goes on from its last checkpoint
    artifacts/STAGE/FINGERPRINT/           published: manifest.json names every file's SHA-256
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from appliance.errors import JobError, StageError
from appliance.files import fingerprint, list_files, read_json, sealed, sync_folder, write_json
from appliance.jobs.events import Events

MANIFEST = "manifest.json"
SCRATCH = "scratch"  # in a partial folder: checkpoints and the like, removed when it is published


@dataclass(frozen=True)
class Stage:
    """One stage to run, as its stage.json says."""

    name: str
    job: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, Path]
    final: Path
    events_path: Path

    @property
    def output(self) -> Path:
        """The folder to write into until `publish`."""
        return self.final.with_name(self.final.name + ".partial")

    @property
    def scratch(self) -> Path:
        """A folder for checkpoints: outlives a kill, but is not published."""
        return self.output / SCRATCH

    @property
    def events(self) -> Events:
        """Where the stage says how far it is."""
        return Events(self.events_path, self.name)

    @classmethod
    def read(cls, path: Path) -> Stage:
        """Read a stage.json."""
        raw = read_json(path)
        return cls(
            name=raw["name"],
            job=raw["job"],
            spec=raw["spec"],
            inputs={name: Path(folder) for name, folder in raw["inputs"].items()},
            final=Path(raw["final"]),
            events_path=Path(raw["events"]),
        )

    def write(self, path: Path) -> None:
        """Write the stage.json that `read` reads."""
        write_json(
            path,
            {
                "name": self.name,
                "job": self.job,
                "spec": self.spec,
                "inputs": {name: str(folder) for name, folder in self.inputs.items()},
                "final": str(self.final),
                "events": str(self.events_path),
            },
        )

    def open(self) -> IO[bytes]:
        """Make the output folder and take its lock, which lasts as long as the returned file.

        Raises JobError where another process works on the same artifact.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        lock = self.final.with_name(self.final.name + ".lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise JobError(
                f"another process is working on {self.name} {self.final.name[:12]}",
                hint="See `appliance ps`; wait for that job or `appliance cancel` it.",
            ) from None
        return lock

    def publish(
        self,
        metrics: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Seal the output folder with a manifest and give it its final name by one rename.

        `extra` holds further entries of the manifest, such as a bundle's name and proof.

        Where the artifact was published meanwhile, that one stays: the same fingerprint means the
        same content.
        """
        shutil.rmtree(self.scratch, ignore_errors=True)
        manifest = {
            **(extra or {}),
            "stage": self.name,
            "fingerprint": self.final.name,
            "job": self.job,
            "spec": self.spec,
            "inputs": {name: folder.name for name, folder in self.inputs.items()},
            "metrics": dict(metrics or {}),
            "created": time.time(),
            "files": list_files(self.output, MANIFEST),
        }
        write_json(self.output / MANIFEST, sealed(manifest))
        sync_tree(self.output)
        if self.final.exists():
            shutil.rmtree(self.output)
            return
        os.rename(self.output, self.final)
        sync_folder(self.final.parent)


def sync_tree(folder: Path) -> None:
    """Bring all files below `folder`, and their names, to the disk."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def read_manifest(artifact: Path) -> dict[str, Any]:
    """The manifest of a published artifact. Raises StageError where there is none."""
    try:
        manifest: dict[str, Any] = read_json(artifact / MANIFEST)
    except FileNotFoundError:
        raise StageError(f"no published artifact at {artifact}") from None
    return manifest


def is_whole(artifact: Path) -> bool:
    """Whether an artifact is published and has all its files, by their sizes."""
    try:
        files = read_manifest(artifact)["files"]
    except (StageError, ValueError, KeyError):
        return False
    return all(
        (artifact / name).is_file() and (artifact / name).stat().st_size == entry["size"]
        for name, entry in files.items()
    )


def stage_fingerprint(
    name: str, spec: Mapping[str, Any], inputs: Mapping[str, Path], version: str
) -> str:
    """What makes two runs of a stage the same: its spec and the content of its inputs."""
    content = {key: fingerprint(read_manifest(path)["files"]) for key, path in inputs.items()}
    return fingerprint({"stage": name, "spec": spec, "inputs": content, "version": version})[:32]
