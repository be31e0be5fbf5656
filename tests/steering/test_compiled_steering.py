"""Compiled models. The eager backend traces as the real one does and needs no C++ compiler."""

import pytest
import torch
from transformers import CompileConfig

from rotalabs_steer import ActivationInjector, unsteered
from rotalabs_steer.errors import NotSteeredError, SteeringError
from rotalabs_steer.steering.conditions import Condition
from rotalabs_steer.steering.schedules import StopAfter
from tiny import count_hooks, make_vector, tiny_llama

IDS = torch.tensor([[5, 6, 7, 8, 9]])
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

DYNAMO_READS_GRADIENTS = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def wrapper(model):
    return torch.compile(model, backend="eager", fullgraph=True)


def in_place(model):
    model.compile(backend="eager")
    return model


def own_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def inner_decoder(model):
    model.model = torch.compile(model.model, backend="eager")
    return model


def forward_of_the_inner_decoder(model):
    model.model.forward = torch.compile(model.model.forward, backend="eager")
    return model


def inner_decoder_in_place(model):
    model.model.compile(backend="eager")
    return model


def one_layer(model):
    model.model.layers[1].compile(backend="eager")
    return model


def caller(model):
    def call(ids):
        return model(ids)

    return torch.compile(call, backend="eager", fullgraph=True)


FORMS = [
    wrapper, in_place, own_forward, inner_decoder, forward_of_the_inner_decoder, inner_decoder_in_place, one_layer,
    caller,
]  # fmt: skip


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def expected_logits(strength, mode="all", **options):
    model = tiny_llama()
    with ActivationInjector(model, [make_vector(model)], strength, mode, **options), torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("mode", ["all", "last", "first"])
@pytest.mark.parametrize("form", FORMS)
def test_compiled_before_attaching(llama, form, mode):
    injector = ActivationInjector(llama, [make_vector(llama)], 2.0, mode)
    with torch.no_grad():
        plain = llama(IDS).logits
        call = form(llama)
        assert torch.allclose(call(IDS).logits, plain, atol=1e-5)
        with injector:
            torch.testing.assert_close(call(IDS).logits, expected_logits(2.0, mode), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(call(IDS).logits, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", [wrapper, in_place, own_forward, forward_of_the_inner_decoder, caller])
def test_attaching_again_and_other_strengths_compile_nothing_again(llama, form):
    injector = ActivationInjector(llama, [make_vector(llama)], 1.0)
    with torch.no_grad():
        call = form(llama)
        call(IDS)
        with injector:
            call(IDS)
        compiled = graphs()
        for strength in (2.0, -3.0, 0.0, 2.0):
            injector.strength = strength
            with injector:
                torch.testing.assert_close(call(IDS).logits, expected_logits(strength), atol=1e-5, rtol=1e-5)
            call(IDS)
        assert graphs() == compiled > 0


@pytest.mark.parametrize("options", [
    {"schedule": StopAfter(3)}, {"condition": Condition(torch.ones(16), 0, -1.0)}, {"intervention": "rotate"},
], ids=["schedule", "condition", "rotate"])  # fmt: skip
@pytest.mark.parametrize("mode", ["all", "last"])
def test_whatever_steers_acts_in_compiled_generation(llama, options, mode):
    vector = make_vector(llama, scale=6.0)
    with ActivationInjector(llama, [vector], 3.0, mode, **options):
        expected = llama.generate(IDS, **GREEDY)
        llama.compile(backend="eager")
        assert torch.equal(llama.generate(IDS, **GREEDY), expected)


def test_a_static_cache_that_compiles_by_itself(llama):
    as_on_a_gpu = CompileConfig(backend="eager", mode=None)
    as_on_a_gpu._compile_all_devices = True
    static = GREEDY | {"cache_implementation": "static", "compile_config": as_on_a_gpu}
    for mode in ("all", "last", "prompt"):
        injector = ActivationInjector(llama, [make_vector(llama, scale=6.0)], 3.0, mode)
        with injector:
            expected = llama.generate(IDS, **GREEDY)
            assert torch.equal(llama.generate(IDS, **static), expected)
        plain = llama.generate(IDS, **GREEDY)
        assert torch.equal(llama.generate(IDS, **static), plain)
        with injector:
            assert torch.equal(llama.generate(IDS, **static), expected)
        assert graphs() > 0


def test_guidance_on_a_compiled_model_steers_both_of_its_sequences(llama):
    settings = GREEDY | {"guidance_scale": 1.5, "output_scores": True, "return_dict_in_generate": True}
    with ActivationInjector(llama, [make_vector(llama, scale=6.0)], 1.0, "last"):
        expected = llama.generate(IDS, **settings)
        llama.compile(backend="eager")
        found = llama.generate(IDS, **settings)
    torch.testing.assert_close(torch.stack(found.scores), torch.stack(expected.scores), atol=1e-4, rtol=1e-4)


def test_the_plain_model_inside_a_compiled_one(llama):
    with torch.no_grad():
        plain = llama(IDS).logits
        call = wrapper(llama)
        with ActivationInjector(llama, [make_vector(llama)], 2.0):
            assert not torch.allclose(call(IDS).logits, plain, atol=1e-3)
            with unsteered(llama):
                torch.testing.assert_close(call(IDS).logits, plain, atol=1e-5, rtol=1e-5)


@DYNAMO_READS_GRADIENTS
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_gradients_pass_an_addition_in_a_compiled_model(llama, backend):
    def gradient(call):
        llama.zero_grad()
        call(IDS, labels=IDS).loss.backward()
        return llama.model.embed_tokens.weight.grad.clone()

    with ActivationInjector(llama, [make_vector(llama)], 2.0):
        expected = gradient(llama)
        torch.testing.assert_close(gradient(torch.compile(llama, backend=backend)), expected, atol=1e-5, rtol=1e-4)


@DYNAMO_READS_GRADIENTS
def test_gradients_that_a_compiled_model_does_not_know_are_an_error(llama):
    with ActivationInjector(llama, [make_vector(llama)], 2.0, intervention="rotate"):
        compiled = torch.compile(llama, backend="aot_eager")
        with pytest.raises(SteeringError, match=r"known for added vectors of constant strength only\. Train without"):
            compiled(IDS, labels=IDS).loss.backward()


def test_attaching_leaves_no_mark_on_the_model(llama):
    before = [dict(layer.__dict__) for layer in llama.model.layers]
    hooks = count_hooks(llama)
    with ActivationInjector(llama, [make_vector(llama)]):
        llama(IDS)
    assert [dict(layer.__dict__).keys() for layer in llama.model.layers] == [one.keys() for one in before]
    assert count_hooks(llama) == hooks


def test_a_forward_that_somebody_put_on_a_layer_is_kept(llama):
    layer = llama.model.layers[1]
    original, calls = layer.forward, []

    def theirs(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    layer.forward = theirs
    with ActivationInjector(llama, [make_vector(llama)]), torch.no_grad():
        torch.testing.assert_close(llama(IDS).logits, expected_logits(1.0))
    assert layer.forward is theirs
    assert calls == [1]


def test_layers_that_are_replaced_while_they_are_steered_are_noticed(llama):
    injector = ActivationInjector(llama, [make_vector(llama)])
    with pytest.raises(NotSteeredError, match=r"The model ran, but its layers \[1\] did not"), injector:
        llama.model.layers[1] = type(llama.model.layers[1])(llama.config, 1)
        llama(IDS)
    assert count_hooks(llama) == 0
