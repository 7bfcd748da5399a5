"""Trains a sentencepiece tokenizer and writes it as a `tokenizer.json` that gives the same ids.

Text goes in as it is: identity normalization, no dummy prefix, spaces kept, and what has no piece
is spelled in its UTF-8 bytes. So decoding gives back every text, line breaks and emoji included.
Pieces 0 to 3 are `<unk>`, `<s>`, `</s>` and `<pad>`, then the 256 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers

from appliance.errors import DataError
from appliance.files import atomic, write_json, write_text
from appliance.recipe import TokenizerTraining

UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"  # in the order of their ids
SPACE = "▁"  # what sentencepiece writes for a space
MOST_SENTENCES = 1_000_000  # the trainer samples, with a fixed seed, where a text has more lines
LONGEST_SENTENCE = 1_000  # characters; the trainer sees longer lines in parts
SCORE_STEPS = 256


def train_sentencepiece(texts: Iterable[str], settings: TokenizerTraining, target: Path) -> None:
    """Train on `texts` and write the model file `target`: the same for the same texts.

    Raises DataError where the text is too little for the vocabulary.
    """
    with atomic(target) as writer:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_sentences(texts),
                model_writer=writer,
                model_type=settings.kind,
                vocab_size=settings.vocab_size,
                character_coverage=settings.character_coverage,
                byte_fallback=True,
                split_digits=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                required_chars="".join(map(chr, range(33, 127))),
                unk_id=0,
                bos_id=1,
                eos_id=2,
                pad_id=3,
                max_sentence_length=4 * LONGEST_SENTENCE,
                input_sentence_size=MOST_SENTENCES,
                shuffle_input_sentence=True,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise DataError(
                f"no tokenizer of {settings.vocab_size} pieces can be trained on this text: "
                f"{str(error).rpartition('] ')[2]}",
                hint="Change model.tokenizer.vocab_size as it says; fewer pieces do where "
                "model.tokenizer.character_coverage is lower, more with more text.",
            ) from error
    _round_scores(target)


def write_tokenizer(model: Path, target: Path, *, max_length: int) -> int:
    """Write tokenizer.json and tokenizer_config.json of a sentencepiece model into `target`.

    `max_length` is the model's context in tokens. Gives the number of pieces.
    """
    proto = _read(model)
    tokenizer = tokenizers.Tokenizer(_unigram(proto) if _is_unigram(proto) else _bpe(proto))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(t, special=True, normalized=False) for t in (UNK, BOS, EOS, PAD)]
    )
    write_text(target / "tokenizer.json", tokenizer.to_str())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNK,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    write_json(target / "tokenizer_config.json", config)
    return len(proto.pieces)


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.splitlines():
            for start in range(0, len(line), LONGEST_SENTENCE):
                yield line[start : start + LONGEST_SENTENCE]


def _read(model: Path) -> Any:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    return proto


def _round_scores(model: Path) -> None:
    """Round the pieces' scores (log probabilities) to multiples of 1/256.

    sentencepiece adds scores in float32 and `tokenizers` in float64. Multiples of 1/256 add up
    without error in both as long as a text's sum stays under 2^16 (some 7,000 tokens), so that
    both find the same best pieces, ties included.
    """
    proto = _read(model)
    if _is_unigram(proto):
        for piece in proto.pieces:
            piece.score = round(piece.score * SCORE_STEPS) / SCORE_STEPS
        with atomic(model) as stream:
            stream.write(proto.SerializeToString())


def _is_unigram(proto: Any) -> bool:
    return bool(proto.trainer_spec.model_type == proto.trainer_spec.UNIGRAM)


def _unigram(proto: Any) -> models.Unigram:
    """Bytes and special pieces get a score so low that their names are never found in a text."""
    never = -1000.0
    vocab = [(p.piece, p.score if p.type == p.NORMAL else never) for p in proto.pieces]
    return models.Unigram(vocab, unk_id=0, byte_fallback=True)


def _bpe(proto: Any) -> models.BPE:
    """Merges in the order of the pieces they make, which is that of sentencepiece's scores."""
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    known = {p.piece: -p.score for p in proto.pieces if p.type == p.NORMAL}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted((p for p in known if len(p) > 1), key=known.__getitem__)
        for cut in sorted(range(1, len(piece)), key=lambda cut: ids.get(piece[:cut], 0))
        if piece[:cut] in known and piece[cut:] in known
    ]
    return models.BPE(ids, merges, unk_token=UNK, fuse_unk=True, byte_fallback=True)
