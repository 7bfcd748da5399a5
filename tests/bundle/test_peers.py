"""What we write, transformers reads: weights, tokenizer, chat template."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.bundle import chat
from appliance.bundle.config import ModelConfig
from appliance.bundle.parity import onnx_step, two_steps
from appliance.bundle.read import Bundle, open_bundle

ROOT = Path(__file__).parents[2]
CONVERSATIONS = [
    [{"role": "user", "content": "How do I empty the bin?"}],
    [
        {"role": "system", "content": "Answer briefly. <b>&"},
        {"role": "user", "content": "你好 👋"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "  spaces\n\nand lines  "},
    ],
]
TEMPLATES = [
    None,
    "{{ bos_token }}{{ unknown }}{% for m in messages %}{% if loop.index > 3 %}{% break %}"
    "{% endif %}[{{ m.role }}] {{ m.content | trim }}{{ eos_token }}{% endfor %}",
    "{% for m in messages %}\n    {% generation %}\n{{ m | tojson }}\n    {% endgeneration %}\n"
    "{% endfor %}\n{{ messages | tojson(indent=2) }}",
    "{{ strftime_now('%Y') }}{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
]
TEXTS = [
    "The capital of France is 1234.5, isn't it?",
    "你好，世界 👩‍👩‍👧‍👦",
    "<|im_start|>user\nhi<|im_end|>\n",
    "  two  spaces\tand\n\nlines",
]


def transformers_reads(folder: Path, ids: list[list[int]], work: Path) -> dict[str, Any]:
    python = ROOT / ".venv-peers" / "bin" / "python"
    assert python.exists(), "no environment of peers: run `make peers`"
    cases, output = work / "cases.json", work / "output.json"
    cases.write_text(
        json.dumps(
            {
                "ids": ids,
                "texts": TEXTS,
                "conversations": CONVERSATIONS,
                "templates": TEMPLATES,
            }
        )
    )
    script = ROOT / "tests" / "peers" / "transformers_reads.py"
    done = subprocess.run(
        [python, script, folder, cases, output],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def compare(bundle: Bundle, work: Path) -> dict[str, Any]:
    """Assert that transformers and we agree on a bundle; gives what transformers said."""
    tokenizer = bundle.tokenizer
    ids = [tokenizer.encode(text) for text in ("x".join(TEXTS[:2]), TEXTS[0] * 2)]
    theirs = transformers_reads(bundle.folder, ids, work)

    assert theirs["tokens"] == [tokenizer.encode(text) for text in TEXTS]
    for template, rendered in zip(TEMPLATES, theirs["rendered"], strict=True):
        assert rendered == [
            chat.render(
                template or tokenizer.chat_template or "",
                messages,
                add_generation_prompt=True,
                bos_token=tokenizer.bos_token,
                eos_token=tokenizer.eos_token,
            )
            for messages in CONVERSATIONS
        ]
    config, step = ModelConfig.read(bundle.folder), onnx_step(bundle.graph.onnx)
    for row, logits in zip(ids, theirs["logits"], strict=True):
        ours = two_steps(config, step, np.asarray([row]))[0]
        assert np.max(np.abs(ours - np.asarray(logits))) <= 1e-4
    return theirs


def test_transformers_agrees_on_a_tiny_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    assert compare(open_bundle(tiny_bundle), tmp_path)["eos"] == 2


@pytest.mark.model
def test_transformers_agrees_on_smollm2(smollm2_bundle: Path, tmp_path: Path) -> None:
    theirs = compare(open_bundle(smollm2_bundle, check=False), tmp_path)
    assert theirs["parameters"] == 134_515_008
    assert theirs["eos"] == 2
