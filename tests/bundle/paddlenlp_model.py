"""Runs in a process of its own: what PaddleNLP makes of a model folder.

    python -m tests.bundle.paddlenlp_model FOLDER WORK

Writes into WORK: `plain.npy` (logits of the model along IDS), `written/` (the model saved again
through write_model), and for each of the scales `lora` and `rslora` a trained adapter's stand-in:
`SCALE/train/adapter/` and `SCALE/logits.npy`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

IDS = [(7 * i + 3) % 300 for i in range(40)]
RANK, ALPHA = 4, 12
TARGETS = ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"]


def logits(model: Any) -> np.ndarray:
    import paddle

    model.eval()
    with paddle.no_grad():
        found = model(paddle.to_tensor([IDS]))
    found = found[0] if isinstance(found, tuple) else found
    return np.asarray(found.numpy()[0])


def load(folder: Path) -> Any:
    from paddlenlp.transformers import LlamaConfig, LlamaForCausalLM

    from appliance.bundle.config import ModelConfig
    from appliance.bundle.names import paddlenlp_config

    config = LlamaConfig(**paddlenlp_config(ModelConfig.read(folder)))
    return LlamaForCausalLM.from_pretrained(str(folder), config=config, convert_from_torch=True)


def adapt(folder: Path, work: Path, rslora: bool) -> None:
    import paddle
    from paddlenlp.peft import LoRAConfig, LoRAModel

    from appliance.bundle.weights import weights_sha256
    from appliance.files import write_json

    model = LoRAModel(
        load(folder),
        LoRAConfig(
            target_modules=[f".*{target}.*" for target in TARGETS],
            r=RANK,
            lora_alpha=ALPHA,
            rslora=rslora,
        ),
    )
    rng = np.random.default_rng(5)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            values = 0.1 * rng.standard_normal(weight.shape)
            weight.set_value(paddle.to_tensor(values.astype(np.float32)))
    model.save_pretrained(str(work / "train" / "adapter"))
    write_json(
        work / "train" / "adapter" / "adapter.json",
        {
            "base_sha256": weights_sha256(folder),
            "rank": RANK,
            "alpha": ALPHA,
            "rslora": rslora,
            "scale": ALPHA / (RANK**0.5 if rslora else RANK),
            "targets": TARGETS,
        },
    )
    np.save(work / "logits.npy", logits(model))


def main() -> None:
    from appliance.bundle.names import write_model

    folder, work = Path(sys.argv[1]), Path(sys.argv[2])
    model = load(folder)
    np.save(work / "plain.npy", logits(model))
    state = {name: weight.numpy() for name, weight in model.state_dict().items()}
    write_model(state, folder, work / "written")
    if "--lora" in sys.argv:
        for name, rslora in (("lora", False), ("rslora", True)):
            (work / name).mkdir()
            adapt(folder, work / name, rslora)


if __name__ == "__main__":
    os.environ.update(MKL_DEBUG_CPU_TYPE="5", OMP_NUM_THREADS="2", HF_HUB_OFFLINE="1")
    main()
