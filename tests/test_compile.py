"""Compiled models. The eager backend traces as the real one does and needs no C++ compiler."""

import pytest
import torch

from rotalabs_steer import ActivationInjector
from rotalabs_steer.errors import CompiledModelError
from tiny import count_hooks, make_vector, tiny_llama

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize("mode", ["all", "last", "first"])
def test_attached_then_compiled_is_steered_at_every_strength(llama, mode):
    vector = make_vector(llama)
    expected = {}
    for strength in (0.0, 1.0, 2.0, -3.0):
        with ActivationInjector(llama, [vector], strength, mode), torch.no_grad():
            expected[strength] = llama(IDS).logits
    injector = ActivationInjector(llama, [vector], 1.0, mode)
    graphs = []
    with injector, torch.no_grad():
        compiled = torch.compile(llama, backend="eager")
        for strength in (1.0, 2.0, -3.0, 2.0, 0.0):
            injector.strength = strength
            torch.testing.assert_close(compiled(IDS).logits, expected[strength], atol=1e-5, rtol=1e-5)
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert len(set(graphs[1:4])) == 1, "a changed strength recompiles"
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDS).logits, expected[0.0], atol=1e-5, rtol=1e-5)


def refuses(model):
    before = count_hooks(model)
    with pytest.raises(CompiledModelError, match="Attach first and compile afterwards"):
        ActivationInjector(model, [make_vector(model)]).attach()
    assert count_hooks(model) == before


def test_a_model_compiled_in_place_is_refused(llama):
    llama.compile(backend="eager")
    refuses(llama)


def test_a_model_with_a_compiled_layer_is_refused(llama):
    llama.model.layers[2].compile(backend="eager")
    refuses(llama)


def test_a_compiled_wrapper_that_has_run_is_noticed(llama):
    compiled = torch.compile(llama, backend="eager")
    compiled(IDS)
    refuses(llama)
    other = tiny_llama()
    plain = other(IDS).logits
    with ActivationInjector(other, [make_vector(other)]):
        assert (other(IDS).logits - plain).abs().max() > 1e-3, "another model is steered as ever"


def test_the_compiled_wrapper_itself_may_be_passed_where_it_has_not_run(llama):
    with torch.no_grad():
        vector = make_vector(llama)
        with ActivationInjector(llama, [vector]):
            expected = llama(IDS).logits
        compiled = torch.compile(llama, backend="eager")
        with ActivationInjector(compiled, [vector]):
            torch.testing.assert_close(compiled(IDS).logits, expected, atol=1e-5, rtol=1e-5)
