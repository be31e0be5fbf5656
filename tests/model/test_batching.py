import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rotalabs_steer.model.batching import can_share_prefixes, make_batch, plan_batches, probe_texts
from tiny import tiny_gpt2, tiny_llama

SHARING = [[5, 6, 7, 8], [5, 6, 7, 9], [5, 6, 7, 10, 11], [5, 6, 7, 12]]


def forgetful(module, query, key, value, attention_mask, **options):
    """An attention that takes a mask of ours and forgets it: every token sees all before it."""
    return sdpa_attention_forward(module, query, key, value, None, is_causal=True, **options)


def forgetting(model):
    """The model with a mask that is dropped, though its attention claims to be one that takes masks."""
    for layer in model.model.layers:
        original = layer.self_attn.forward

        def forward(*args, original=original, **options):
            return original(*args, **{**options, "attention_mask": None})

        layer.self_attn.forward = forward
    return model


def massive(model):
    """The model with one channel of one token a thousand times as large as all others, as trained models have them."""
    with torch.no_grad():
        model.model.embed_tokens.weight[probe_texts(model)[0][0], 3] = (
            1e3 * model.model.embed_tokens.weight.abs().mean()
        )
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [lambda model: model, massive], ids=["plain", "massive activation"])
def test_a_model_that_forgets_the_mask_is_found_out(change, dtype):
    assert can_share_prefixes(change(tiny_llama(_attn_implementation="sdpa")).to(dtype), 7)
    assert not can_share_prefixes(forgetting(change(tiny_llama(_attn_implementation="sdpa")).to(dtype)), 7)


def test_the_probe_is_repeated_for_another_attention(llama):
    AttentionInterface.register("forgetful", forgetful)
    assert can_share_prefixes(llama, 7)
    llama.set_attn_implementation("forgetful")
    assert not can_share_prefixes(llama, 7)
    llama.set_attn_implementation("eager")
    assert can_share_prefixes(llama, 7)


def calls_of(model):
    calls = []
    model.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_the_probe_is_repeated_for_another_dtype_and_for_it_alone(llama):
    calls = calls_of(llama)
    can_share_prefixes(llama, 7)
    asked = len(calls)
    can_share_prefixes(llama, 7)
    assert len(calls) == asked > 0
    can_share_prefixes(llama.to(torch.bfloat16), 7)
    assert len(calls) == 2 * asked


@pytest.mark.filterwarnings("ignore::FutureWarning")  # names that transformers is about to change
def test_the_probe_is_repeated_for_an_adapter(llama):
    calls = calls_of(llama)
    can_share_prefixes(llama, 7)
    asked = len(calls)
    adapted = get_peft_model(llama, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    can_share_prefixes(adapted, 7)
    assert len(calls) == 2 * asked
    with adapted.disable_adapter():
        can_share_prefixes(adapted, 7)
    assert len(calls) == 3 * asked


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, lambda: tiny_llama(vocab_size=32)])
def test_probe_texts_are_of_the_vocabulary_and_begin_alike(make):
    model = make()
    first, second = probe_texts(model)
    assert first[:3] == second[:3]
    assert not set(first[3:]) & set(second[3:])
    assert len({*first, *second}) == 19
    assert max(*first, *second) < model.config.vocab_size
    assert max(*first, *second) > 0.9 * model.config.vocab_size


def test_a_plan_shares_what_texts_have_in_common(llama):
    (rows,) = plan_batches(llama, SHARING).batches
    batch = make_batch(llama, rows, SHARING)
    assert batch.inputs["input_ids"].numel() == 3 + 5
    assert plan_batches(llama, SHARING, share_prefixes=False).tokens == 4 * 5
