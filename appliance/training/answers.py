"""Greedy answers of a model in training's form, several prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from appliance.training.loss import inner
from appliance.training.runtime import paddle


def greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: frozenset[int],
    batch_size: int,
) -> list[list[int]]:
    """The most likely next tokens of each prompt, up to an end token, which is left out.

    `model` with an adapter or without. Prompts are padded on the left and masked, so that an answer
    does not depend on its neighbours in the batch.
    """
    model.eval()
    found: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        found += _batch(inner(model), prompts[start : start + batch_size], max_new_tokens, eos_ids)
    return found


def _batch(
    llama: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, eos_ids: frozenset[int]
) -> list[list[int]]:
    width = max(map(len, prompts))
    room = min(max_new_tokens, llama.config.max_position_embeddings - width)
    if room < 1:  # the prompts fill the model's context
        return [[] for _ in prompts]
    ids = np.zeros((len(prompts), width), np.int64)
    mask = np.zeros((len(prompts), width), np.int64)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = prompt
        mask[i, width - len(prompt) :] = 1
    tokens, _ = llama.generate(
        input_ids=paddle.to_tensor(ids),
        attention_mask=paddle.to_tensor(mask),
        position_ids=paddle.to_tensor(np.maximum(mask.cumsum(1) - 1, 0)),
        max_new_tokens=room,
        decode_strategy="greedy_search",
        eos_token_id=sorted(eos_ids) or None,
        pad_token_id=0,
        bos_token_id=0,
        use_cache=True,
    )
    return [_cut(row, eos_ids) for row in tokens.tolist()]


def _cut(tokens: list[int], eos_ids: frozenset[int]) -> list[int]:
    for i, token in enumerate(tokens):
        if token in eos_ids:
            return tokens[:i]
    return tokens
