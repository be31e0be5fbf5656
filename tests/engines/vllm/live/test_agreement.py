"""vLLM against transformers, and a batch against each request alone."""

import random

import pytest
import torch

from engines.vllm.live.conftest import generate, greedy
from rotalabs_steer import ActivationInjector, MultiVectorInjector

KINDS = (
    None,
    {"behaviors": {"warm": 1.0}},
    {"behaviors": {"warm": -1.2}, "scope": "prompt"},
    {"behaviors": {"cool": 1.5}, "scope": "generated"},
    {"behaviors": {"warm": 0.8, "calm": -0.7}},
    {"behaviors": {"warm": 0.7}, "layers": [10, 20], "scope": "last"},
    {"warm": 0.6, "cool": 0.9},
    {"behaviors": {"spread": -0.8, "cool": 0.5}, "scope": "generated"},
)


def in_transformers(model, sets, kind, ids, tokens):
    """Greedy tokens and their log-probabilities."""
    inputs = torch.tensor([list(ids)])
    arguments = {
        "attention_mask": torch.ones_like(inputs), "max_new_tokens": tokens, "eos_token_id": -1, "pad_token_id": 0,
        "do_sample": False, "return_dict_in_generate": True, "output_logits": True,
    }  # fmt: skip
    if kind is None:
        output = model.generate(inputs, **arguments)
    else:
        behaviors, scope = kind.get("behaviors", kind), kind.get("scope", "all")
        if "layers" in kind:
            vectors = [sets[name][n].scale(s) for name, s in behaviors.items() for n in kind["layers"]]
            injector = ActivationInjector(model, vectors, injection_mode=scope)
        else:
            chosen = {name: sets[name] for name in behaviors}
            injector = MultiVectorInjector(model, chosen, behaviors, injection_mode=scope)
        with injector:
            output = model.generate(inputs, **arguments)
    tokens = output.sequences[0, inputs.shape[1] :].tolist()
    logits = torch.stack(output.logits)[:, 0].log_softmax(dim=-1)
    return tokens, logits[range(len(tokens)), tokens].tolist()


def test_a_mixed_batch_gives_the_tokens_of_transformers(llm, smollm, sets, prompts):
    kinds = [KINDS[number % len(KINDS)] for number in range(len(prompts))]
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in prompts],
        [greedy(kind, 64, logprobs=0) for kind in kinds],
        use_tqdm=False,
    )
    worst = 0.0
    for ids, kind, output in zip(prompts, kinds, outputs, strict=True):
        tokens, logprobs = in_transformers(smollm, sets, kind, ids, 64)
        found = output.outputs[0]
        assert list(found.token_ids) == tokens, f"{kind}: differ at {_first_difference(found.token_ids, tokens)}"
        theirs = [position[token].logprob for position, token in zip(found.logprobs, tokens, strict=True)]
        worst = max(worst, *(abs(a - b) for a, b in zip(theirs, logprobs, strict=True)))
    print(f"20 prompts, 64 tokens: the same; log-probabilities within {worst:.1e}")
    assert worst < 1e-3


def test_requests_that_arrive_at_random_get_what_each_gets_alone(llm, prompts):
    choice = random.Random(0)
    requests = [(choice.choice(prompts), choice.choice(KINDS[:5])) for _ in range(32)]
    alone = [generate(llm, [ids], greedy(kind))[0] for ids, kind in requests]
    engine, waiting, found = llm.llm_engine, list(enumerate(requests)), {}
    while waiting or engine.has_unfinished_requests():
        for _ in range(min(choice.randint(0, 4), len(waiting))):
            number, (ids, kind) = waiting.pop()
            engine.add_request(str(number), {"prompt_token_ids": ids}, greedy(kind))
        for output in engine.step():
            if output.finished:
                found[int(output.request_id)] = list(output.outputs[0].token_ids)
    assert [found[number] for number in range(32)] == alone
    assert len({tuple(tokens) for tokens in alone}) > 20


@pytest.mark.parametrize("kind", KINDS[1:])
def test_steering_changes_what_is_written(llm, prompts, kind):
    unsteered, steered = generate(llm, [prompts[0]] * 2, [greedy(), greedy(kind)])
    assert steered != unsteered


def _first_difference(a, b):
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
