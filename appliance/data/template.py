"""Chat templates for base models that have none.

Where the tokenizer knows `<|im_start|>` and `<|im_end|>`, ChatML; else a plain one of
`User: …` and `Assistant: …` lines, whose answers end with the model's end token. Either is written
into the model's folder, so that serving renders with it too.
"""

from __future__ import annotations

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


def default_template(tokenizer: Tokenizer) -> tuple[str, str, int]:
    """A template for a model without one: its name, its text, and the id that ends an answer.

    Raises ModelError where the model has no end token, since nothing would end an answer.
    """
    end = tokenizer.token_id("<|im_end|>")
    if end is not None and tokenizer.token_id("<|im_start|>") is not None:
        return "ChatML", CHATML, end
    end = tokenizer.token_id(tokenizer.eos_token) if tokenizer.eos_token else None
    if end is None:
        raise ModelError(
            "the base model has neither a chat template nor an end token to build one on",
            hint="Put `chat_template` and `eos_token` into its tokenizer_config.json.",
        )
    return "plain (User: / Assistant:)", PLAIN, end
