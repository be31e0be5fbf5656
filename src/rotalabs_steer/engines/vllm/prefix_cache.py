"""Makes vLLM's prefix cache tell apart blocks that were computed under different steering.

vLLM identifies a block of the KV cache by a hash of its tokens, of all tokens before it, and of extra keys. The
steering that acts inside a block becomes one of its extra keys. Requests with the same steering therefore share all
blocks, and a request that is steered only while it generates shares the blocks of its prompt with unsteered requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rotalabs_steer.engines.vllm.steering import steering_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from rotalabs_steer.engines.vllm.steering import Steering

    ExtraKeys = tuple[tuple[Any, ...] | None, int]


def with_steering_keys(
    generate: Callable[[Any, int, int, int], ExtraKeys],
) -> Callable[[Any, int, int, int], ExtraKeys]:
    """vLLM's `generate_block_hash_extra_keys`, with one more key for the steering that acts in the block."""

    def generate_with_steering(request: Any, start: int, stop: int, start_mm_idx: int) -> ExtraKeys:
        keys, next_mm_idx = generate(request, start, stop, start_mm_idx)
        if not hasattr(request, "_rotalabs_steering"):
            request._rotalabs_steering = steering_of(request.sampling_params)
        steering: Steering | None = request._rotalabs_steering
        if steering is not None:
            begin, end = steering.covered(request.num_prompt_tokens, start, stop)
            if begin < end:
                # The covered part is a key as well: with scope "prompt", a block may be steered in its first half only.
                keys = (*(keys or ()), ("rotalabs_steer", steering.key, begin - start, end - start))
        return keys, next_mm_idx

    return generate_with_steering
