"""The shape of a Llama, read from a config.json in Hugging Face layout and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import ModelError
from appliance.files import read_json

ROPE_SCALINGS = {
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
"""Rotary scalings that training and the graph know, each with the figures that it needs."""


@dataclass(frozen=True)
class ModelConfig:
    """A Llama's shape; the names are those of Hugging Face's LlamaConfig."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    tie_word_embeddings: bool

    @classmethod
    def read(cls, folder: Path) -> ModelConfig:
        """Read and check a model folder's config.json. Raises ModelError."""
        return cls.parse(read_config(folder), where=str(folder / "config.json"))

    @classmethod
    def parse(cls, raw: Mapping[str, Any], *, where: str) -> ModelConfig:
        """Check a config; `where` names it in errors. Raises ModelError."""
        _check_family(raw, where)
        heads = _count(raw, "num_attention_heads", where)
        hidden = _count(raw, "hidden_size", where)
        theta, scaling = _rope(raw, where)
        config = cls(
            vocab_size=_count(raw, "vocab_size", where),
            hidden_size=hidden,
            intermediate_size=_count(raw, "intermediate_size", where),
            num_hidden_layers=_count(raw, "num_hidden_layers", where),
            num_attention_heads=heads,
            num_key_value_heads=_count(raw, "num_key_value_heads", where, default=heads),
            head_dim=_count(raw, "head_dim", where, default=hidden // heads),
            max_position_embeddings=_count(raw, "max_position_embeddings", where, default=2048),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        )
        config._check_heads(where)
        return config

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every weight's Hugging Face name and shape; linear layers are [out, in]."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        layer = {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, hidden),
            "model.norm.weight": (hidden,),
        }
        for index in range(self.num_hidden_layers):
            for name, shape in layer.items():
                shapes[f"model.layers.{index}.{name}.weight"] = shape
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    def _check_heads(self, where: str) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"{where}: num_key_value_heads is {self.num_key_value_heads}, which does not "
                f"divide num_attention_heads ({self.num_attention_heads})",
                hint="Fetch the model's config.json anew.",
            )
        if self.head_dim % 2:
            raise ModelError(
                f"{where}: head_dim is {self.head_dim}; rotary embedding needs an even one",
                hint="Fetch the model's config.json anew.",
            )


def read_config(folder: Path) -> dict[str, Any]:
    """The JSON object of a folder's config.json. Raises ModelError."""
    path = folder / "config.json"
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing",
            hint="Name a folder in Hugging Face layout: config.json, tokenizer.json, "
            "*.safetensors.",
        ) from None
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}", hint="Fetch the file anew.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object", hint="Fetch the file anew.")
    return value


def normal_config(raw: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """`raw` with rope and head fields spelled as every reader of Llama configs understands them.

    transformers 5 writes `rope_parameters` and `dtype`; PaddleNLP reads `rope_theta`,
    `rope_scaling` and `torch_dtype`. Fields that only a loader's own code would use are left out.
    """
    dropped = {"rope_parameters", "dtype", "auto_map", "quantization_config", "_name_or_path"}
    kept = {name: value for name, value in raw.items() if name not in dropped}
    return kept | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else dict(config.rope_scaling),
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def _check_family(raw: Mapping[str, Any], where: str) -> None:
    family = raw.get("model_type")
    if family != "llama":
        raise ModelError(
            f"{where}: model_type is {family!r}; this version knows `llama` alone",
            hint="Use a model of the Llama family, such as SmolLM2, TinyLlama or Llama 3.",
        )
    if raw.get("quantization_config"):
        raise ModelError(
            f"{where}: the weights are quantized ({raw['quantization_config']})",
            hint="Use the model's original weights in float32, float16 or bfloat16.",
        )
    for field in ("attention_bias", "mlp_bias"):
        if raw.get(field):
            raise ModelError(
                f"{where}: {field} is true; PaddleNLP's Llama has no biases",
                hint="Use a Llama without biases.",
            )
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(
            f"{where}: hidden_act is {activation!r}; a Llama's is silu",
            hint="Use a model of the Llama family.",
        )


def _count(raw: Mapping[str, Any], field: str, where: str, *, default: int | None = None) -> int:
    value = raw.get(field)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(
            f"{where}: {field} is {value!r}, not a whole number of 1 or more",
            hint="Fetch the model's config.json anew.",
        )
    return value


def _rope(raw: Mapping[str, Any], where: str) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling, from `rope_theta` and `rope_scaling` or transformers 5's spelling."""
    found = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(raw.get("rope_theta") or found.get("rope_theta") or 10000.0)
    kind = found.get("rope_type") or found.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind not in ROPE_SCALINGS:
        raise ModelError(
            f"{where}: rope_scaling is of type {kind!r}; known are {', '.join(ROPE_SCALINGS)}",
            hint="Use a model without it, or set rope_scaling to null: right up to the context "
            "that the model was first trained with.",
        )
    figures = {}
    for field in ROPE_SCALINGS[kind]:
        value = found.get(field)
        if not isinstance(value, int | float) or value <= 0:
            raise ModelError(
                f"{where}: rope_scaling of type {kind!r} has {field} = {value!r}",
                hint="Fetch the model's config.json anew.",
            )
        figures[field] = value
    return theta, {"rope_type": kind, **figures}
