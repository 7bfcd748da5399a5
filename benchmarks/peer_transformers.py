"""transformers + torch on a bundle's own weights, driven by serve.py; runs in `.venv-peers`.

One JSON object a line: {"prompts": [[int]], "tokens": n} in, {"seconds": s, "ids": [[int]]} out.
Shorter prompts are padded on the left, as transformers' own pipelines do.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
# min_new_tokens would forbid the end token instead, and the answers would be another model's.
model.generation_config.eos_token_id = None
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    ask = json.loads(line)
    prompts, tokens = ask["prompts"], ask["tokens"]
    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    began = time.perf_counter()
    with torch.inference_mode():
        answer = model.generate(
            padded,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=0,
        )
    seconds = time.perf_counter() - began
    ids = answer[:, width:].tolist()
    print(json.dumps({"seconds": seconds, "ids": ids}), flush=True)
