"""Models, and a stand-in for the Hugging Face Hub, that tests share."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import huggingface_hub.constants
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rotalabs_steer.sample_model import sample_model_path
from stand_in_hub import StandInHub
from tiny import tiny_gpt2, tiny_llama

pytest_plugins = ["word_models"]

_LONG_FILES = ("test_notebook.py", "test_tutorials.py")


def pytest_collection_modifyitems(items):
    """The files that take minutes begin first, so that no process waits for another at the end."""
    items.sort(key=lambda item: item.path.name not in _LONG_FILES)


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


@pytest.fixture(scope="session")
def small_model(tokenizer, tmp_path_factory):
    """A folder with a tiny random Llama that reads bytes in the chat format of SmolLM2, so that verbs are quick."""
    folder = tmp_path_factory.mktemp("small") / "model"
    alphabet = ["<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_only = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=bytes_only, **special)
    fast.chat_template = tokenizer.chat_template
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet), hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=1, max_position_embeddings=8192,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # so that steering can cost something: random predictions hardly differ
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local stand-in for the Hugging Face Hub, which the real client talks to."""
    server = StandInHub()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    yield server
    server.close()
