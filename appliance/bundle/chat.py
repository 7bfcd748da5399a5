"""Chat rendering: the one place where a conversation becomes text, for training and serving.

The environment is the one that transformers documents for chat templates
(https://huggingface.co/docs/transformers/chat_templating): Jinja in an immutable sandbox with
`trim_blocks`, `lstrip_blocks`, loop controls, `raise_exception`, `strftime_now`, a `tojson` that
keeps non-ASCII text as it is, and a `generation` tag that renders its body.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from appliance.errors import ChatError, ModelError


class _Refused(TemplateError):
    """Raised by the template itself, through `raise_exception`."""


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}`: marks the trained text; here it is only rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise _Refused(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@functools.lru_cache(maxsize=32)
def _compile(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise ModelError(
            f"the model's chat template is not valid Jinja: {error}",
            hint="Mend `chat_template` in the model's tokenizer_config.json.",
        ) from error


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    bos_token: str | None,
    eos_token: str | None,
) -> str:
    """Render a conversation with a model's chat template.

    `messages` are OpenAI's: `{"role": …, "content": …}`. With `add_generation_prompt` the text
    ends where the assistant begins to answer. Raises ChatError where the template refuses the
    conversation, ModelError where the template itself is broken.
    """
    compiled = _compile(template)
    # An absent token must stay undefined, which renders as nothing; None would render as "None".
    tokens = {"bos_token": bos_token, "eos_token": eos_token}
    known = {name: token for name, token in tokens.items() if token is not None}
    try:
        return compiled.render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            **known,
        )
    except _Refused as error:
        raise ChatError(
            f"the model's chat template refuses this conversation: {error}",
            hint="Change the roles or their order as the message says.",
        ) from error
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise ChatError(
            f"the model's chat template cannot render this conversation: {error}",
            hint="Each message needs a `role` and a `content` that is text.",
        ) from error
