"""A tiny model with random weights, as transformers and vLLM load it, and vectors for it."""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM

from engines.vllm.live.conftest import greedy
from engines.vllm.live.test_agreement import in_transformers
from engines.vllm.steered_sets import random_set
from rotalabs_steer.engines.vllm import steering_config
from tiny import tiny_llama

KINDS = (
    None,
    {"behaviors": {"left": 1.0}},
    {"behaviors": {"left": -1.5, "right": 1.0}, "scope": "generated"},
    {"behaviors": {"right": 2.0}, "scope": "prompt"},
    {"behaviors": {"spread": 0.8, "left": -0.5}},
)


class TinyModel:
    def __init__(self, folder):
        self.folder = folder
        tiny_llama(
            hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
            vocab_size=256, max_position_embeddings=512, initializer_range=0.2,
        ).save_pretrained(folder / "model")  # fmt: skip
        self.sets = {
            name: random_set(name, (1, 2), seed, hidden=64, norm=6.0) for seed, name in enumerate(("left", "right"))
        }
        self.sets["spread"] = random_set("spread", (0, 1, 3), 5, hidden=64, norm=6.0, acting_layers=[0, 3])
        for name, vectors in self.sets.items():
            vectors.save(folder / "vectors" / name)

    def options(self, **changes):
        """What an engine is started with."""
        settings = {
            "model": str(self.folder / "model"), "dtype": "float32", "skip_tokenizer_init": True, "max_model_len": 256,
            "max_num_seqs": 8, "max_num_batched_tokens": 256, "block_size": 32, "enforce_eager": True,
            "enable_prefix_caching": False, "disable_log_stats": False,
            "additional_config": steering_config(self.folder / "vectors"),
        }  # fmt: skip
        return settings | changes

    def transformers(self):
        return LlamaForCausalLM.from_pretrained(self.folder / "model", dtype=torch.float32).eval()

    def prompts(self, count=8, length=60):
        generator = torch.Generator().manual_seed(0)
        return [torch.randint(3, 256, (length + n,), generator=generator).tolist() for n in range(count)]

    def check(self, llm, tokens=24, model=None, lora_request=None):
        """A batch of all kinds of steering gives the tokens of transformers; returns the greatest difference."""
        model = model or self.transformers()
        prompts = self.prompts()
        kinds = [KINDS[number % len(KINDS)] for number in range(len(prompts))]
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts],
            [greedy(kind, tokens, logprobs=0) for kind in kinds],
            use_tqdm=False,
            lora_request=lora_request,
        )
        worst = 0.0
        for ids, kind, output in zip(prompts, kinds, outputs, strict=True):
            expected, logprobs = in_transformers(model, self.sets, kind, ids, tokens)
            found = output.outputs[0]
            assert list(found.token_ids) == expected, kind
            theirs = [position[token].logprob for position, token in zip(found.logprobs, expected, strict=True)]
            worst = max(worst, *(abs(a - b) for a, b in zip(theirs, logprobs, strict=True)))
        assert worst < 1e-3
        return worst


def metric(llm, name):
    """The present value of one of vLLM's counters."""
    return sum(found.value for found in llm.get_metrics() if found.name == name)
