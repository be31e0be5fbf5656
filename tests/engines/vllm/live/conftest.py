"""Real vLLM engines, one at a time: each is started by the first test that needs it and stopped by the next."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CACHE_ROOT", str(Path.home() / ".cache" / "rotalabs-steer" / "vllm"))

import pytest
from vllm import LLM, SamplingParams

from engines.vllm.steered_sets import random_set, save_sets
from rotalabs_steer.engines.vllm import steering_config
from rotalabs_steer.sample_model import sample_model_path

PROMPTS = (
    "How do I boil an egg?", "Who wrote Hamlet?", "Give me a soup recipe.", "Explain photosynthesis to a child.",
    "What is a good name for a cat?", "Why is the sky blue?", "Write a line about autumn.", "How do bees make honey?",
    "What should I pack for a trip to the sea?", "Tell me about the moon.", "How can I learn to whistle?",
    "What is an atom?", "Describe a quiet street.", "How do I fix a flat tyre?", "What makes bread rise?",
    "Name three rivers.", "Why do cats purr?", "How does a clock work?", "What is jazz?", "Plan a walk in the woods.",
)  # fmt: skip


class Engines:
    """The one engine that runs; asking for another stops it."""

    def __init__(self):
        self._options, self._llm = None, None

    def get(self, make=LLM, **options):
        if (make, options) != self._options:
            self.stop()
            self._llm, self._options = make(**options), (make, options)
        return self._llm

    def stop(self):
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm, self._options = None, None


@pytest.fixture(scope="session")
def engines():
    found = Engines()
    yield found
    found.stop()


@pytest.fixture(scope="session")
def vectors(tmp_path_factory):
    return tmp_path_factory.mktemp("vectors")


@pytest.fixture(scope="session")
def sets(vectors):
    spread = random_set("spread", (6, 10, 18, 24), 4, norm=20.0, acting_layers=[6, 18, 24])
    spread.save(vectors / "spread")
    return save_sets(vectors) | {"spread": spread}


@pytest.fixture(scope="session")
def options(vectors, sets):
    """What every engine on the real model is started with."""
    return {
        "model": str(sample_model_path()),
        "dtype": "float32",
        "max_model_len": 512,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 512,
        "additional_config": steering_config(vectors),
        "disable_log_stats": False,
    }


@pytest.fixture
def llm(engines, options):
    """The compiled engine that most tests share."""
    return engines.get(**options)


@pytest.fixture(scope="session")
def prompts(tokenizer):
    """Twenty chats, as token ids."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in PROMPTS
    ]


def greedy(steering=None, tokens=24, **options):
    extra = None if steering is None else {"steering": steering}
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, extra_args=extra, **options)


def generate(llm, prompts, params):
    """The tokens of each request."""
    outputs = llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]
