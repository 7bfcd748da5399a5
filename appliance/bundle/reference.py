"""A Llama in plain numpy: slow, short, and independent of what it is compared with.

In float64: on SmolLM2 a float32 forward pass of this kind is itself up to 4e-4 off.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from appliance.bundle.config import ModelConfig
from appliance.bundle.rope import frequencies
from appliance.bundle.weights import Weights

Array = NDArray[np.float64]


def logits(config: ModelConfig, weights: Weights, ids: Sequence[int]) -> Array:
    """Logits [S, V] of one sequence without a cache."""

    def get(name: str) -> Array:
        return weights.float32(name).astype(np.float64)

    x = get("model.embed_tokens.weight")[list(ids)]
    for index in range(config.num_hidden_layers):
        name = f"model.layers.{index}."
        h = _norm(x, get(f"{name}input_layernorm.weight"), config.rms_norm_eps)
        x = x + _attention(config, weights, f"{name}self_attn.", h)
        h = _norm(x, get(f"{name}post_attention_layernorm.weight"), config.rms_norm_eps)
        gate = h @ get(f"{name}mlp.gate_proj.weight").T
        up = h @ get(f"{name}mlp.up_proj.weight").T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ get(f"{name}mlp.down_proj.weight").T
    x = _norm(x, get("model.norm.weight"), config.rms_norm_eps)
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    found: Array = x @ get(head).T
    return found


def _norm(x: Array, weight: Array, eps: float) -> Array:
    scale = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + eps)
    found: Array = x / scale * weight
    return found


def _attention(config: ModelConfig, weights: Weights, name: str, h: Array) -> Array:
    length, dim = h.shape[0], config.head_dim
    group = config.num_attention_heads // config.num_key_value_heads

    def heads(projection: str) -> Array:
        out = h @ weights.float32(f"{name}{projection}.weight").T.astype(np.float64)
        return out.reshape(length, -1, dim).swapaxes(0, 1)

    q, k = (_rotate(config, heads(projection)) for projection in ("q_proj", "k_proj"))
    k, v = (np.repeat(part, group, axis=0) for part in (k, heads("v_proj")))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(dim)
    scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares = shares / shares.sum(-1, keepdims=True)
    o = (shares @ v).swapaxes(0, 1).reshape(length, -1)
    found: Array = o @ weights.float32(f"{name}o_proj.weight").T.astype(np.float64)
    return found


def _rotate(config: ModelConfig, x: Array) -> Array:
    """Rotary embedding (arXiv:2104.09864) of [heads, S, head_dim]; pairs lie half a head apart."""
    turns = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    angles = np.outer(np.arange(x.shape[1]), turns)
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
