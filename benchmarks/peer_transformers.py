"""transformers + torch on a bundle's own weights, driven by serve.py; runs in `.venv-peers`.

One JSON object a line: {"prompts": [[int]], "tokens": n} in, {"seconds": s, "ids": [[int]]} out.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    ask = json.loads(line)
    prompts, tokens = torch.tensor(ask["prompts"]), ask["tokens"]
    began = time.perf_counter()
    with torch.inference_mode():
        answer = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )
    seconds = time.perf_counter() - began
    ids = answer[:, prompts.shape[1] :].tolist()
    print(json.dumps({"seconds": seconds, "ids": ids}), flush=True)
