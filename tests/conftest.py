"""Models that tests share."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rotalabs_steer.sample_model import sample_model_path
from tiny import tiny_gpt2, tiny_llama

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def smollm():
    """SmolLM2-135M-Instruct in fp32. Tests must leave it as they found it."""
    return AutoModelForCausalLM.from_pretrained(sample_model_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(sample_model_path())


@pytest.fixture
def llama():
    return tiny_llama()


@pytest.fixture(params=[tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def tiny_model(request):
    return request.param()
