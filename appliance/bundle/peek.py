"""What can be learnt of a base model without importing its weights: context and tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

from appliance.bundle.config import ModelConfig
from appliance.bundle.gguf_header import read_fields
from appliance.bundle.gguf_tokenizer import write_tokenizer
from appliance.bundle.importer import copy_tokenizer, locate
from appliance.errors import ModelError


def context_length(source: str) -> int:
    """The context, in tokens, of the model that `source` names. Raises ModelError."""
    path = locate(source)
    if path.is_dir():
        return ModelConfig.read(path).max_position_embeddings
    found = read_fields(path).get("llama.context_length")
    if not isinstance(found, int):
        raise ModelError(
            f"{path}: llama.context_length is missing",
            hint="Use a model of the Llama family, such as SmolLM2, TinyLlama or Llama 3.",
        )
    return found


def import_tokenizer(source: str, target: Path) -> None:
    """Write the tokenizer of the model that `source` names into `target`, as `import_model` would.

    Raises ModelError.
    """
    target.mkdir(parents=True, exist_ok=True)
    path = locate(source)
    if path.is_dir():
        copy_tokenizer(path, target)
        shutil.copyfile(path / "config.json", target / "config.json")
    else:
        write_tokenizer(read_fields(path), target, path)
