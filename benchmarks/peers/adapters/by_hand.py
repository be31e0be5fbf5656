"""What a careful expert writes for this one task and this family of models: the yardstick of the benchmark.

Length-sorted, right-padded batches: with causal attention no token sees the padding after it, so no mask is needed and
attention takes its fastest path. No language-model head, no layer after the deepest one wanted, no key-value cache; of
every batch only a sum a side and layer is kept.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

TOKENS_PER_BATCH = 512


class DeepEnough(Exception):  # noqa: N818
    """Ends a forward pass: every layer that is wanted has run."""


@torch.inference_mode()
def extract(model: Any, tokenizer: Any, pairs: list[tuple[str, str]], layers: list[int]) -> dict[int, torch.Tensor]:
    texts = tokenizer([text for pair in pairs for text in pair])["input_ids"]
    sums = torch.zeros(len(model.model.layers), 2, model.config.hidden_size, dtype=torch.float64)
    ends = sides = torch.empty(0)

    def reader(layer: int) -> Any:
        def read(_: Any, __: Any, output: torch.Tensor) -> None:
            sums[layer].index_add_(0, sides, output[torch.arange(len(ends)), ends].double())
            if layer == max(layers):
                raise DeepEnough

        return read

    hooks = [model.model.layers[layer].register_forward_hook(reader(layer)) for layer in layers]
    for batch in batches([len(text) for text in texts]):
        ids = torch.zeros(len(batch), len(texts[batch[0]]), dtype=torch.long)
        for row, index in enumerate(batch):
            ids[row, : len(texts[index])] = torch.tensor(texts[index])
        ends = torch.tensor([len(texts[index]) - 1 for index in batch])
        sides = torch.tensor(batch) % 2
        with suppress(DeepEnough):
            model.model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    means = sums / len(pairs)
    return {layer: (means[layer, 0] - means[layer, 1]).float() for layer in layers}


def batches(lengths: list[int]) -> list[list[int]]:
    """Indices of texts, longest first, as many a batch as fill it with padding."""
    found: list[list[int]] = [[]]
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if found[-1] and (len(found[-1]) + 1) * lengths[found[-1][0]] > TOKENS_PER_BATCH:
            found.append([])
        found[-1].append(index)
    return found
