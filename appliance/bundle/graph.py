"""The step graph: one forward pass over new tokens and a cache that the host keeps.

docs/design.md gives inputs and outputs. Written for what must run it: Paddle Inference and the
ONNX Runtime and OpenVINO inside FastDeploy 1.0.7. Hence sqrt for rsqrt, sigmoid for silu, and
epsilon as a tensor, since as a Python number it is lost on the way to ONNX.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from numpy.typing import NDArray
from paddle.base.framework import EagerParamBase
from paddle.static import InputSpec

from appliance.bundle.config import ModelConfig
from appliance.bundle.rope import table
from appliance.bundle.weights import Weights


class StepGraph(paddle.nn.Layer):  # type: ignore[misc]
    """A Llama as few large operations: fused QKV, fused gate and up, grouped queries as rows.

    The queries that share a key head are laid along the sequence axis, so that the cache is
    multiplied as it is, never repeated. Past and new keys are scored apart, never joined.
    """

    def __init__(self, config: ModelConfig, weights: Weights, max_length: int) -> None:
        super().__init__()
        self.config = config
        self.tied = config.tie_word_embeddings
        self.embedding = self._constant("embedding", weights.float32("model.embed_tokens.weight"))
        if not self.tied:
            self.head = self._constant("head", weights.float32("lm_head.weight").T)
        self.final_norm = self._constant("final_norm", weights.float32("model.norm.weight"))
        self.eps = self._constant("eps", np.full([1], config.rms_norm_eps, np.float32))
        rows = table(config.head_dim, config.rope_theta, config.rope_scaling, max_length)
        self.rope = self._constant("rope", rows)
        self.layers = [self._layer(weights, i) for i in range(config.num_hidden_layers)]

    def _constant(self, name: str, values: NDArray[np.float32]) -> Any:
        # Not an Assign initializer: that one goes through a list of Python floats.
        parameter = EagerParamBase.from_tensor(paddle.to_tensor(np.ascontiguousarray(values)))
        parameter.name = name  # the name that ONNX will know it by
        self.add_parameter(name, parameter)
        return parameter

    def _layer(self, weights: Weights, index: int) -> dict[str, Any]:
        def get(name: str) -> NDArray[np.float32]:
            return weights.float32(f"model.layers.{index}.{name}.weight")

        # The scores' 1/sqrt(head_dim) is folded into the queries' weights.
        queries = get("self_attn.q_proj") / np.float32(math.sqrt(self.config.head_dim))
        parts = {
            "qkv": np.concatenate(
                [queries, get("self_attn.k_proj"), get("self_attn.v_proj")], axis=0
            ).T,
            "out": get("self_attn.o_proj").T,
            "gate_up": np.concatenate([get("mlp.gate_proj"), get("mlp.up_proj")], axis=0).T,
            "down": get("mlp.down_proj").T,
            "norm1": get("input_layernorm"),
            "norm2": get("post_attention_layernorm"),
        }
        return {name: self._constant(f"l{index}_{name}", part) for name, part in parts.items()}

    def forward(self, ids: Any, pos: Any, mask: Any, last: Any, caches: Any) -> Any:
        """Logits [B, V] at `last`, and the new keys and values [2L, B, KV, S, D]."""
        c = self.config
        heads, kv, dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        group = heads // kv
        x = F.embedding(ids, self.embedding)
        cos, sin = paddle.split(F.embedding(pos, self.rope).unsqueeze(2), 2, -1)
        past = paddle.shape(caches[0])[2]
        mask = paddle.concat([mask] * group, 2) if group > 1 else mask
        mask_past, mask_new = mask[:, :, :, :past], mask[:, :, :, past:]
        new = []
        for index, layer in enumerate(self.layers):
            h = self._norm(x, layer["norm1"])
            qkv = paddle.matmul(h, layer["qkv"]).reshape([0, 0, heads + 2 * kv, dim])
            qk, v = paddle.split(qkv, [heads + kv, kv], 2)
            front, back = paddle.split(qk, 2, -1)
            qk = qk * cos + paddle.concat([back, front], -1) * sin
            q, k = paddle.split(qk, [heads, kv], 2)
            q = q.reshape([0, 0, kv, group, dim]).transpose([0, 2, 3, 1, 4])
            q = q.reshape([0, kv, -1, dim])  # [B, KV, G·S, D]
            k, v = k.transpose([0, 2, 1, 3]), v.transpose([0, 2, 1, 3])
            scores = [
                paddle.matmul(q, caches[2 * index], transpose_y=True) + mask_past,
                paddle.matmul(q, k, transpose_y=True) + mask_new,
            ]
            shares = F.softmax(paddle.concat(scores, -1), -1)
            o = paddle.matmul(shares[:, :, :, :past], caches[2 * index + 1])
            o = o + paddle.matmul(shares[:, :, :, past:], v)
            o = o.reshape([0, kv, group, -1, dim]).transpose([0, 3, 1, 2, 4])
            x = x + paddle.matmul(o.reshape([0, 0, heads * dim]), layer["out"])
            gate_up = paddle.matmul(self._norm(x, layer["norm2"]), layer["gate_up"])
            gate, up = paddle.split(gate_up, 2, -1)
            x = x + paddle.matmul(gate * F.sigmoid(gate) * up, layer["down"])
            new += [k, v]
        x = self._norm(paddle.gather_nd(x, last), self.final_norm)
        logits = (
            paddle.matmul(x, self.embedding, transpose_y=True)
            if self.tied
            else paddle.matmul(x, self.head)
        )
        return logits, paddle.stack(new, 0)

    def _norm(self, x: Any, weight: Any) -> Any:
        """RMS norm (arXiv:1910.07467)."""
        return x / paddle.sqrt(paddle.mean(x * x, -1, keepdim=True) + self.eps) * weight


def input_spec(config: ModelConfig) -> list[Any]:
    """Names, shapes and types of the graph's inputs; None is a size that may vary."""
    cache = [None, config.num_key_value_heads, None, config.head_dim]
    return [
        InputSpec([None, None], "int64", "ids"),
        InputSpec([None, None], "int64", "pos"),
        InputSpec([None, 1, None, None], "float32", "mask"),
        InputSpec([None, 2], "int64", "last"),
        [InputSpec(cache, "float32", f"c{i}") for i in range(2 * config.num_hidden_layers)],
    ]
