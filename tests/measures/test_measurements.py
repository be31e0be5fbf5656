import math

import numpy as np
import pytest
import torch

from rotalabs_steer import ActivationInjector, SteeringVector
from rotalabs_steer.datasets import load_formality_pairs, persona_pairs
from rotalabs_steer.datasets.rendering import RenderedPair, RenderedText, render_pair
from rotalabs_steer.errors import ActivationError, DatasetError, OptionError
from rotalabs_steer.evaluation import evaluate_vector, tune
from rotalabs_steer.extraction import extract_vectors
from rotalabs_steer.extraction.gradients import fisher_scores, pair_gradients
from rotalabs_steer.generation.continuation import generate_texts, generate_tokens
from rotalabs_steer.measures.coherence import CoherenceProbe, solve_quadratic
from rotalabs_steer.measures.propensity import pair_propensities, response_log_probs
from rotalabs_steer.tuning.first_order import score_layers
from tiny import count_hooks, make_vector


def reference_log_prob(model, text):
    with torch.no_grad():
        log_probs = model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
    start = max(text.response_start, 1)
    return float(torch.stack([log_probs[i - 1, text.ids[i]] for i in range(start, len(text.ids))]).mean())


@pytest.mark.parametrize("share", [True, False])
def test_log_probs_are_those_of_each_text_alone(tiny_model, share):
    texts = [RenderedText((5, 6, 7, 8, 9), 2), RenderedText((5, 6, 9), 2), RenderedText((11, 12, 13, 14), 0)]
    scores = response_log_probs(tiny_model, texts, share_prefixes=share)
    assert scores.tolist() == pytest.approx([reference_log_prob(tiny_model, text) for text in texts], abs=1e-5)


@pytest.mark.real_model
def test_propensities_on_the_real_model_steered_and_not(smollm, tokenizer):
    pairs = [render_pair(tokenizer, pair) for pair in load_formality_pairs("test")[:2]]
    torch.manual_seed(0)
    with ActivationInjector(smollm, [SteeringVector("x", 12, torch.randn(576), "SmolLM2")]):
        measured = pair_propensities(smollm, pairs)
        expected = [reference_log_prob(smollm, p.positive) - reference_log_prob(smollm, p.negative) for p in pairs]
    assert measured.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.real_model
def test_the_cost_is_zero_unsteered_and_the_budget_at_the_strength_found(smollm, tokenizer):
    probe = CoherenceProbe(smollm, tokenizer)
    assert probe.cost() == pytest.approx(0.0, abs=1e-6)
    torch.manual_seed(0)
    injector = ActivationInjector(smollm, [SteeringVector("x", 12, torch.randn(576), "SmolLM2")], strength=0.3)
    strength = probe.calibrate(injector, start=1.0, budget=0.2).strength
    assert injector.strength == 0.3
    costs = []
    with injector:
        for sign in (1, -1):
            injector.strength = sign * strength
            costs.append(probe.cost())
    assert sum(costs) / 2 == pytest.approx(0.2, rel=0.1)


def answerless():
    """Pairs that differ in their system message and have no responses, as `persona_pairs` makes them."""
    return persona_pairs([f"w{n} w{n + 1}" for n in range(20, 32)], "w105 w106", "w107 w108")


def lengths(texts):
    return np.array([float(len(text)) for text in texts])


def runs(model):
    """How often the model has run from now on, as a list that grows."""
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("measure", [
    lambda model, words, pairs: pair_propensities(model, [render_pair(words, pair) for pair in pairs]),
    lambda model, words, pairs: pair_gradients(model, [render_pair(words, pair) for pair in pairs], [1]),
    lambda model, words, pairs: extract_vectors(model, words, pairs, [1], method="gradient", show_progress=False),
    lambda model, words, pairs: extract_vectors(model, words, pairs, [1], method="natural_gradient"),
    lambda model, words, pairs: score_layers(model, words, pairs, [1], show_progress=False),
    lambda model, words, pairs: evaluate_vector(model, words, make_vector(model), pairs),
    lambda model, words, pairs: tune(model, words, pairs, judge=lengths, show_progress=False),
])  # fmt: skip
def test_pairs_without_responses_have_no_log_odds(llama, words, measure):
    calls = runs(llama)
    with pytest.raises(DatasetError, match=r"he positive text of pair 0.* has no token of a response to score"):
        measure(llama, words, answerless())
    assert calls == []


def test_one_pair_without_a_response_is_named(llama):
    texts = [RenderedText((5, 6, 7), 2), RenderedText((5, 6), 2)]
    with pytest.raises(DatasetError, match=r"Text 1 has no token of a response to score \(2 tokens, .* begins at 2\)"):
        response_log_probs(llama, texts)
    with pytest.raises(DatasetError, match="There are no texts to score"):
        response_log_probs(llama, [])
    with pytest.raises(DatasetError, match="Text 0 has no token"):
        response_log_probs(llama, [RenderedText((5,), 0)])


def broken(model, token):
    """A model that answers with NaN once it has read a token, as one in float16 that overflows."""
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    return model


def test_predictions_that_are_not_finite_are_named(llama):
    def pair(n):
        return RenderedPair(RenderedText((5, 6, 7 + n), 2), RenderedText((5, 6, 40 + n, 50), 2))

    pairs = [pair(n) for n in range(4)]
    broken(llama, 42)
    with pytest.raises(ActivationError, match=r"the negative text of pair 2 are NaN or infinite \(1 of 8 texts\)"):
        pair_propensities(llama, pairs, share_prefixes=False)
    with pytest.raises(ActivationError, match="gradient of the negative text of pair 2 at layer 1 is NaN or infinite"):
        pair_gradients(llama, pairs, [1, 3])
    with pytest.raises(ActivationError, match="predictions for neutral text 1 are NaN"):
        fisher_scores(llama, [(5, 6, 7, 8), (5, 42, 6)], [1])


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0, 3.0, 8.0])
@pytest.mark.parametrize("start", [1e-6, 0.01, 1.0, 300.0, 1e9])
def test_the_budget_is_met_whatever_the_start(power, start):
    asked = []

    def cost(x):
        asked.append(x)
        return (x / 7) ** power

    found = solve_quadratic(cost, start, 0.2)
    assert (found / 7) ** power == pytest.approx(0.2, rel=0.05)
    if power == 2.0 and 0.5 < start < 100:
        assert len(asked) <= 2


COSTS = {
    "it falls again": lambda x: 3 * x * x * math.exp(-x),
    "it rises late": lambda x: 0.0 if x < 50 else (x - 50) ** 2,
    "it saturates above the budget": lambda x: 0.25 * (1 - math.exp(-x)),
    "it overflows beyond the budget": lambda x: x**2 / 50 if x < 4 else math.nan,
    "it has a plateau": lambda x: min(x, 0.1) if x < 30 else 0.1 + (x - 30) / 10,
    "it has a step below the budget": lambda x: 0.01 * x + 0.15 * (x > 2),
}


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize("start", [1e-3, 1.0, 40.0, 1e4])
def test_the_budget_is_met_by_costs_far_from_quadratic(cost, start):
    assert cost(solve_quadratic(cost, start, 0.2)) == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize(("cost", "message"), [
    (lambda x: min(x * x * 1e-9, 0.05), r"budget of 0.2 nats per token.*largest cost that could be measured is 0.05,"),
    (lambda x: 0.0, "largest cost that could be measured is 0, at strength"),
    (lambda x: math.nan, "largest cost that could be measured is 0, at strength .* the cost is nan"),
    (lambda x: 0.05 * x if x < 2 else math.nan, "is 0.1, at strength 2, and beyond strength 2 the cost is nan"),
    (lambda x: 0.1 if x < 2 else 3.0, "measured is 3, at strength"),
])  # fmt: skip
def test_a_budget_that_cannot_be_met_is_an_error(cost, message):
    asked = []

    def counted(x):
        asked.append(x)
        return cost(x)

    with pytest.raises(OptionError, match=message):
        solve_quadratic(counted, 1.0, 0.2)
    assert len(asked) <= 60


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_start_or_budget_that_is_not_above_zero_is_an_error(bad):
    with pytest.raises(OptionError, match="start of a calibration is"):
        solve_quadratic(abs, bad, 0.2)
    with pytest.raises(OptionError, match="budget of a calibration is"):
        solve_quadratic(abs, 1.0, bad)


def test_calibration_on_a_model_meets_the_budget_or_is_an_error(llama, words):
    probe = CoherenceProbe(llama, words, ["w20 w21 w22 w23 w24", "w30 w31 w32"])
    injector = ActivationInjector(llama, [make_vector(llama)], strength=0.3)
    found = probe.calibrate(injector, 1e-3, 0.001)
    assert sum(cost.kl for cost in found.costs) / 2 == pytest.approx(0.001, rel=0.05)
    with injector:
        injector.strength = found.strength
        assert probe.cost() == pytest.approx(found.costs[1].kl, rel=1e-4)
    injector.strength = 0.3
    with pytest.raises(OptionError, match="No strength costs the coherence budget of 100 nats per token"):
        probe.calibrate(injector, 1.0, 100.0)
    assert injector.strength == 0.3
    assert count_hooks(llama) == 0


def test_predictions_that_are_not_finite_have_no_cost(llama, words):
    probe = CoherenceProbe(llama, words, ["w20 w21 w22 w23 w24"])
    with torch.no_grad():
        llama.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ActivationError, match="predictions on neutral text are NaN or infinite"):
        probe.measure()
    with pytest.raises(ActivationError, match="predictions on neutral text are NaN or infinite"):
        CoherenceProbe(llama, words, ["w20 w21 w22 w23 w24"])


@pytest.mark.parametrize("passages", [[], ["w20 w21", ""]])
def test_neutral_text_of_no_tokens_is_an_error(llama, words, passages):
    with pytest.raises(DatasetError, match=f"at least two tokens each; there are {len(passages)}"):
        CoherenceProbe(llama, words, passages)


@pytest.mark.real_model
def test_batched_answers_are_those_of_each_prompt_alone(smollm, tokenizer):
    prompts = ["What is a fjord?", "Name three musical instruments that have strings, please."]
    together = generate_tokens(smollm, tokenizer, prompts, 12)
    assert together == [generate_tokens(smollm, tokenizer, [prompt], 12)[0] for prompt in prompts]
    assert generate_texts(smollm, tokenizer, prompts[:1], 12)[0] == tokenizer.decode(together[0]).strip()
