"""Stage `prepare` for pretraining: a tokenizer, a config, and text as PaddleNLP's `.bin/.idx`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.bundle.tokenizer import Tokenizer
from appliance.data.documents import read_sections, shares
from appliance.data.read import Tally
from appliance.files import atomic, sync_folder, write_json
from appliance.jobs.artifacts import Stage
from appliance.recipe import DataSection, ModelSection, Shape, TokenizerTraining
from appliance.training.tokenizer_training import EOS, train_sentencepiece, write_tokenizer

VOCAB_MULTIPLE = 128  # the model's vocabulary is padded, so that tensor parallel cards share evenly
EXAMPLES = 50
EXAMPLE_CHARACTERS = 80  # of which the model sees half, and goes on from there


def prepare_corpus(
    stage: Stage, model: ModelSection, data: DataSection, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write base/, sentencepiece.model, corpus.bin and corpus.idx; gives the counts of data.json.

    Raises DataError for text that cannot be read or is too little.
    """
    assert model.config is not None and model.tokenizer is not None  # the recipe's own check
    tally = Tally()
    sections = read_sections(data, stage.spec["seed"], tally)
    train, held, test = shares(data.split, len(sections))
    characters = sum(map(len, sections))
    stage.events.note(
        f"{tally.formats.total()} texts, {characters} characters, in {len(sections)} sections: "
        f"{train} to train on, {held} held out, {test} for tests."
    )
    pieces = write_base(stage, sections[:train], model.tokenizer, model.config)
    tokenizer = Tokenizer.load(stage.output / "base")
    tokens = write_corpus(sections, tokenizer, stage.output / "corpus", progress)
    write_examples(sections[train : train + held], tokenizer, stage.output / "examples.jsonl")
    stage.events.note(f"{tokens} tokens, {characters / tokens:.2f} characters a token.")
    write_json(stage.output / "base.json", {"source": None, "sha256": None})
    return {
        "format": tally.format,
        "rows": tally.formats.total(),
        "train": train,
        "eval": held,
        "test": test,
        "tokens": tokens,
        "characters": characters,
        "pieces": pieces,
        "truncated": 0,
        "skipped": tally.skipped,
    }


def write_base(stage: Stage, sections: list[str], settings: TokenizerTraining, shape: Shape) -> int:
    """Write sentencepiece.model and base/: tokenizer and config; gives the number of pieces."""
    stage.events.note(f"Training the {settings.kind} tokenizer, {settings.vocab_size} pieces.")
    base = stage.output / "base"
    base.mkdir()
    trained = stage.output / "sentencepiece.model"
    train_sentencepiece(sections, settings, trained)
    pieces = write_tokenizer(trained, base, max_length=shape.max_position_embeddings)
    write_config(shape, pieces, base)
    return pieces


def write_config(shape: Shape, pieces: int, base: Path) -> None:
    """Write config.json and generation_config.json of a Llama that is yet to be trained.

    `vocab_size` is the number of pieces rounded up to a multiple of 128; ids from `pieces` on
    never occur. Ids 1, 2 and 3 begin, end and pad a text.
    """
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = shape.model_dump() | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "num_key_value_heads": shape.num_key_value_heads or shape.num_attention_heads,
        "head_dim": shape.hidden_size // shape.num_attention_heads,
        "rope_scaling": None,
        "vocab_size": -(-pieces // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
        "torch_dtype": "float32",
        **ids,
    }
    write_json(base / "config.json", config)
    write_json(base / "generation_config.json", ids)


def write_corpus(
    sections: list[str],
    tokenizer: Tokenizer,
    prefix: Path,
    progress: Callable[[int, int], None],
) -> int:
    """Write PREFIX.bin and PREFIX.idx: each section's ids and the end token; gives all tokens.

    Ids are uint16 where the vocabulary allows, else int32, as PaddleNLP's own tool writes them.
    """
    import numpy as np
    from paddlenlp.data.indexed_dataset import MMapIndexedDatasetBuilder

    dtype = np.uint16 if tokenizer.vocab_size < 65500 else np.int32
    end = tokenizer.token_id(EOS)
    builder = MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype)
    tokens = 0
    for done, section in enumerate(sections, 1):
        ids = [*tokenizer.encode(section), end]
        builder.add_item(ids)
        builder.end_document()
        tokens += len(ids)
        progress(done, len(sections))
    builder.finalize(f"{prefix}.idx")
    _to_disk(Path(f"{prefix}.bin"), Path(f"{prefix}.idx"))
    return tokens


def write_examples(held: list[str], tokenizer: Tokenizer, path: Path) -> None:
    """Write beginnings of held-out sections for the eye and for the proof, as JSON lines.

    Each has `prompt`, `text` (of which the prompt is the beginning), `input_ids` (of the text, and
    the end token) and `labels` (the same: all of a text is learnt).
    """
    end = tokenizer.token_id(EOS)
    with atomic(path) as stream:
        for section in held[:EXAMPLES]:
            text = section.strip()[:EXAMPLE_CHARACTERS]
            ids = [*tokenizer.encode(text), end]
            row = {"prompt": text[: len(text) // 2], "text": text, "input_ids": ids, "labels": ids}
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _to_disk(*paths: Path) -> None:
    for path in paths:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    sync_folder(paths[0].parent)
