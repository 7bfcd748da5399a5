"""Weight names and config fields: Hugging Face's and PaddleNLP's, for the Llama family.

Hugging Face keeps linear layers as [out, in], PaddleNLP as [in, out].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from appliance.bundle.config import ModelConfig, normal_config, read_config
from appliance.bundle.importer import copy_tokenizer
from appliance.bundle.weights import SINGLE, Progress, write_weights
from appliance.errors import ModelError
from appliance.files import write_json

_DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16"}  # paddle gives bfloat16 as uint16
_CONFIG_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def paddlenlp_name(name: str) -> str:
    """`model.layers.0.…` → `llama.layers.0.…`."""
    return "llama." + name.removeprefix("model.") if name.startswith("model.") else name


def hugging_face_name(name: str) -> str:
    """`llama.layers.0.…` → `model.layers.0.…`."""
    return "model." + name.removeprefix("llama.") if name.startswith("llama.") else name


def is_transposed(name: str) -> bool:
    """Whether the weight of this name (either spelling) is kept the other way round."""
    return name.endswith("_proj.weight") or name == "lm_head.weight"


def paddlenlp_config(config: ModelConfig) -> dict[str, Any]:
    """Arguments for PaddleNLP's LlamaConfig. Raises ModelError for what its Llama cannot do.

    PaddleNLP reads Hugging Face's config.json but passes over a linear rope scaling in silence.
    """
    usual = config.hidden_size / config.num_attention_heads
    if config.head_dim != usual:
        raise ModelError(
            f"config.json: head_dim is {config.head_dim}; PaddleNLP's Llama knows only "
            f"hidden_size / num_attention_heads ({usual:g})",
            hint="Train another model; this one can be exported and served as it is.",
        )
    fields: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "seq_length": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    scaling = config.rope_scaling
    if scaling is not None and scaling["rope_type"] == "linear":
        fields |= {"rope_scaling_type": "linear", "rope_scaling_factor": scaling["factor"]}
    elif scaling is not None:
        fields["rope_scaling"] = dict(scaling)
    return fields


def write_model(
    state: Mapping[str, NDArray[Any]],
    base: Path,
    target: Path,
    *,
    progress: Progress | None = None,
) -> None:
    """Write PaddleNLP's weights as a complete model folder in Hugging Face layout.

    `state` holds numpy arrays under PaddleNLP's names, bfloat16 as uint16; config, tokenizer,
    chat template and generation config come from `base`. Raises ModelError where a weight is
    missing or its shape is not the config's.
    """
    target.mkdir(parents=True, exist_ok=True)
    raw = read_config(base)
    config = ModelConfig.parse(raw, where=str(base / "config.json"))
    layout = {}
    for name, shape in config.tensors().items():
        if paddlenlp_name(name) not in state:
            raise ModelError(
                f"weight {paddlenlp_name(name)} is missing from the trained model",
                hint="The trained model is not the one that config.json describes.",
            )
        layout[name] = (_DTYPES[state[paddlenlp_name(name)].dtype.name], shape)

    def load(name: str) -> NDArray[Any]:
        values = state[paddlenlp_name(name)]
        return values.T if is_transposed(name) else values

    write_weights(target / SINGLE, layout, load, progress=progress)
    copy_tokenizer(base, target)
    dtype = _CONFIG_DTYPES[layout["model.embed_tokens.weight"][0]]
    write_json(target / "config.json", normal_config(raw, config) | {"torch_dtype": dtype})
