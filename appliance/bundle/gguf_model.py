"""GGUF into Hugging Face layout: dequantized to float32, rotary rows back in their first order.

Keys and tensor names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from appliance.bundle.config import ModelConfig
from appliance.bundle.gguf_tokenizer import write_tokenizer
from appliance.bundle.rope import frequencies
from appliance.bundle.weights import SINGLE, Progress, write_weights
from appliance.errors import ModelError
from appliance.files import write_json

_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3_FACTORS = (1.0, 4.0, 8192)  # low, high, first context: the same in Llama 3.1 to 3.3


def import_gguf(source: Path, target: Path, progress: Progress | None) -> None:
    """Write the model of a GGUF file into `target`. Raises ModelError."""
    try:
        reader = gguf.GGUFReader(str(source))
    except (ValueError, OSError, IndexError) as error:
        raise ModelError(
            f"{source} is not a GGUF file that can be read: {error}", hint="Fetch it anew."
        ) from error
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    raw = _config(fields, tensors, source)
    config = ModelConfig.parse(raw, where=str(source))
    stored = _stored_names(tensors, source)

    def load(name: str) -> NDArray[np.float32]:
        if name not in stored:
            raise ModelError(f"{source}: weight {name} is missing", hint="Fetch the file anew.")
        return _order_rows(name, _dequantize(tensors[stored[name]], source), config)

    layout = {name: ("F32", shape) for name, shape in config.tensors().items()}
    write_weights(target / SINGLE, layout, load, progress=progress)
    write_json(target / "config.json", raw | write_tokenizer(fields, target, source))


def _config(fields: Mapping[str, Any], tensors: Mapping[str, Any], source: Path) -> dict[str, Any]:
    family = fields.get("general.architecture")
    if family != "llama" or fields.get("llama.expert_count"):
        raise ModelError(
            f"{source}: the architecture is {family!r}"
            + (" with experts" if fields.get("llama.expert_count") else "")
            + "; this version knows plain `llama` alone",
            hint="Use a model of the Llama family, such as SmolLM2, TinyLlama or Llama 3.",
        )
    need = {
        "hidden_size": "llama.embedding_length",
        "intermediate_size": "llama.feed_forward_length",
        "num_hidden_layers": "llama.block_count",
        "num_attention_heads": "llama.attention.head_count",
        "max_position_embeddings": "llama.context_length",
        "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    }
    for key in need.values():
        if key not in fields:
            raise ModelError(f"{source}: {key} is missing", hint="Fetch the file anew.")
    heads = fields[need["num_attention_heads"]]
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{name: fields[key] for name, key in need.items()},
        # Stored as float32: 1e-5 comes out as 9.999999747378752e-06.
        "rms_norm_eps": _short(fields[need["rms_norm_eps"]]),
        "num_key_value_heads": fields.get("llama.attention.head_count_kv", heads),
        "head_dim": fields.get("llama.attention.key_length", fields[need["hidden_size"]] // heads),
        "rope_theta": _short(fields.get("llama.rope.freq_base", 10000.0)),
        "rope_scaling": None,
        "vocab_size": len(fields.get("tokenizer.ggml.tokens", ())),
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
    }
    config["rope_scaling"] = _rope_scaling(fields, tensors, config, source)
    return config


def _short(value: float) -> float:
    """The shortest decimal that is the same float32."""
    return float(str(np.float32(value)))


def _rope_scaling(
    fields: Mapping[str, Any], tensors: Mapping[str, Any], config: Mapping[str, Any], source: Path
) -> dict[str, Any] | None:
    """GGUF keeps llama3's scaling as one divisor a frequency: found again and compared."""
    kind = fields.get("llama.rope.scaling.type", "none")
    if _ROPE_FACTORS in tensors:
        factors = _dequantize(tensors[_ROPE_FACTORS], source).ravel()
        low, high, first = _LLAMA3_FACTORS
        scaling = {
            "rope_type": "llama3",
            "factor": float(factors.max()),
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": first,
        }
        plain = frequencies(config["head_dim"], config["rope_theta"], None)
        scaled = frequencies(config["head_dim"], config["rope_theta"], scaling)
        if factors.shape != plain.shape or not np.allclose(plain / factors, scaled, rtol=1e-3):
            raise ModelError(
                f"{source}: {_ROPE_FACTORS} is not Llama 3's rope scaling",
                hint="Import the model's Hugging Face folder instead.",
            )
        return scaling
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(fields["llama.rope.scaling.factor"])}
    raise ModelError(
        f"{source}: llama.rope.scaling.type is {kind!r}; known are linear and Llama 3's",
        hint="Use a model without it.",
    )


def _stored_names(tensors: Mapping[str, Any], source: Path) -> dict[str, str]:
    """Hugging Face's name of each tensor to GGUF's."""
    names = {}
    for stored in tensors:
        part, _, kind = stored.rpartition(".")
        block, _, rest = part.partition(".")
        index, _, layer = rest.partition(".")
        if kind == "weight" and part in _WHOLE:
            names[f"{_WHOLE[part]}.weight"] = stored
        elif kind == "weight" and block == "blk" and layer in _LAYER:
            names[f"model.layers.{index}.{_LAYER[layer]}.weight"] = stored
        elif stored != _ROPE_FACTORS and not stored.endswith("attn_rot_embd"):
            raise ModelError(
                f"{source}: weight {stored} is none of a Llama's",
                hint="Use a model of the Llama family without additions.",
            )
    return names


def _dequantize(tensor: Any, source: Path) -> NDArray[np.float32]:
    try:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ModelError(
            f"{source}: weight {tensor.name} is quantized as {tensor.tensor_type.name}, "
            "which the gguf package cannot read",
            hint="Use a file of another quantization, such as Q8_0 or F16.",
        ) from error
    shape = [int(size) for size in reversed(tensor.shape)]
    return np.asarray(values, dtype=np.float32).reshape(shape)


def _order_rows(name: str, values: NDArray[np.float32], config: ModelConfig) -> NDArray[np.float32]:
    """llama.cpp rotates neighbouring rows of queries and keys, Hugging Face two halves."""
    if name.endswith("q_proj.weight"):
        heads = config.num_attention_heads
    elif name.endswith("k_proj.weight"):
        heads = config.num_key_value_heads
    else:
        return values
    pairs = values.reshape(heads, -1, 2, values.shape[-1])
    return pairs.swapaxes(1, 2).reshape(values.shape)
