"""Parts of layers are what they add to the residual stream, whatever stands between their modules and it."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from remote_code import remote_model
from rotalabs_steer import ActivationHook, ActivationInjector, extract_activations
from rotalabs_steer.errors import ArchitectureError, OptionError
from rotalabs_steer.extraction import extract_vectors
from rotalabs_steer.model.layer_parts import find_parts
from tiny import count_hooks, make_vector, tiny_gpt2, tiny_llama

SMALL = {"vocab_size": 128, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": 1,
         "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])


def gemma2():
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(**SMALL, intermediate_size=32, num_key_value_heads=2, head_dim=8)).eval()
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            torch.nn.init.normal_(parameter)
    return model


def granite():
    torch.manual_seed(0)
    config = GraniteConfig(**SMALL, intermediate_size=32, num_key_value_heads=2, residual_multiplier=0.22)
    return GraniteForCausalLM(config).eval()


def opt():
    torch.manual_seed(0)
    config = OPTConfig(**SMALL, ffn_dim=32, max_position_embeddings=64, word_embed_proj_dim=16)
    return OPTForCausalLM(config).eval()


def mamba():
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=128, hidden_size=16, num_hidden_layers=2, state_size=4)).eval()


def added(model, component, **inputs):
    return extract_activations(model, {"input_ids": IDS, **inputs}, [1], component, "all")[1]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, gemma2, granite, opt, lambda: remote_model("sequence_first")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_stream_after_a_layer_is_the_stream_before_plus_attention_and_mlp(make, dtype):
    model = make().to(dtype)
    residual = extract_activations(model, {"input_ids": IDS}, [0, 1], token_position="all")
    total = residual[0] + added(model, "attn") + added(model, "mlp")
    assert total.shape == (*IDS.shape, 16)
    torch.testing.assert_close(
        total.float(), residual[1].float(), atol=1e-5 if dtype == torch.float32 else 0.06, rtol=0.02
    )


def test_norms_and_multipliers_between_a_part_and_the_stream_are_seen_in_every_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = gemma2().to(dtype)
        for scale in (1.0, 100.0):  # trained Gemmas have streams far larger than what a layer adds
            model.model.embed_tokens.weight.data *= scale
            part = find_parts(model, [1], "attn")[1]
            assert part.module is model.model.layers[1].post_attention_layernorm
            assert part.factor == 1.0
        assert find_parts(granite().to(dtype), [1], "mlp")[1].factor == 0.22


def test_a_layer_with_a_single_part_has_that_one():
    model = mamba()
    residual = extract_activations(model, {"input_ids": IDS}, [0, 1], token_position="all")
    torch.testing.assert_close(residual[0] + added(model, "attn"), residual[1])
    with pytest.raises(ArchitectureError, match=r"MambaBlock has no 'mlp' part; its parts are norm, mixer"):
        added(model, "mlp")


def test_layers_that_are_no_sum_of_parts_are_refused_and_left_as_they_were():
    config = BertConfig(**SMALL, intermediate_size=32, is_decoder=True)
    model = BertLMHeadModel(config).train()
    for component in ("attn", "mlp"):
        message = rf"It is unknown what the '{component}' of BertLayer adds to the residual stream.*'residual'"
        with pytest.raises(ArchitectureError, match=message):
            ActivationHook(model, [1], component)
    assert count_hooks(model) == 0
    assert all(module.training for module in model.modules())
    with pytest.raises(ArchitectureError, match=r"RemoteModel does not run on token ids alone \(wanted is missing\)"):
        ActivationHook(remote_model("wants_more"), [1], "mlp")
    with pytest.raises(OptionError, match="Unknown component 'heads'"):
        find_parts(model, [1], "heads")


@pytest.mark.parametrize("attached_first", [True, False])
def test_steering_does_not_count_as_something_that_the_layer_adds(llama, attached_first):
    injector = ActivationInjector(llama, [make_vector(llama, layer=1, scale=50.0)])
    if attached_first:
        with injector:
            part = find_parts(llama, [1], "mlp")[1]
    else:
        hook = ActivationHook(llama, [1], "mlp")
        with injector, hook:
            llama(IDS)
        torch.testing.assert_close(hook.get_activations()[1], added(llama, "mlp"))
        return
    assert part.module is llama.model.layers[1].mlp


def test_finding_parts_is_not_seen_by_hooks_that_are_attached(llama):
    with ActivationHook(llama, [1]) as hook:
        llama(IDS)
        before = hook.get_activations()[1].clone()
        find_parts(llama, [1], "mlp")
        assert torch.equal(hook.get_activations()[1], before)


def test_vectors_of_parts_are_those_of_what_the_parts_add():
    from extraction.test_caa import PAIRS, Letters

    model = granite()
    vector = extract_vectors(model, Letters(), PAIRS, [1], component="mlp", token_position="mean", show_progress=False)[
        1
    ]
    sides = []
    for side in ("positive", "negative"):
        ids = [torch.tensor([Letters()(pair[side])["input_ids"]]) for pair in PAIRS]
        found = [extract_activations(model, {"input_ids": one}, [1], "mlp", "all")[1][0].mean(dim=0) for one in ids]
        sides.append(torch.stack(found).mean(dim=0))
    torch.testing.assert_close(vector.vector, sides[0] - sides[1], atol=1e-6, rtol=1e-4)
