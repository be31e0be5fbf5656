import torch

from extraction.test_caa import PAIRS as TEXTS
from extraction.test_caa import Letters
from rotalabs_steer import ActivationInjector, SteeringVector
from rotalabs_steer.datasets.rendering import RenderedPair, RenderedText
from rotalabs_steer.extraction import read_statistics
from rotalabs_steer.extraction.gradients import pair_gradients
from rotalabs_steer.measures.propensity import pair_propensities
from tiny import count_hooks

PAIRS = [
    RenderedPair(RenderedText((5, 6, 7, 8), 2), RenderedText((5, 6, 9), 2)),
    RenderedPair(RenderedText((11, 12, 13), 1), RenderedText((11, 14, 15, 16, 17), 1)),
]


def test_gradients_are_the_slope_of_the_log_odds(tiny_model):
    model = tiny_model.double()
    layers = [0, 2]
    gradients = pair_gradients(model, PAIRS, layers)
    step = 3e-4
    for number, layer in enumerate(layers):
        direction = torch.randn(16, generator=torch.Generator().manual_seed(layer))
        vector = SteeringVector("test", layer, direction, "tiny")
        at = []
        for strength in (step, -step):
            with ActivationInjector(model, [vector], strength=strength):
                at.append(pair_propensities(model, PAIRS, share_prefixes=False))
        torch.testing.assert_close((at[0] - at[1]) / (2 * step), gradients[number] @ direction, rtol=2e-3, atol=2e-3)
    assert count_hooks(model) == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_mean_gradient_of_many_pairs_is_summed_in_parts(llama, monkeypatch):
    whole = read_statistics(llama, Letters(), TEXTS, [1], methods=["gradient"], show_progress=False)
    monkeypatch.setattr("rotalabs_steer.extraction.extract._PAIRS_AT_ONCE", 2)
    parts = read_statistics(llama, Letters(), TEXTS, [1], methods=["gradient"], show_progress=False)
    torch.testing.assert_close(parts.vectors("gradient")[1].vector, whole.vectors("gradient")[1].vector)
