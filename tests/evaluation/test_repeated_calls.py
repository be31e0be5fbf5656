import threading

import pytest
import torch

from rotalabs_steer import ActivationInjector
from rotalabs_steer.datasets.rendering import RenderedPair, RenderedText
from rotalabs_steer.evaluation import propensity
from rotalabs_steer.evaluation.propensity import PairScorer, pair_propensities
from rotalabs_steer.evaluation.repeated_calls import RepeatedCall
from tiny import make_vector, tiny_gpt2, tiny_llama

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])


@pytest.fixture(params=[tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def model(request):
    return request.param()


def plain(model):
    return model(input_ids=IDS, use_cache=False).logits


def ran(model):
    """The layers whose attention runs, as it runs."""
    layers = model.model.layers if hasattr(model, "model") else model.transformer.h
    seen = []
    for number, layer in enumerate(layers):
        attention = layer.self_attn if hasattr(layer, "self_attn") else layer.attn
        attention.register_forward_hook(lambda *_, n=number: seen.append(n))
    return seen


@torch.no_grad()
def test_lower_layers_run_once_and_nothing_changes(model):
    call = RepeatedCall(model, {"input_ids": IDS, "use_cache": False})
    torch.testing.assert_close(call.logits(), plain(model))
    with ActivationInjector(model, [make_vector(model, layer=3)]):
        RepeatedCall(model, {"input_ids": IDS, "use_cache": False}).logits()  # the model is probed once
    injector = ActivationInjector(model, [make_vector(model, layer=2)])
    with injector:
        call.logits()
        seen = ran(model)
        for strength in (-1.5, 0.0, 2.0):
            injector.strength = strength
            seen.clear()
            found = call.logits()
            assert seen == [3]
            torch.testing.assert_close(found, plain(model), rtol=0, atol=0)
    with ActivationInjector(model, [make_vector(model, layer=3)]):
        for expected in ([3], []):  # what layer 2 returned serves until that of layer 3 is known
            seen.clear()
            found = call.logits()
            assert seen == expected
            torch.testing.assert_close(found, plain(model), rtol=0, atol=0)
    assert all("forward" not in module.__dict__ for module in model.modules())


@torch.no_grad()
def test_steering_that_comes_and_goes_further_down_counts(model):
    call = RepeatedCall(model, {"input_ids": IDS, "use_cache": False})
    with ActivationInjector(model, [make_vector(model, layer=2)]):
        before = call.logits()
        with ActivationInjector(model, [make_vector(model, layer=0, seed=5)]):
            found = call.logits()
            torch.testing.assert_close(found, plain(model), rtol=0, atol=0)
            assert not torch.allclose(found, before)
        torch.testing.assert_close(call.logits(), before, rtol=0, atol=0)


@torch.no_grad()
def test_another_thread_calls_the_whole_model(model):
    """Its call comes while this one's lower layers compute nothing."""
    other, found = torch.tensor([[3, 4, 5]]), []
    call = RepeatedCall(model, {"input_ids": IDS, "use_cache": False})
    injector = ActivationInjector(model, [make_vector(model, layer=2)])
    layers = model.model.layers if hasattr(model, "model") else model.transformer.h

    def elsewhere(*_):
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: found.append(model(input_ids=other).logits.detach()))
            thread.start()
            thread.join()

    with injector.scoped():
        call.logits()
        handle = layers[1].register_forward_hook(elsewhere)
        call.logits()
        handle.remove()
    torch.testing.assert_close(found[0], model(input_ids=other).logits, rtol=0, atol=0)


class NeedsTheFirstLayer(torch.nn.Module):
    """A layer that takes, besides what the one before it returns, something that the first one made on its way."""

    def __init__(self, layer, source):
        super().__init__()
        self.layer, self.source = layer, source
        source.mlp.register_forward_hook(self.take)
        self.taken = None

    def take(self, module, inputs, output):
        self.taken = output

    def forward(self, *args, **kwargs):
        taken, self.taken = self.taken, None
        return self.layer(*args, **kwargs) + taken


@torch.no_grad()
def test_a_model_whose_later_layers_need_more_runs_whole(llama):
    llama.model.layers[3] = NeedsTheFirstLayer(llama.model.layers[3], llama.model.layers[0])
    call = RepeatedCall(llama, {"input_ids": IDS, "use_cache": False})
    injector = ActivationInjector(llama, [make_vector(llama, layer=1)])
    with injector:
        for strength in (1.0, -1.0, 2.0):
            injector.strength = strength
            torch.testing.assert_close(call.logits(), plain(llama), rtol=0, atol=0)


@pytest.mark.parametrize(("most_kept", "expected"), [(0, [0, 1, 2, 3]), (100, [3])])
def test_what_would_take_too_much_memory_is_not_kept(llama, monkeypatch, most_kept, expected):
    monkeypatch.setattr(propensity, "_MOST_KEPT", most_kept)
    pair = RenderedPair(RenderedText((5, 6, 7), 1), RenderedText((5, 8, 9), 1))
    scorer = PairScorer(llama, [pair])
    with ActivationInjector(llama, [make_vector(llama, layer=2)]):
        before = scorer.propensities()
        seen = ran(llama)
        assert scorer.propensities().equal(before)
    assert seen == expected


@pytest.mark.real_model
def test_propensities_come_out_as_measured_once(smollm, tokenizer):
    from rotalabs_steer.datasets import load_formality_pairs
    from rotalabs_steer.datasets.rendering import render_pair

    pairs = [render_pair(tokenizer, pair) for pair in load_formality_pairs("test")[:4]]
    scorer = PairScorer(smollm, pairs)
    injector = ActivationInjector(smollm, [make_vector(smollm, layer=15, scale=0.5)])
    with injector:
        for strength in (1.0, -1.0, 0.0):
            injector.strength = strength
            torch.testing.assert_close(scorer.propensities(), pair_propensities(smollm, pairs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scorer.propensities(), pair_propensities(smollm, pairs), rtol=1e-5, atol=1e-5)
