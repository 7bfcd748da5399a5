"""Sampling against exact probabilities: seeds are fixed, so that no test fails by chance."""

import numpy as np
import pytest

from appliance.errors import EngineFailed, InvalidRequest
from serving.sampling import Sampler, Sampling, draw, fall, largest, nucleus

RNG = np.random.default_rng(7)
LOGITS = (2 * RNG.standard_normal(50)).astype(np.float32)
DRAWS = 20_000


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weights / weights.sum()


def frequencies(sampling, logits=LOGITS):
    """Shares of the tokens that a sampler without penalties chooses."""
    sampler = Sampler(Sampling(seed=0, **sampling), (), logits.size)
    chosen = [sampler.choose(logits).id for _ in range(DRAWS)]
    return np.bincount(chosen, minlength=logits.size) / DRAWS


def chi_square(observed, expected):
    """Pearson's statistic over the tokens that are expected at all, by degrees of freedom."""
    likely = expected * DRAWS >= 5
    rest = np.array([observed[~likely].sum() - expected[~likely].sum()])
    assert abs(rest[0]) < 0.01
    difference = observed[likely] - expected[likely]
    return float((DRAWS * difference**2 / expected[likely]).sum()) / max(1, likely.sum() - 1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_come_as_often_as_their_probability_says(temperature):
    observed = frequencies({"temperature": temperature})
    # The statistic's mean is 1; above 1.6 with some 40 degrees the hypothesis is off at p < 0.01.
    assert chi_square(observed, softmax(LOGITS / temperature)) < 1.6


def test_top_k_keeps_the_likeliest_and_their_proportions():
    kept = np.argsort(-LOGITS)[:5]
    expected = np.zeros(LOGITS.size)
    expected[kept] = softmax(LOGITS[kept])
    observed = frequencies({"top_k": 5})
    assert set(np.flatnonzero(observed)) == set(kept)
    assert chi_square(observed, expected) < 3.3  # 4 degrees, p = 0.01


def test_top_p_keeps_the_fewest_that_reach_it_and_their_proportions():
    probabilities = softmax(LOGITS)
    order = np.argsort(-probabilities)
    count = int(np.searchsorted(np.cumsum(probabilities[order]), 0.7)) + 1
    kept = order[:count]
    assert probabilities[kept].sum() >= 0.7 > probabilities[kept[:-1]].sum()
    expected = np.zeros(LOGITS.size)
    expected[kept] = softmax(LOGITS[kept])
    observed = frequencies({"top_p": 0.7})
    assert set(np.flatnonzero(observed)) == set(kept)
    assert chi_square(observed, expected) < 2.0


@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_a_whole_sort(spread, top_p):
    weights = np.exp(spread * np.random.default_rng(1).standard_normal(49_152)).astype(np.float32)
    sums = np.cumsum(np.sort(weights)[::-1], dtype=np.float64)
    count = int(np.searchsorted(sums, top_p * weights.sum(dtype=np.float64))) + 1
    kept = nucleus(weights, top_p)
    assert kept.size == count == np.unique(kept).size
    np.testing.assert_array_equal(weights[kept], np.sort(weights)[::-1][:count])


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 49_152])
def test_the_place_is_where_the_running_sum_exceeds_the_number(size):
    weights = np.random.default_rng(size).random(size, np.float32)
    weights[::3] = 0
    weights[-1] = 0.5
    sums = np.cumsum(weights, dtype=np.float64)
    for number in [0.0, *np.random.default_rng(2).random(50), 1 - 2**-53]:
        place = fall(weights, number)
        assert weights[place] > 0
        assert sums[place] >= number * sums[-1] - 1e-6
        assert sums[place] - weights[place] <= number * sums[-1] + 1e-6


@pytest.mark.parametrize("count", [1, 2, 20, 700, 40_000, 49_152])
def test_the_largest_are_those_of_a_whole_sort_ties_and_all(count):
    values = np.random.default_rng(3).standard_normal(49_152).round(2).astype(np.float32)
    places = largest(values, count)
    assert np.unique(places).size == count
    np.testing.assert_array_equal(values[places], np.sort(values)[::-1][:count])


def test_top_p_counts_what_top_k_left():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    # Of the three left, 0.4/0.9 and 0.3/0.9 reach 0.75; of all four, three would be needed.
    observed = frequencies({"top_k": 3, "top_p": 0.75}, logits)
    np.testing.assert_allclose(observed, [4 / 7, 3 / 7, 0, 0], atol=0.02)


def test_temperature_0_is_greedy_and_draws_nothing():
    assert Sampler(Sampling(temperature=0), (), 50).choose(LOGITS).id == LOGITS.argmax()


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_the_ends_of_the_interval_fall_on_tokens_that_can_be_drawn(number):
    scores = np.array([-np.inf, -1, 0, -np.inf], np.float32)
    assert draw(scores, number, 0, 1.0) in (1, 2)


@pytest.mark.parametrize("temperature", [2e-5, 1e-6, 1e-300])
def test_a_tiny_temperature_is_greedy_without_overflow(temperature):
    sampling = Sampling(temperature=temperature, seed=1)
    assert Sampler(sampling, (), 50).choose(LOGITS).id == LOGITS.argmax()


def test_a_seed_gives_the_same_answer_and_another_seed_another():
    def answer(seed):
        sampler = Sampler(Sampling(seed=seed), (), 50)
        return [sampler.choose(LOGITS).id for _ in range(40)]

    assert answer(3) == answer(3)
    assert answer(3) != answer(4)
    assert answer(-1) == answer(-1), "OpenAI's clients may send negative seeds"
    assert answer(None) != answer(None)


def after(sampling, answer, prompt=(), size=6):
    """The scores that a sampler gives logits 1, 1, … with two negative, after `answer`."""
    sampler = Sampler(Sampling(temperature=0, **sampling), prompt, size)
    for token in answer:
        forced = np.full(size, -50, np.float32)
        forced[token] = 500
        assert sampler.choose(forced).id == token
    logits = np.array([1, 1, 1, 1, -1, -1], np.float32)
    return sampler._penalised(logits).tolist()


def test_repetition_divides_positive_logits_and_multiplies_negative_ones():
    """CTRL, arXiv:1909.05858, section 4.1, over prompt and answer; signs as transformers does."""
    scores = after({"repetition_penalty": 2.0}, answer=[1, 1, 4], prompt=(0,))
    assert scores == [0.5, 0.5, 1, 1, -2, -1]


def test_presence_and_frequency_count_the_answer_alone():
    """OpenAI: mu[j] -= c[j] * alpha_frequency + (c[j] > 0) * alpha_presence."""
    scores = after({"presence_penalty": 0.5, "frequency_penalty": 0.25}, [1, 1, 2], prompt=(0, 3))
    assert scores == [1, 0, 0.25, 1, -1, -1]


def test_the_bias_comes_before_the_penalties():
    scores = after({"logit_bias": {4: 3.0}, "repetition_penalty": 2.0}, [], prompt=(4,))
    assert scores == [1, 1, 1, 1, 1.0, -1]


def test_a_bias_forces_or_bans_a_token():
    likeliest = int(LOGITS.argmax())
    assert Sampler(Sampling(seed=0, logit_bias={9: 100}), (), 50).choose(LOGITS).id == 9
    observed = frequencies({"logit_bias": {likeliest: -100}})
    assert observed[likeliest] == 0


def test_log_probabilities_are_the_models_own():
    """Bias, penalties and temperature change what is chosen, not what the model thought of it."""
    exact = np.log(softmax(LOGITS))
    sampling = Sampling(temperature=0.3, logit_bias={9: 100}, top_k=1, logprobs=3)
    token = Sampler(sampling, (1, 2), 50).choose(LOGITS)
    assert token.id == 9
    assert token.logprob == pytest.approx(exact[9], abs=1e-5)
    order = np.argsort(-exact)[:3]
    assert [i for i, _ in token.top_logprobs] == order.tolist()
    assert [p for _, p in token.top_logprobs] == pytest.approx(exact[order].tolist(), abs=1e-5)


def test_log_probabilities_come_only_where_asked_for():
    plain = Sampler(Sampling(temperature=0), (), 50).choose(LOGITS)
    chosen = Sampler(Sampling(temperature=0, logprobs=0), (), 50).choose(LOGITS)
    assert plain.logprob is None and plain.top_logprobs == ()
    assert chosen.logprob is not None and chosen.top_logprobs == ()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_engines_failure(temperature):
    broken = LOGITS.copy()
    broken[3] = np.nan
    with pytest.raises(EngineFailed, match="not finite"):
        Sampler(Sampling(temperature=temperature), (), 50).choose(broken)


def test_the_logits_are_left_as_they_were():
    before = LOGITS.copy()
    sampling = Sampling(logit_bias={1: 5}, repetition_penalty=1.5, presence_penalty=1, logprobs=2)
    Sampler(sampling, (1, 2), 50).choose(LOGITS)
    np.testing.assert_array_equal(LOGITS, before)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -3),
        ("logit_bias", {5: 101}),
        ("logit_bias", {-1: 1}),
        ("logprobs", 21),
        ("logprobs", -1),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(field, value):
    with pytest.raises(InvalidRequest, match=field) as caught:
        Sampling(**{field: value})
    assert caught.value.param == field
    assert caught.value.hint.startswith("Allowed: ")
