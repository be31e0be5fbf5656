import math

import pytest
import torch

from rotalabs_steer import ActivationInjector, SteeringVector
from rotalabs_steer.datasets import load_formality_pairs
from rotalabs_steer.errors import DatasetError
from rotalabs_steer.measures.coherence import CoherenceProbe
from rotalabs_steer.tuning.first_order import FirstOrder, NeutralCost, score_layers


@pytest.mark.real_model
def test_the_cost_is_foretold(smollm, tokenizer):
    vector = SteeringVector("t", 14, torch.randn(576, generator=torch.Generator().manual_seed(0)), "")
    budget = 0.01
    strength = NeutralCost.measure(smollm, tokenizer, [14]).strength_at(vector, budget)
    probe = CoherenceProbe(smollm, tokenizer)
    costs = []
    for sign in (1, -1):
        with ActivationInjector(smollm, [vector], strength=sign * strength, check_model=False):
            costs.append(probe.cost())
    assert sum(costs) / 2 == pytest.approx(budget, rel=0.5)


@pytest.mark.real_model
def test_scores_prefer_a_middle_layer(smollm, tokenizer):
    scores = score_layers(smollm, tokenizer, load_formality_pairs("train")[:8], [1, 14, 28], show_progress=False)
    assert max(scores, key=scores.get) == 14
    assert scores[14] > 0


def test_the_score_is_gain_by_root_of_cost():
    cost = NeutralCost({0: torch.eye(3), 1: torch.eye(3) * 2})
    first_order = FirstOrder(dict.fromkeys((0, 1), torch.ones(3)), cost)
    scores = [first_order.score(SteeringVector("t", layer, torch.tensor([0.0, 3.0, 4.0]), "")) for layer in (0, 1)]
    assert scores == pytest.approx([7 / math.sqrt(25 / 3), 3.5 / math.sqrt(25 / 3)])


def test_too_few_pairs_are_an_error(llama):
    with pytest.raises(DatasetError, match="needs at least four; there are 3"):
        score_layers(llama, None, [{"positive": "a", "negative": letter} for letter in "bcd"])
