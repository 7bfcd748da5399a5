"""Bundles, written: a model in Hugging Face layout and its step graph, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.bundle.importer import check_complete
from appliance.bundle.read import GRAPH, Graph
from appliance.bundle.seal import MANIFEST
from appliance.errors import BundleError
from appliance.files import link_or_copy, list_files, sealed, write_json

MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
)


def write_bundle(folder: Path, *, model: Path, export: Path) -> None:
    """Put a model folder and an `export` artifact together in `folder`, not yet sealed.

    Files are hard links where the file system can. A half-written earlier attempt is replaced.
    Raises BundleError where the graph is another model's, ModelError where the model is not whole.
    """
    config = check_complete(model)
    graph = Graph.read(export)
    if (graph.layers, graph.kv_heads, graph.head_dim, graph.vocab_size) != (
        config.num_hidden_layers,
        config.num_key_value_heads,
        config.head_dim,
        config.vocab_size,
    ):
        raise BundleError(
            f"the graph at {export} was made from another model than {model}",
            hint="Export the model anew.",
        )
    files = {name: model / name for name in MODEL_FILES}
    files |= {
        path.relative_to(export).as_posix(): path
        for path in sorted((export / "graph").rglob("*"))
        if path.is_file()
    }
    files[GRAPH] = export / GRAPH
    for name, source in files.items():
        (folder / name).unlink(missing_ok=True)
        link_or_copy(source, folder / name)


def seal_bundle(folder: Path, name: str, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Seal a bundle that no stage publishes; gives its manifest.

    `facts` are further entries, such as recipe, metrics and proof.
    """
    manifest = sealed({**(facts or {}), "name": name, "files": list_files(folder, MANIFEST)})
    write_json(folder / MANIFEST, manifest)
    return manifest
