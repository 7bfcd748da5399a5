"""The tokenizer inside a GGUF file, rebuilt as Hugging Face's tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from appliance.errors import ModelError
from appliance.files import write_json

# Values of tokenizer.ggml.pre by the way text is cut before merging, as their makers' own
# tokenizer.json files have it.
_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell"}
_GPT2 = {"gpt-2", "gpt2"}
_LLAMA3 = {"llama-bpe", "llama3", "llama-v3"}
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type
_ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>")


def write_tokenizer(fields: Mapping[str, Any], target: Path, source: Path) -> dict[str, Any]:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json into `target`.

    Gives the token ids that belong into config.json. Raises ModelError for a tokenizer of
    another kind than byte-level BPE.
    """
    tokens = _tokens(fields, source)
    ids = _special_ids(fields, tokens)
    tokenizer = _byte_level_bpe(fields, tokens, source)
    if fields.get("tokenizer.ggml.add_bos_token") and "bos_token_id" in ids:
        bos = tokens[ids["bos_token_id"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, ids["bos_token_id"])]
        )
    tokenizer.save(str(target / "tokenizer.json"))
    settings = {
        name.removesuffix("_id"): tokens[value]
        for name, value in ids.items()
        if isinstance(value, int)
    }
    settings["eos_token"] = tokens[ids["eos_token_id"][0]]
    write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **settings,
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "add_prefix_space": False,
            "chat_template": fields.get("tokenizer.chat_template"),
        },
    )
    ids.pop("unk_token_id", None)
    first, *others = ids["eos_token_id"]
    write_json(
        target / "generation_config.json",
        ids | {"eos_token_id": [first, *others] if others else first},
    )
    return ids | {"eos_token_id": first}


def _tokens(fields: Mapping[str, Any], source: Path) -> list[str]:
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ModelError(
            f"{source}: tokenizer.ggml.model is {kind!r}; only byte-level BPE (gpt2) is rebuilt",
            hint="Import the model's Hugging Face folder, which holds its tokenizer.json.",
        )
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"):
        if key not in fields:
            raise ModelError(f"{source}: {key} is missing", hint="Fetch the file anew.")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    return tokens


def _special_ids(fields: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """bos, pad and unk ids, and the list of those that end an answer, end of turn first."""
    found = {
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
        "unk_token_id": fields.get("tokenizer.ggml.unknown_token_id"),
    }
    template = fields.get("tokenizer.chat_template") or ""
    ends = [tokens.index(end) for end in _ENDS_OF_TURN if end in template and end in tokens]
    for key in ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eos_token_id"):
        if fields.get(key) is not None:
            ends.append(fields[key])
    if not ends:
        raise ModelError(
            "nothing in the GGUF file says which token ends an answer",
            hint="Import the model's Hugging Face folder instead.",
        )
    known = {name: int(value) for name, value in found.items() if value is not None}
    return known | {"eos_token_id": list(dict.fromkeys(int(end) for end in ends))}


def _byte_level_bpe(
    fields: Mapping[str, Any], tokens: list[str], source: Path
) -> tokenizers.Tokenizer:
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    pre = fields.get("tokenizer.ggml.pre", "")
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=pre in _LLAMA3,
        )
    )
    tokenizer.pre_tokenizer = _pre_tokenizer(pre, source)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    marked = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_special_tokens([token for token in marked if token.special])
    tokenizer.add_tokens([token for token in marked if not token.special])
    return tokenizer


def _pre_tokenizer(pre: str, source: Path) -> pre_tokenizers.PreTokenizer:
    if pre in _DIGITS:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if pre in _GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre in _LLAMA3:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_LLAMA3_PATTERN), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    raise ModelError(
        f"{source}: tokenizer.ggml.pre is {pre!r}, a way of cutting text that is not known here",
        hint="Import the model's Hugging Face folder, which holds its tokenizer.json.",
    )
