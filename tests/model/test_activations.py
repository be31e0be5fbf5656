import pytest
import torch

from rotalabs_steer import ActivationCache, ActivationHook, ActivationInjector, extract_activations
from rotalabs_steer.errors import ActivationError, LayerError, OptionError
from tiny import count_hooks, make_vector

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def test_residual_is_what_output_hidden_states_shows(tiny_model):
    activations = extract_activations(tiny_model, {"input_ids": IDS}, [0, 1, 2], token_position="all")
    hidden = tiny_model(IDS, output_hidden_states=True).hidden_states
    for layer in (0, 1, 2):
        assert torch.equal(activations[layer], hidden[layer + 1])


@pytest.mark.real_model
def test_all_layers_but_the_last_match_on_the_real_model(smollm, tokenizer):
    inputs = tokenizer("The harbour was empty that morning.", return_tensors="pt")
    activations = extract_activations(smollm, inputs, range(29), token_position="all")
    with torch.no_grad():
        hidden = smollm(**inputs, output_hidden_states=True).hidden_states
    for layer in range(29):
        assert torch.equal(activations[layer], hidden[layer + 1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_last_and_first_are_real_tokens(llama, side):
    row = [5, 6, 7]
    ids = torch.tensor([[0, 0, *row] if side == "left" else [*row, 0, 0], [8, 9, 10, 11, 12]])
    mask = (ids != 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    for position in ("last", "first"):
        batch = extract_activations(llama, inputs, [2], token_position=position)[2]
        alone = extract_activations(llama, {"input_ids": torch.tensor([row])}, [2], token_position=position)[2]
        assert batch.shape == (2, 1, 16)
        torch.testing.assert_close(batch[:1], alone)


@pytest.mark.parametrize("component", ["mlp", "attn"])
def test_components_are_what_that_part_returns(llama, component):
    seen = []
    part = llama.model.layers[1].mlp if component == "mlp" else llama.model.layers[1].self_attn
    handle = part.register_forward_hook(
        lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    activations = extract_activations(llama, {"input_ids": IDS}, [1], component=component, token_position="all")
    handle.remove()
    assert torch.equal(activations[1], seen[-1])


def test_generation_is_captured_whole_with_and_without_a_cache(tiny_model):
    found = []
    for use_cache in (True, False):
        with ActivationHook(tiny_model, [1]) as hook:
            output = tiny_model.generate(IDS, max_new_tokens=4, do_sample=False, use_cache=use_cache, pad_token_id=0)
        found.append(hook.get_activations()[1])
        assert found[-1].shape == (1, output.shape[1] - 1, 16)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("hook_first", [True, False])
def test_captured_is_what_the_next_layer_sees_steering_included(llama, hook_first):
    vector = make_vector(llama, layer=1)
    hook, injector = ActivationHook(llama, [1]), ActivationInjector(llama, [vector])
    plain = extract_activations(llama, {"input_ids": IDS}, [1], token_position="all")[1]
    outer, inner = (hook, injector) if hook_first else (injector, hook)
    with outer, inner:
        llama(IDS)
    torch.testing.assert_close(hook.get_activations()[1], plain + vector.vector)


def test_the_cache_has_the_documented_names(llama):
    with ActivationHook(llama, [0, 3]) as hook:
        llama(IDS)
    assert hook.cache.keys() == ["layer_0", "layer_3"]
    assert hook.cache.get("layer_3").shape == (1, 5, 16)
    assert hook.cache.get("layer_1") is None
    assert "layer_0" in hook.cache
    assert len(hook.cache) == 2
    hook.cache.clear()
    assert len(ActivationCache()) == len(hook.cache) == 0


def test_columns_are_joined_once_when_they_are_asked_for():
    cache, columns = ActivationCache(), torch.arange(12.0).reshape(2, 3, 2)
    copied = []

    class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if "clone" in str(function) or "cat" in str(function):
                copied.append(result.shape[1])
            return result

    with Recorded():
        cache.store("layer_0", columns[:, :1])
        for column in (1, 2):
            cache.extend("layer_0", columns[:, column : column + 1])
    assert copied == [1, 1, 1], "each column is copied once, however many came before"
    assert torch.equal(cache.get("layer_0"), columns)
    cache.extend("layer_0", columns[:, :1])
    assert torch.equal(cache.get("layer_0"), torch.cat([columns, columns[:, :1]], dim=1))


def test_hooks_are_gone_afterwards_and_attaching_twice_is_once(llama):
    before = count_hooks(llama)
    hook = ActivationHook(llama, [0]).attach().attach()
    assert count_hooks(llama) > before
    hook.detach()
    hook.detach()
    assert count_hooks(llama) == before


def test_the_mode_of_the_model_is_left_alone(llama):
    llama.train()
    extract_activations(llama, {"input_ids": IDS}, [0])
    assert llama.training


def test_bad_arguments(llama):
    before = count_hooks(llama)
    with pytest.raises(LayerError, match="Layer 9 does not exist"):
        ActivationHook(llama, [9])
    with pytest.raises(OptionError, match="Unknown component 'heads'"):
        ActivationHook(llama, [0], component="heads")
    with pytest.raises(OptionError, match="Unknown token position 'lsat'"):
        ActivationHook(llama, [0], token_position="lsat")
    with pytest.raises(ActivationError, match=r"Nothing was captured at layers \[0\]: run the model inside"):
        ActivationHook(llama, [0]).get_activations()
    assert count_hooks(llama) == before


@pytest.mark.parametrize("inputs", [torch.tensor([[1, 2]]), "hello"])
def test_inputs_that_the_tokenizer_did_not_return_are_refused(llama, inputs):
    with pytest.raises(OptionError, match=r"inputs is a (Tensor|str); pass what the tokenizer returned"):
        extract_activations(llama, inputs, [1])
