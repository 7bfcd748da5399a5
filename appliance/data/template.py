"""Chat templates for base models that have none.

Where the tokenizer knows `<|im_start|>` and `<|im_end|>`, ChatML; else a plain one of
`User: …` and `Assistant: …` lines, whose answers end with the model's end token. Either is written
into the model's folder, so that serving renders with it too.
"""

from __future__ import annotations

import dataclasses

from appliance.bundle.tokenizer import Tokenizer
from appliance.errors import ModelError

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = (
    "{% if bos_token is defined %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + eos_token + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


def with_template(tokenizer: Tokenizer) -> tuple[Tokenizer, str]:
    """The tokenizer with a chat template, and the name of the default one if it was given that.

    Raises ModelError where the model names no end token, since nothing would end an answer.
    """
    if tokenizer.chat_template is not None:
        if not tokenizer.eos_ids:
            raise ModelError(
                "the base model names no end token, so its answers would never end",
                hint="Put `eos_token_id` into its generation_config.json.",
            )
        return tokenizer, ""
    end = tokenizer.token_id("<|im_end|>")
    name, template = "ChatML", CHATML
    if end is None or tokenizer.token_id("<|im_start|>") is None:
        name, template = "plain (User: …, Assistant: …)", PLAIN
        end = tokenizer.token_id(tokenizer.eos_token) if tokenizer.eos_token else None
    if end is None:
        raise ModelError(
            "the base model has neither a chat template nor an end token to build one on",
            hint="Put `chat_template` and `eos_token` into its tokenizer_config.json.",
        )
    ends = tokenizer.eos_ids | {end}
    return dataclasses.replace(tokenizer, chat_template=template, eos_ids=ends), name
