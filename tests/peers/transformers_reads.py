"""Runs in the peers' environment: what transformers makes of a model folder.

    python transformers_reads.py FOLDER CASES_JSON OUTPUT_JSON

Cases: `ids` (lists of token ids, each to be given logits), `texts` (to be encoded), `conversations`
and `templates` (to be rendered; null is the model's own). Writes `logits`, `tokens`, `rendered`,
`parameters` and `eos`.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, cases_path, output = sys.argv[1:]
with open(cases_path, encoding="utf-8") as stream:
    cases = json.load(stream)
torch.set_num_threads(2)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    logits = [model(torch.tensor([ids])).logits[0].tolist() for ids in cases["ids"]]
rendered = [
    [
        tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        for messages in cases["conversations"]
    ]
    for template in cases["templates"]
]
with open(output, "w", encoding="utf-8") as stream:
    json.dump(
        {
            "logits": logits,
            "tokens": [tokenizer.encode(t, add_special_tokens=False) for t in cases["texts"]],
            "rendered": rendered,
            "parameters": sum(p.numel() for p in model.parameters()),
            "eos": model.generation_config.eos_token_id,
        },
        stream,
    )
