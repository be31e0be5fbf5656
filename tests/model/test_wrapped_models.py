"""Models inside other people's wrappers, and models that are being trained."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rotalabs_steer import ActivationInjector, extract_activations
from rotalabs_steer.model.decoder import decoder_layers, hidden_size
from tiny import count_hooks, make_vector, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # names that transformers is about to change

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture
def lora():
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(tiny_llama(), config).eval()


@pytest.mark.parametrize("mode", ["all", "last", "first"])
def test_a_peft_model_is_steered_through_its_adapter(lora, mode):
    base = lora.get_base_model()
    assert len(decoder_layers(lora)) == 4
    assert hidden_size(lora) == 16
    vector = make_vector(base, scale=4.0)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with ActivationInjector(lora, [vector], injection_mode=mode):
        through_peft = lora.generate(input_ids=IDS, **settings)
        uncached = lora.generate(input_ids=IDS, **settings, use_cache=False)
    merged = lora.merge_and_unload()
    with ActivationInjector(merged, [vector], injection_mode=mode):
        expected = merged.generate(IDS, **settings)
    assert through_peft.tolist() == uncached.tolist() == expected.tolist()
    assert count_hooks(merged) == 0


def test_activations_of_a_peft_model_are_the_adapted_ones(lora):
    adapted = extract_activations(lora, {"input_ids": IDS}, [3])[3]
    with lora.disable_adapter():
        assert not torch.allclose(extract_activations(lora, {"input_ids": IDS}, [3])[3], adapted)


def test_gradients_flow_through_a_steered_model(llama):
    vector = make_vector(llama)
    with ActivationInjector(llama, [vector]):
        llama(IDS, labels=IDS).loss.backward()
    assert all(bool(parameter.grad.any()) for parameter in llama.model.layers[0].mlp.parameters())


def gradients(model, **options):
    model.zero_grad()
    with ActivationInjector(model, [make_vector(model)], **options):
        model(IDS, labels=IDS).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("intervention", ["add", "rotate"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(llama, intervention, reentrant):
    llama.train()
    expected = gradients(llama, intervention=intervention)
    llama.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for gradient, same in zip(gradients(llama, intervention=intervention), expected, strict=True):
        torch.testing.assert_close(gradient, same)
