"""What only a process with Paddle can say of the training's parts: python probe.py HOME.

HOME has prepare/ (an artifact), full/ (a published `train`). Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from paddlenlp.transformers.llama import modeling

from appliance.bundle.tokenizer import Tokenizer
from appliance.recipe import TrainSection
from appliance.training.answers import greedy
from appliance.training.dataset import batches, collate, read_rows
from appliance.training.loss import held_out_loss
from appliance.training.model import add_adapter, load_model
from appliance.training.runtime import paddle
from tests.training.numpy_loss import numpy_loss

PLAIN = modeling.LlamaRMSNorm.forward, modeling.apply_rotary_pos_emb


def gradients(base: Path, batch: dict[str, Any], *, fast: bool) -> dict[str, Any]:
    """Loss and gradients of all weights, with our operations or with PaddleNLP's."""
    model = load_model(base)
    model.train()
    if not fast:
        modeling.LlamaRMSNorm.forward, modeling.apply_rotary_pos_emb = PLAIN
    loss = model(paddle.to_tensor(batch["input_ids"]), labels=paddle.to_tensor(batch["labels"]))
    loss.backward()
    return {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def main(home: Path) -> None:
    """Ask everything at once: Paddle takes seconds to import."""
    base = home / "prepare" / "base"
    rows = read_rows(home / "prepare" / "eval.jsonl")
    model = load_model(base)
    tokenizer = Tokenizer.load(base)
    texts = ("My printer", "What is the difference between a process", "你好")
    prompts = [tokenizer.encode(text) for text in texts]
    # No end token: on random weights the answers differ for all of their length.
    ask = {"max_new_tokens": 12, "eos_ids": frozenset[int]()}
    single = [greedy(model, [prompt], batch_size=1, **ask)[0] for prompt in prompts]
    second = single[0][4]
    fast = gradients(base, collate(rows), fast=True)
    plain = gradients(base, collate(rows), fast=False)
    adapter = add_adapter(load_model(base), TrainSection(method="lora", lora_rank=4))
    trained = [name for name, p in adapter.named_parameters() if not p.stop_gradient]
    said = {
        "loss": held_out_loss(model, batches(rows, 3)),
        "numpy_loss": numpy_loss(base, home / "prepare"),
        "single": single,
        "batched": greedy(model, prompts, batch_size=3, **ask),
        "ended": greedy(
            model, prompts[:1], max_new_tokens=12, eos_ids=frozenset([second]), batch_size=1
        )[0],
        "end": second,
        "weights": len(plain),
        "same_weights": sorted(fast) == sorted(plain),
        "gradient_gap": max(float(np.abs(fast[n] - plain[n]).max()) for n in plain),
        "gradient_size": max(float(np.abs(plain[n]).max()) for n in plain),
        "trained": trained,
        "published_loss": held_out_loss(load_model(home / "full" / "model"), batches(rows, 8)),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
