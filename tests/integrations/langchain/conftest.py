"""A tiny model that reads and writes with SmolLM2's tokenizer, for what does not depend on sense."""

import pytest
import torch

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.integrations.langchain import SteeredChatModel, SteeredLLM
from tiny import make_vector, tiny_llama


@pytest.fixture(scope="session")
def small(tokenizer):
    model = tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=512, bos_token_id=1, eos_token_id=2)
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def sets(small):
    return {
        name: SteeringVectorSet(name, [make_vector(small, layer, 4.0, seed + layer, name) for layer in (1, 2)])
        for seed, name in ((0, "formality"), (10, "refusal"))
    }


@pytest.fixture
def configs(sets):
    return {name: {"vectors": vectors, "strength": 0.0} for name, vectors in sets.items()}


@pytest.fixture
def chat(small, tokenizer, configs):
    return SteeredChatModel(model=small, tokenizer=tokenizer, steering_configs=configs, temperature=0, max_new_tokens=6)


@pytest.fixture
def llm(small, tokenizer, configs):
    return SteeredLLM(model=small, tokenizer=tokenizer, steering_configs=configs, temperature=0, max_new_tokens=6)


@pytest.fixture(scope="session")
def real_vector():
    generator = torch.Generator().manual_seed(0)
    return SteeringVector("noise", 15, torch.randn(576, generator=generator) * 3, "SmolLM2")


@pytest.fixture
def real_chat(smollm, tokenizer, real_vector):
    """SmolLM2 with a random vector: enough to change what it writes."""
    return SteeredChatModel(
        model=smollm,
        tokenizer=tokenizer,
        steering_configs={"noise": {"vectors": real_vector, "strength": 0.0}},
        temperature=0,
        max_new_tokens=8,
    )
