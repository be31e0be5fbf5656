"""Which blocks of two requests are told apart. What it does to an engine, `live/test_prefix_cache.py` shows."""

from types import SimpleNamespace

import pytest

from rotalabs_steer.engines.vllm.prefix_cache import with_steering_keys
from rotalabs_steer.engines.vllm.steering import EXTRA_ARG, Addition, Steering

BLOCK = 16
LORA = (("lora", "adapter"),)


def keys(scope, prompt_tokens=40, blocks=4, strength=1.0, others=None):
    """The extra keys of each block of a request."""
    extra = None if scope is None else {EXTRA_ARG: Steering((Addition(3, "a", "d", strength),), scope).document()}
    request = SimpleNamespace(sampling_params=SimpleNamespace(extra_args=extra), num_prompt_tokens=prompt_tokens)
    generate = with_steering_keys(lambda request, start, stop, mm: (others, mm + 1))
    found = [generate(request, BLOCK * n, BLOCK * (n + 1), 0) for n in range(blocks)]
    assert all(next_mm == 1 for _, next_mm in found)
    return [key for key, _ in found]


def test_unsteered_blocks_keep_vllms_keys():
    assert keys(None) == [None] * 4
    assert keys(None, others=LORA) == [LORA] * 4
    assert keys("generated")[:2] == [None, None]
    assert keys("prompt")[3] is None
    assert keys("first")[1:] == [None] * 3


def test_steered_blocks_keep_them_too():
    assert all(key[:1] == LORA and len(key) == 2 for key in keys("all", others=LORA))


def test_blocks_are_told_apart_by_what_is_steered_in_them():
    assert keys("all")[:2] == keys("prompt")[:2]
    assert keys("all")[3] == keys("generated")[3]
    assert len({keys("all")[2], keys("prompt")[2], keys("generated")[2], keys("prompt", 41)[2]}) == 4
    assert keys("all")[0] != keys("all", strength=2.0)[0]


@pytest.mark.parametrize("scope", ["last", "generated"])
def test_the_last_prompt_token_is_steered(scope):
    assert keys(scope, prompt_tokens=33)[1:3] == [None, keys("all")[2]]
    first, second, *rest = keys(scope, prompt_tokens=32)
    assert (first, rest) == (None, keys("all")[2:])
    assert second not in (None, keys("all")[1]), "one token of the block is steered, not all of them"


def test_pooling_requests_have_no_steering():
    generate = with_steering_keys(lambda request, start, stop, mm: (None, mm))
    assert generate(SimpleNamespace(sampling_params=None, num_prompt_tokens=4), 0, 4, 0) == (None, 0)
