"""Tiny models for tests: real files in Hugging Face layout, random weights, no paddle, no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TEXT = (
    "The capital of France is Paris. How can I help you with your computer today?",
    "My printer does not print. Is it plugged in, and is it turned on?",
    "What is the difference between a process and a thread in an operating system?",
    "Please restart the machine and tell me what the screen shows after that.",
    "system user assistant You are a helpful assistant.",
    "你好，世界。今天天气很好，我们去公园散步吧。",
)


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
}
SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def make_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    tie: bool = True,
    vocab: int = 400,
    max_length: int = 256,
    rope_theta: float = 10000.0,
    rope_scaling: dict[str, Any] | None = None,
    scale: float = 0.15,
) -> Path:
    """Write a random Llama with a byte-level BPE tokenizer and a ChatML template; gives `folder`.

    `scale` is the weights' standard deviation: large enough that greedy answers vary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        **LLAMA,
        **SPECIAL_IDS,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": max_length,
        "rope_theta": rope_theta,
        "vocab_size": make_tokenizer(folder, vocab),
        "tie_word_embeddings": tie,
    }
    if head_dim is not None:
        config["head_dim"] = head_dim
    if rope_scaling is not None:
        config["rope_scaling"] = rope_scaling
    write(folder / "config.json", config)
    write(folder / "generation_config.json", SPECIAL_IDS)
    weights = random_weights(config, seed, scale)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_tokenizer(folder: Path, vocab: int) -> int:
    """Train the tokenizer on TEXT; gives the number of ids, at most `vocab`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL[1],
            "eos_token": SPECIAL[2],
            "pad_token": SPECIAL[0],
            "unk_token": SPECIAL[0],
            "model_max_length": 256,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    return int(tokenizer.get_vocab_size())


def random_weights(
    config: dict[str, Any], seed: int, scale: float
) -> dict[str, NDArray[np.float32]]:
    """Normal weights under Hugging Face's names, linear layers as [out, in]; norms near 1."""
    rng = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head

    def normal(*shape: int) -> NDArray[np.float32]:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def norm() -> NDArray[np.float32]:
        return (1 + 0.1 * rng.standard_normal(hidden)).astype(np.float32)

    weights = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        weights |= {
            f"{name}self_attn.q_proj.weight": normal(queries, hidden),
            f"{name}self_attn.k_proj.weight": normal(keys, hidden),
            f"{name}self_attn.v_proj.weight": normal(keys, hidden),
            f"{name}self_attn.o_proj.weight": normal(hidden, queries),
            f"{name}mlp.gate_proj.weight": normal(inner, hidden),
            f"{name}mlp.up_proj.weight": normal(inner, hidden),
            f"{name}mlp.down_proj.weight": normal(hidden, inner),
            f"{name}input_layernorm.weight": norm(),
            f"{name}post_attention_layernorm.weight": norm(),
        }
    weights["model.norm.weight"] = norm()
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = normal(config["vocab_size"], hidden)
    return weights


def write(path: Path, value: Any) -> None:
    """Write JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def export_model(model: Path, target: Path) -> None:
    """Export a model's step graph, in a process of its own: Paddle and FastDeploy share none."""
    code = (
        "import sys, pathlib; from appliance.bundle.export import export_graph; "
        "export_graph(*map(pathlib.Path, sys.argv[1:]))"
    )
    environment = {
        **os.environ,
        "FLAGS_enable_pir_api": "0",
        "MKL_DEBUG_CPU_TYPE": "5",
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(target)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def make_bundle(folder: Path, model: Path, *, name: str = "tiny") -> Path:
    """Export a model folder and seal it as the bundle `folder`; gives `folder`."""
    from appliance.bundle.write import seal_bundle, write_bundle

    with tempfile.TemporaryDirectory(dir=folder.parent) as export:
        export_model(model, Path(export))
        write_bundle(folder, model=model, export=Path(export))
    seal_bundle(folder, name)
    return folder
