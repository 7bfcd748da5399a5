"""Tokens to text and back, one at a time, and conversations to text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.bundle.tokenizer import Tokenizer
from appliance.errors import ChatError, ModelError
from tests.models import make_tiny_model, make_tokenizer

MIXED = "你好，世界 👩‍👩‍👧‍👦 naïve 🇨🇳 end"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def rewrite(folder: Path, file: str, **fields: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_streams_whole_characters_only(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode(MIXED)
    assert len(ids) > len(MIXED)  # characters are spelled over several tokens here
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "\ufffd" not in "".join(pieces)
    assert "" in pieces
    assert "".join(pieces) + stream.flush() == MIXED


def test_stream_shows_a_character_cut_off_at_the_end(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    stream = tokenizer.stream()
    ids = tokenizer.encode("ok 👩")[:-1]
    assert "".join(stream.push(token) for token in ids) == "ok "
    assert stream.flush() == "\ufffd"


def test_stream_does_not_hold_back_broken_bytes_for_ever(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    stray = tokenizer.encode("👩")[-1]  # a continuation byte that nothing began
    stream = tokenizer.stream()
    assert "\ufffd" in "".join(stream.push(stray) for _ in range(40))


def test_special_tokens_are_parsed_and_left_out_of_text(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>")
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids) == "user\nhi"
    assert tokenizer.eos_ids == {2}
    assert tokenizer.prefix_ids == ()


def test_eos_ids_come_from_generation_config_first(tmp_path: Path) -> None:
    make_tiny_model(tmp_path)
    rewrite(tmp_path, "generation_config.json", eos_token_id=[2, 0])
    assert Tokenizer.load(tmp_path).eos_ids == {0, 2}
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "config.json").unlink()
    assert Tokenizer.load(tmp_path).eos_ids == {2}


def test_renders_a_conversation(folder: Path) -> None:
    text = Tokenizer.load(folder).render(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好"}],
        add_generation_prompt=True,
    )
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_may_refuse_a_conversation(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, 300)
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    rewrite(tmp_path, "tokenizer_config.json", chat_template=template)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.render([{"role": "user", "content": ""}], add_generation_prompt=False) == ""
    with pytest.raises(ChatError, match="user first"):
        tokenizer.render([{"role": "assistant", "content": ""}], add_generation_prompt=False)


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{% for %}", ModelError),
        ("{{ messages.append(1) }}", ChatError),  # the sandbox lets nothing be changed
        ("{{ ''.__class__.__mro__ }}", ChatError),
        ("{{ messages[0].content + 1 }}", ChatError),
    ],
)
def test_broken_or_hostile_templates_are_refused(
    tmp_path: Path, template: str, error: type[Exception]
) -> None:
    make_tokenizer(tmp_path, 300)
    rewrite(tmp_path, "tokenizer_config.json", chat_template=template)
    with pytest.raises(error):
        Tokenizer.load(tmp_path).render(
            [{"role": "user", "content": "x"}], add_generation_prompt=False
        )


def test_reads_named_templates_and_a_template_file(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, 300)
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    rewrite(tmp_path, "tokenizer_config.json", chat_template=named)
    assert Tokenizer.load(tmp_path).chat_template == "d"
    rewrite(tmp_path, "tokenizer_config.json", chat_template=None)
    assert Tokenizer.load(tmp_path).chat_template is None
    (tmp_path / "chat_template.jinja").write_text("from a file")
    assert Tokenizer.load(tmp_path).chat_template == "from a file"


def test_a_missing_or_broken_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="not a tokenizer"):
        Tokenizer.load(tmp_path)
