import numpy as np
import pytest
import torch

from rotalabs_steer import ActivationInjector, SteeringVector
from rotalabs_steer.datasets import load_formality_pairs
from rotalabs_steer.datasets.rendering import RenderedText, render_pair
from rotalabs_steer.evaluation.coherence import CoherenceProbe, solve_quadratic
from rotalabs_steer.evaluation.generation import generate_texts, generate_tokens
from rotalabs_steer.evaluation.propensity import pair_propensities, response_log_probs
from rotalabs_steer.intervals import bootstrap_mean


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
    strength = probe.strength_at(injector, start=1.0, budget=0.2)
    assert injector.strength == 0.3
    costs = []
    with injector:
        for sign in (1, -1):
            injector.strength = sign * strength
            costs.append(probe.cost())
    assert sum(costs) / 2 == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("start", [0.01, 1.0, 300.0])
def test_the_budget_is_met_whatever_the_start(power, start):
    asked = []

    def cost(x):
        asked.append(x)
        return (x / 7) ** power

    found = solve_quadratic(cost, start, 0.2)
    assert abs((found / 7) ** power / 0.2 - 1) < 0.4 or len(asked) == 6
    if 0.5 < start < 10:
        assert (found / 7) ** power == pytest.approx(0.2, rel=0.2)


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = sum(
        estimate.low <= 0.5 <= estimate.high
        for estimate in (bootstrap_mean(generator.normal(0.5, 1.0, 40), resamples=500) for _ in range(200))
    )
    assert 175 <= covered <= 199
    assert bootstrap_mean([1.0, 2.0, 3.0]).excludes_zero
    assert not bootstrap_mean([-1.0, 1.0]).excludes_zero
    assert str(bootstrap_mean([1.0])) == "+1.00 [+1.00, +1.00]"


@pytest.mark.real_model
def test_batched_answers_are_those_of_each_prompt_alone(smollm, tokenizer):
    prompts = ["What is a fjord?", "Name three musical instruments that have strings, please."]
    together = generate_tokens(smollm, tokenizer, prompts, 12)
    assert together == [generate_tokens(smollm, tokenizer, [prompt], 12)[0] for prompt in prompts]
    assert generate_texts(smollm, tokenizer, prompts[:1], 12)[0] == tokenizer.decode(together[0]).strip()
