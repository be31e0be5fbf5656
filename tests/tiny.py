"""Tiny random models and vectors for them."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rotalabs_steer import SteeringVector


def tiny_llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 128,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=128, n_embd=16, n_layer=4, n_head=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return GPT2LMHeadModel(config).eval()


def make_vector(model, layer=1, scale=3.0, seed=0, behavior="test") -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(model.config.hidden_size, generator=generator) * scale
    return SteeringVector(behavior, layer, vector, "tiny")


def count_hooks(model) -> int:
    """All hooks on all modules, and methods replaced on the model."""
    hooks = sum(
        len(hooks)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    )
    return hooks + sum(name in model.__dict__ for name in ("generate", "prepare_inputs_for_generation"))
