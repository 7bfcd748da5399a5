"""Models for training and evaluation: PaddleNLP's Llama, read from and written to Hugging Face's
layout, with an adapter or without."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.bundle.config import ModelConfig
from appliance.bundle.names import is_transposed, paddlenlp_config, paddlenlp_name
from appliance.bundle.weights import Weights
from appliance.errors import ModelError
from appliance.recipe import TrainSection
from appliance.training.fast_ops import use_fast_ops
from appliance.training.loss import inner, mean_loss
from appliance.training.runtime import paddle

# The order is Paddle's: its other modules come after it.
from paddlenlp.peft import LoRAConfig, LoRAModel  # isort: skip
from paddlenlp.transformers import LlamaConfig, LlamaForCausalLM  # isort: skip
from paddlenlp.transformers.model_utils import no_init_weights  # isort: skip


class Llama(LlamaForCausalLM):  # type: ignore[misc]
    """PaddleNLP's Llama, whose output layer sees only the positions that have a label.

    Of SmolLM2's tech-support rows a quarter of the positions has one; logits over 49,152 classes
    at the others would be computed, kept and thrown away.
    """

    def forward(self, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        """With `labels` [B, S] (shifted already, -100 where there is none): their mean loss, a
        float32 scalar; without: what PaddleNLP's own forward gives."""
        if labels is None:
            return super().forward(input_ids, **kwargs)
        hidden = self.llama(input_ids, use_cache=False)[0]
        return mean_loss(self.lm_head, hidden, labels)


def load_model(folder: Path, *, dtype: str = "float32") -> Llama:
    """Read a model in Hugging Face layout. Raises ModelError where a weight is missing or wrong."""
    config = ModelConfig.read(folder)
    weights = Weights.open(folder)
    weights.check(config.tensors(), str(folder))
    model = _empty_model(folder, config, dtype)
    parameters = model.state_dict()
    for name in config.tensors():
        values = weights.float32(name)
        turned = np.ascontiguousarray(values.T) if is_transposed(name) else values
        parameters[paddlenlp_name(name)].set_value(paddle.to_tensor(turned).astype(dtype))
    model.eval()
    return model


def new_model(folder: Path, seed: int, *, dtype: str = "float32") -> Llama:
    """A model of the shape that `folder`'s config.json says, its weights drawn from `seed`.

    Normal with the config's `initializer_range` (0.02 where it has none), projections back into the
    residual stream divided by sqrt(2 · layers), as PaddleNLP's Llama does it.
    """
    use_fast_ops()
    paddle.seed(seed)
    with _default_dtype(dtype):
        return Llama(_paddle_config(folder, ModelConfig.read(folder), dtype))


def add_adapter(model: Llama, train: TrainSection, *, dtype: str = "float32") -> Any:
    """Put a new LoRA adapter (arXiv:2106.09685) around `model`, and freeze all other weights.

    Its own are drawn from the recipe's seed.
    """
    paddle.seed(train.seed)
    config = LoRAConfig(
        target_modules=[rf".*\.{name}" for name in train.lora_target_modules],
        r=train.lora_rank,
        lora_alpha=train.lora_alpha,
        rslora=train.rslora,
        dtype=dtype,
    )
    return LoRAModel(model, config)


def load_adapter_model(base: Path, adapter: Path, *, dtype: str = "float32") -> Any:
    """Read the model that `base` and `adapter` make together; `base` is in Hugging Face layout.

    Raises ModelError where the adapter's files are missing, or fit another model.
    """
    path = adapter / "lora_model_state.pdparams"
    if not path.is_file():  # LoRAModel.from_pretrained would log this and go on with a new adapter
        raise ModelError(f"{path} is missing", hint="Run the stage `train` again.")
    model = LoRAModel(load_model(base, dtype=dtype), LoRAConfig.from_pretrained(str(adapter)))
    state = paddle.load(str(path), return_numpy=True)
    wanted = {name: tuple(p.shape) for name, p in model.get_trainable_state_dict().items()}
    if wanted != {name: values.shape for name, values in state.items()}:
        raise ModelError(
            f"{adapter} does not fit the model in {base}", hint="Use the base it was trained on."
        )
    model.set_state_dict(state)
    model.eval()
    return model


def adapter_scale(train: TrainSection) -> float:
    """What the adapter's product is multiplied by: alpha / rank, or alpha / sqrt(rank) (rsLoRA)."""
    root = math.sqrt(train.lora_rank) if train.rslora else train.lora_rank
    return float(train.lora_alpha / root)


def logits(model: Any, ids: Sequence[int]) -> NDArray[np.float32]:
    """Logits [S, V], float32, of one sequence; `model` with an adapter or without."""
    llama = inner(model)
    with paddle.no_grad():
        hidden = llama.llama(paddle.to_tensor([list(ids)]), use_cache=False)[0]
        found = llama.lm_head(hidden)[0].astype("float32").numpy()
    return np.asarray(found, np.float32)


def _empty_model(folder: Path, config: ModelConfig, dtype: str) -> Llama:
    use_fast_ops()
    initializer = paddle.nn.initializer
    # Random values for weights that are read afterwards would take 4 s for 135 M parameters.
    initializer.set_global_initializer(initializer.Constant(0.0))
    try:
        with no_init_weights(True), _default_dtype(dtype):
            return Llama(_paddle_config(folder, config, dtype))
    finally:
        initializer.set_global_initializer(None)


def _paddle_config(folder: Path, config: ModelConfig, dtype: str) -> Any:
    found = LlamaConfig.from_pretrained(str(folder), **paddlenlp_config(config))
    found.dtype = dtype
    found.use_cache = False
    return found


@contextlib.contextmanager
def _default_dtype(dtype: str) -> Iterator[None]:
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        yield
    finally:
        paddle.set_default_dtype(before)
