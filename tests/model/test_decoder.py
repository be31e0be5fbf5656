import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from rotalabs_steer.errors import ArchitectureError, LayerError, OptionError
from rotalabs_steer.model.decoder import (
    check_layer_indices,
    decoder_layers,
    fastest_device,
    hidden_size,
    layer_part,
    model_fingerprint,
)
from tiny import tiny_gpt2, tiny_llama


def test_layers_of_llama_and_gpt2():
    llama, gpt2 = tiny_llama(), tiny_gpt2()
    assert decoder_layers(llama) is llama.model.layers
    assert decoder_layers(llama.model) is llama.model.layers
    assert decoder_layers(gpt2) is gpt2.transformer.h
    assert hidden_size(gpt2) == 16


def test_an_encoder_decoder_is_steered_on_its_decoder_side():
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
    assert decoder_layers(t5) is t5.decoder.block
    assert layer_part(t5.decoder.block[0], "attn") is t5.decoder.block[0].layer[0].SelfAttention
    assert layer_part(t5.decoder.block[0], "mlp") is t5.decoder.block[0].layer[-1].DenseReluDense


def test_a_module_that_is_no_transformers_model_is_refused():
    with pytest.raises(ArchitectureError, match=r"Linear has no `config`.*from_pretrained"):
        decoder_layers(nn.Linear(2, 2))


def test_a_model_is_loaded_onto_the_gpu_where_there_is_one():
    there = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert fastest_device() == torch.device(there)


def test_parts():
    layer = tiny_llama().model.layers[0]
    assert layer_part(layer, "residual") is layer
    assert layer_part(layer, "mlp") is layer.mlp
    assert layer_part(layer, "attn") is layer.self_attn
    with pytest.raises(OptionError, match=r"Unknown component 'mpl'. Use one of: residual, mlp, attn"):
        layer_part(layer, "mpl")
    with pytest.raises(ArchitectureError, match=r"Linear has no 'mlp' part.*component='residual'"):
        layer_part(nn.Linear(2, 2), "mlp")


@pytest.mark.parametrize(("indices", "message"), [
    ([], "No layer index given"),
    ([-1], r"Layer -1 does not exist: .* has 4 decoder layers, 0 to 3"),
    ([4], "Layer 4 does not exist"),
    ([True], "Layer True does not exist"),
    ([1, 1], r"\[1, 1\] name a layer twice"),
])  # fmt: skip
def test_layer_indices_are_checked(indices, message):
    with pytest.raises(LayerError, match=message):
        check_layer_indices(tiny_llama(), indices)


def test_the_fingerprint_tells_architectures_apart():
    assert model_fingerprint(tiny_llama()) == {
        "model_type": "llama", "num_layers": 4, "hidden_size": 16, "vocab_size": 128,
    }  # fmt: skip
    assert model_fingerprint(tiny_llama()) != model_fingerprint(tiny_gpt2())
