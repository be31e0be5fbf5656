"""Vectors turned towards the gradient: against a second route, and on the real model."""

import math

import pytest
import torch

from rotalabs_steer.datasets import load_formality_pairs
from rotalabs_steer.datasets.rendering import RenderedPair, RenderedText, render_pair
from rotalabs_steer.errors import ActivationError
from rotalabs_steer.extraction import extract_vectors
from rotalabs_steer.extraction.gradients import fisher_scores
from rotalabs_steer.measures.coherence import CoherenceProbe
from rotalabs_steer.steering.injection import ActivationInjector
from rotalabs_steer.tuning.first_order import NeutralCost
from rotalabs_steer.tuning.refinement import FIRST_TOKENS, LEAST_COSINE, tilt
from tiny import make_vector

BUDGET, LAYER = 1e-3, 1


def rendered(first, length=12):
    return RenderedText(tuple((first + 7 * n) % 90 + 3 for n in range(length)), 4)


PAIRS = [RenderedPair(rendered(n), rendered(n + 31)) for n in range(6)]


def cost_of(model):
    texts = [[(n + 5 * k) % 90 + 3 for k in range(10)] for n in range(6)]
    return NeutralCost({LAYER: fisher_scores(model, texts, [LAYER])[0]})


def log_odds(model, vector, strength):
    """The mean log-odds of the responses' first tokens, from the definition."""
    found = []
    for pair in PAIRS:
        sides = []
        for text in (pair.positive, pair.negative):
            ids = torch.tensor([text.ids[: text.response_start + FIRST_TOKENS]])
            with torch.no_grad(), ActivationInjector(model, [vector], strength):
                log_probs = model(ids).logits[0].float().log_softmax(-1)
            targets = ids[0, text.response_start :]
            sides.append(log_probs[text.response_start - 1 : -1].gather(1, targets[:, None]).mean())
        found.append(float(sides[0] - sides[1]))
    return sum(found) / len(found)


def test_a_turned_vector_moves_the_openings_more_at_the_same_cost(llama):
    vector, cost = make_vector(llama, LAYER), cost_of(llama)
    turned = tilt(llama, vector, PAIRS, cost, BUDGET)
    cosine = float(torch.cosine_similarity(turned.vector, vector.vector, dim=0))
    assert LEAST_COSINE <= cosine < 0.999
    assert turned.metadata["cosine_to_start"] == pytest.approx(cosine, abs=1e-5)

    def gain(which):
        at = cost.strength_at(which, BUDGET)
        return log_odds(llama, which, at) - log_odds(llama, which, -at)

    assert gain(turned) > gain(vector) + 0.1 * abs(gain(vector))
    assert tilt(llama, vector, PAIRS, cost, BUDGET) == turned, "the same pairs give the same vector"


def test_a_turned_vector_stays_similar_to_where_it_began(llama):
    vector, cost = make_vector(llama, LAYER), cost_of(llama)
    turned = tilt(llama, vector, PAIRS, cost, BUDGET, steps=12)
    assert float(torch.cosine_similarity(turned.vector, vector.vector, dim=0)) >= LEAST_COSINE - 1e-6


def test_a_model_that_cannot_be_differentiated_is_an_error(llama):
    llama.lm_head.register_forward_hook(lambda module, inputs, output: output.detach())
    with pytest.raises(ActivationError, match="cannot be refined, because this model cannot be differentiated"):
        tilt(llama, make_vector(llama, LAYER), PAIRS, cost_of_scores(llama), BUDGET)


def cost_of_scores(model):
    return NeutralCost({LAYER: torch.randn(20, model.config.hidden_size, generator=torch.Generator().manual_seed(0))})


@pytest.mark.real_model
def test_on_the_real_model_both_cost_a_similar_amount(smollm, tokenizer):
    pairs = list(load_formality_pairs("train"))
    vector = extract_vectors(smollm, tokenizer, pairs[:16], [14], show_progress=False)[14]
    cost = NeutralCost.measure(smollm, tokenizer, [14])
    turned = tilt(smollm, vector, [render_pair(tokenizer, pair) for pair in pairs[:8]], cost, 0.2)
    probe, costs = CoherenceProbe(smollm, tokenizer), []
    for one in (vector, turned):
        with ActivationInjector(smollm, [one], cost.strength_at(vector, 0.2)):
            costs.append(probe.cost())
    assert math.log(costs[1] / costs[0]) == pytest.approx(0.0, abs=math.log(2))
