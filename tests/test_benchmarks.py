"""The benchmark compares like with like."""

import shutil
from pathlib import Path

import numpy as np

from appliance.bundle.read import open_bundle
from benchmarks.serve import first_differences, our_engine, peer
from tests.models import write

PYTHON = Path(__file__).resolve().parent.parent / ".venv-peers/bin/python"
TOKENS = 40


def test_an_end_token_and_neighbours_of_other_lengths_change_no_answer(tiny_bundle, tmp_path):
    """With `min_new_tokens` the peer is forbidden the end token, and its answers part from ours."""
    assert PYTHON.exists(), "no environment of peers: run `make peers`"
    bundle = open_bundle(tiny_bundle)
    random = np.random.default_rng(0)
    prompts = [random.integers(0, bundle.graph.vocab_size, 3 + 5 * n).tolist() for n in range(6)]
    with our_engine(bundle, "onnxruntime", 100, 1) as ours:
        _, answers = ours.generate(prompts, TOKENS)
        alone = [ours.generate([prompt], TOKENS)[1][0] for prompt in prompts]
        assert ours.margin is not None and ours.margin(prompts[0]) > 0
    assert answers == alone
    ends = shutil.copytree(tiny_bundle, tmp_path / "ends")
    write(ends / "generation_config.json", {"eos_token_id": answers[0][3]})
    with peer(open_bundle(ends, check=False), PYTHON, 1) as theirs:
        assert theirs.generate(prompts, TOKENS)[1] == answers


def test_the_first_difference_is_found_with_what_led_to_it():
    same, ours, theirs = [7, 8, 9], [1, 2, 3], [1, 5, 3]
    found = first_differences([[4], [5, 6]], [same, ours], [same, theirs])
    assert list(found) == [(1, 1, [5, 6, 1])]
