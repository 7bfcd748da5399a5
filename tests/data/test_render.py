"""What is learnt: every answer and the token that ends it, in the very ids that serving sends."""

import dataclasses

import pytest

from appliance.data.render import IGNORED, render
from appliance.data.template import with_template
from appliance.errors import DataError, ModelError

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = [{"role": "user", "content": "你好！"}, {"role": "assistant", "content": "你好，世界 😀"}]
SECOND = [{"role": "user", "content": "And you?"}, {"role": "assistant", "content": "Fine."}]
THIRD = [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "See you"}]


def learnt(tokenizer, example):
    """The learnt texts, special tokens shown, one for each run of labels."""
    texts, run = [], []
    for token, label in [*zip(example.input_ids, example.labels, strict=True), (0, IGNORED)]:
        if label != IGNORED:
            assert label == token
            run.append(token)
        elif run:
            texts.append(tokenizer.backend.decode(run, skip_special_tokens=False))
            run = []
    return texts


def show(tokenizer, messages, max_length=1000):
    return render(tokenizer, messages, max_length=max_length, where="rows.jsonl:7")


def test_every_answer_is_learnt_with_its_end_token_and_nothing_else(smollm2_tokenizer):
    example = show(smollm2_tokenizer, [SYSTEM, *FIRST, *SECOND])
    assert learnt(smollm2_tokenizer, example) == ["你好，世界 😀<|im_end|>", "Fine.<|im_end|>"]
    assert not example.truncated


@pytest.mark.parametrize("messages", [FIRST, [*FIRST, *SECOND], [SYSTEM, *FIRST, *SECOND, *THIRD]])
def test_the_ids_before_the_last_answer_are_those_of_a_clients_prompt(smollm2_tokenizer, messages):
    prompt = smollm2_tokenizer.render(messages[:-1], add_generation_prompt=True)
    ids = smollm2_tokenizer.encode(prompt)
    assert show(smollm2_tokenizer, messages).input_ids[: len(ids)] == ids


def test_an_answer_whose_tokens_merge_with_the_prompt_keeps_the_prompts_ids(smollm2_tokenizer):
    odd = [FIRST[0], {"role": "assistant", "content": "\n\nfoo"}, *SECOND]
    example = show(smollm2_tokenizer, odd)
    ids = smollm2_tokenizer.encode(smollm2_tokenizer.render(odd[:-1], add_generation_prompt=True))
    assert example.input_ids[: len(ids)] == ids
    assert learnt(smollm2_tokenizer, example) == ["Fine.<|im_end|>"]


def test_oldest_rounds_go_first_and_the_system_message_stays(smollm2_tokenizer):
    whole = [SYSTEM, *FIRST, *SECOND, *THIRD]
    length = len(show(smollm2_tokenizer, [SYSTEM, *SECOND, *THIRD]).input_ids)
    example = show(smollm2_tokenizer, whole, length)
    assert example.messages == [SYSTEM, *SECOND, *THIRD]
    assert (example.rounds_cut, example.tokens_cut, example.truncated) == (1, 0, True)
    assert learnt(smollm2_tokenizer, example) == ["Fine.<|im_end|>", "See you<|im_end|>"]


def test_a_long_question_is_cut_from_the_left(smollm2_tokenizer):
    question = {"role": "user", "content": "word " * 300 + "last"}
    example = show(smollm2_tokenizer, [question, SECOND[1]], 40)
    assert len(example.input_ids) == 40
    assert learnt(smollm2_tokenizer, example) == ["Fine.<|im_end|>"]
    kept = smollm2_tokenizer.decode(example.input_ids)
    assert kept.startswith(" word") and "last" in kept
    whole = show(smollm2_tokenizer, [question, SECOND[1]])
    assert example.tokens_cut == len(whole.input_ids) - 1 - 40  # the last is a line break


def test_a_long_answer_is_cut_from_the_right_and_learnt_without_an_end(smollm2_tokenizer):
    answer = {"role": "assistant", "content": "word " * 300}
    example = show(smollm2_tokenizer, [SECOND[0], answer], 50)
    assert len(example.input_ids) == 50
    (text,) = learnt(smollm2_tokenizer, example)
    assert text.startswith("word word") and "<|im_end|>" not in text
    assert "And you?" in smollm2_tokenizer.decode(example.input_ids)


@pytest.mark.parametrize("max_length", [8, 9, 23])
def test_something_is_learnt_however_short_the_example(smollm2_tokenizer, max_length):
    long = [{"role": "user", "content": "x " * 99}, {"role": "assistant", "content": "y " * 99}]
    example = show(smollm2_tokenizer, long, max_length)
    assert len(example.input_ids) == len(example.labels) == max_length
    assert learnt(smollm2_tokenizer, example)


def test_only_the_line_break_after_the_end_token_is_no_truncation(smollm2_tokenizer):
    length = len(show(smollm2_tokenizer, SECOND).input_ids)
    example = show(smollm2_tokenizer, SECOND, length - 1)
    assert not example.truncated
    assert learnt(smollm2_tokenizer, example) == ["Fine.<|im_end|>"]


MESSAGE = "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
BROKEN = {
    "no end token": MESSAGE + "{% endfor %}" + OPEN,
    "generation prompt does not lead": MESSAGE
    + "<|im_end|>{% endfor %}"
    + OPEN.replace("assistant", "assistant\n<think>"),
    "differently later on": MESSAGE
    + "{% if not loop.last %} (old){% endif %}<|im_end|>{% endfor %}"
    + OPEN,
    "refuses": "{{ raise_exception('no talk') }}",
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_template_that_hides_answers_is_refused_with_the_row(smollm2_tokenizer, problem):
    broken = dataclasses.replace(smollm2_tokenizer, chat_template=BROKEN[problem])
    with pytest.raises(DataError, match=r"^rows.jsonl:7: .*" + problem.split()[0]) as refused:
        show(broken, [*FIRST, *SECOND])
    assert problem.split()[-1] in refused.value.message
    assert refused.value.hint


def test_a_base_without_template_gets_chatml_or_a_plain_one(smollm2_tokenizer):
    bare = dataclasses.replace(smollm2_tokenizer, chat_template=None)
    given, name = with_template(bare)
    assert name == "ChatML"
    assert learnt(given, show(given, SECOND)) == ["Fine.<|im_end|>"]
    own, name = with_template(smollm2_tokenizer)
    assert (own, name) == (smollm2_tokenizer, "")


def test_without_chatmls_tokens_the_plain_template_ends_with_the_eos_token(tmp_path):
    plain = plain_tokenizer(tmp_path, eos="</s>")
    given, name = with_template(plain)
    assert name.startswith("plain")
    assert learnt(given, show(given, [SYSTEM, *FIRST, *SECOND])) == [
        "你好，世界 😀</s>",
        "Fine.</s>",
    ]
    with pytest.raises(ModelError, match="end token"):
        with_template(dataclasses.replace(plain, eos_token=None))


def plain_tokenizer(folder, eos):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    from appliance.bundle.tokenizer import Tokenizer

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([eos])
    ids = frozenset([backend.token_to_id(eos)])
    return Tokenizer(backend, None, None, eos, ids)
