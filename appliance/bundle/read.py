"""Bundles, read: for the server, the proof and whoever asks whether one is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.bundle.config import read_config
from appliance.bundle.seal import MANIFEST, Progress, check_files, read_sealed
from appliance.bundle.tokenizer import Tokenizer
from appliance.errors import BundleError, ModelError
from appliance.files import read_json

GRAPH = "graph.json"


@dataclass(frozen=True)
class Graph:
    """The step graph's files and shape (docs/design.md has its inputs and outputs)."""

    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_length: int
    """Longest sequence, in tokens: prompt and answer together."""
    onnx: Path
    paddle_model: Path
    paddle_params: Path

    @property
    def weights_apart(self) -> bool:
        """Whether the ONNX file is of over 2 GiB, so that its weights lie in a file beside it."""
        return self.onnx.with_name(f"{self.onnx.name}.data").is_file()

    @classmethod
    def read(cls, folder: Path) -> Graph:
        """Read graph.json of a bundle or of an `export` artifact. Raises BundleError."""
        path = folder / GRAPH
        try:
            raw = read_json(path)
            graph = cls(
                layers=int(raw["layers"]),
                kv_heads=int(raw["kv_heads"]),
                head_dim=int(raw["head_dim"]),
                vocab_size=int(raw["vocab_size"]),
                max_length=int(raw["max_length"]),
                onnx=folder / raw["onnx"],
                paddle_model=folder / raw["paddle_model"],
                paddle_params=folder / raw["paddle_params"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"{path} cannot be read: {error!r}",
                hint="Make the bundle anew with `appliance up RECIPE`.",
            ) from error
        for file in (graph.onnx, graph.paddle_model, graph.paddle_params):
            if not file.is_file():
                raise BundleError(
                    f"{file} is missing", hint="Make the bundle anew with `appliance up RECIPE`."
                )
        return graph


@dataclass(frozen=True)
class Bundle:
    """A sealed model: what a server needs to answer with it."""

    folder: Path
    manifest: Mapping[str, Any]
    """Empty but for `name` and `seal` where the bundle is not sealed yet (`check=False`)."""
    config: Mapping[str, Any]
    graph: Graph
    tokenizer: Tokenizer

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.manifest["name"])

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        return self.tokenizer.eos_ids


def open_bundle(folder: Path, *, check: bool = True, progress: Progress | None = None) -> Bundle:
    """Open a bundle; with `check`, every file is hashed and compared with the seal.

    `progress` is told how many of how many bytes are checked. Raises SealError naming a file that
    was changed, added or removed, BundleError for a folder that is no whole bundle. Without
    `check` a bundle that is not sealed yet opens too, under its folder's name.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise BundleError(
            f"there is no bundle at {folder}", hint="Make one with `appliance up RECIPE`."
        )
    if check:
        manifest: dict[str, Any] = check_bundle(folder, progress=progress)
    elif (folder / MANIFEST).is_file():
        manifest = read_sealed(folder)
    else:
        manifest = {"name": folder.name, "files": {}, "seal": ""}
    try:
        return Bundle(
            folder=folder,
            manifest=manifest,
            config=read_config(folder),
            graph=Graph.read(folder),
            tokenizer=Tokenizer.load(folder),
        )
    except ModelError as error:
        raise BundleError(error.message, hint=error.hint) from error


def check_bundle(folder: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Check a bundle's seal, reading every byte; gives its manifest. Raises as `open_bundle`."""
    manifest = read_sealed(folder)
    if not isinstance(manifest.get("name"), str):
        raise BundleError(
            f"{folder} is an artifact of stage {manifest.get('stage')!r}, not a bundle",
            hint="Name a folder that `appliance up` made, such as ~/.appliance/bundles/NAME.",
        )
    check_files(folder, manifest, progress)
    return manifest
