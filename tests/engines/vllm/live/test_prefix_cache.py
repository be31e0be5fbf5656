"""Prefix caching stays on: each request is answered as by a fresh engine, and shares what it may."""

import pytest

from engines.vllm.live.conftest import PROMPTS, greedy

WARM = {"behaviors": {"warm": 1.0}}
COOL = {"behaviors": {"cool": 1.5}}


@pytest.fixture(scope="module")
def long_prompt(tokenizer):
    """A few blocks of 128 tokens."""
    content = " ".join(PROMPTS * 2)
    chat = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)


def ask(llm, ids, kind):
    """The tokens, and how many of the prompt's came from the cache."""
    (output,) = llm.generate([{"prompt_token_ids": ids}], [greedy(kind, 12)], use_tqdm=False)
    return list(output.outputs[0].token_ids), output.num_cached_tokens


@pytest.fixture
def fresh(llm, long_prompt):
    """What each kind gives on an empty cache."""
    found = {}
    for kind in (None, WARM, COOL, WARM | {"scope": "generated"}, WARM | {"scope": "prompt"}):
        llm.reset_prefix_cache()
        found[str(kind)], cached = ask(llm, long_prompt, kind)
        assert cached == 0
    llm.reset_prefix_cache()
    assert len({tuple(tokens) for tokens in found.values()}) == len(found)
    return found


def test_unsteered_and_steered_share_nothing(llm, long_prompt, fresh):
    for kind, shares in ((None, False), (WARM, False), (None, True), (COOL, False), (WARM, True), (None, True)):
        tokens, cached = ask(llm, long_prompt, kind)
        assert tokens == fresh[str(kind)]
        assert (cached > 0) == shares, kind


def test_steering_of_the_answer_shares_the_prompt_of_unsteered_requests(llm, long_prompt, fresh):
    generated, prompt = WARM | {"scope": "generated"}, WARM | {"scope": "prompt"}
    for kind, shares in ((None, False), (generated, True), (None, True), (prompt, False), (WARM, True), (prompt, True)):
        tokens, cached = ask(llm, long_prompt, kind)
        assert tokens == fresh[str(kind)]
        assert (cached > 0) == shares, kind


def test_a_zero_strength_is_an_unsteered_request(llm, long_prompt, fresh):
    assert ask(llm, long_prompt, None) == (fresh["None"], 0)
    tokens, cached = ask(llm, long_prompt, {"warm": 0.0})
    assert tokens == fresh["None"]
    assert cached > 0
