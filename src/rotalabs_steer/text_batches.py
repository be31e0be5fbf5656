"""Texts as batches of model inputs, in which tokens that texts share from their beginning appear once.

The two sides of a contrast pair share their prompt, all pairs share the system message, and the options of a
multiple-choice question differ in one token. A shared batch holds the tree of all beginnings in a single row; an
attention mask lets every token see its own ancestors only, and its position is its depth. So the model computes
each distinct token once, with the same result as text by text. Models for which that is not so (recurrent ones, or
attention that takes no such mask) get right-padded rows instead; a probe of the model decides.
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.decoder import decoder_layers, text_config, transformers_model
from rotalabs_steer.layer_outputs import ResidualLayout, first_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float, Int
    from torch import nn

TOKENS_PER_SHARED_BATCH = 512
TOKENS_PER_PADDED_BATCH = 1024
"""A shared batch attends over all its tokens, so it stays shorter."""

_SHARING: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
_PROBE_TOLERANCE = 1e-2


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Some texts as one model input.

    Attributes:
        texts: indices of the texts in this batch.
        inputs: keyword arguments for the model; `input_ids` is `[rows, columns]`.
        slots: for each text, where its tokens stand in the flattened `[rows * columns]` of the input.
    """

    texts: list[int]
    inputs: dict[str, Any]
    slots: list[Int[torch.Tensor, " seq"]]

    def weights(self, token_weights: Sequence[Float[torch.Tensor, " seq"]]) -> Float[torch.Tensor, "texts slots"]:
        """The matrix that turns flattened activations into one weighted sum a text."""
        matrix = torch.zeros(len(self.texts), self.inputs["input_ids"].numel())
        for row, (text, slots) in enumerate(zip(self.texts, self.slots, strict=True)):
            matrix[row, slots] = token_weights[text]
        return matrix


def text_batches(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    batch_size: int | None = None,
    *,
    share_prefixes: bool = True,
) -> Iterator[TextBatch]:
    """The texts (rows of token ids) in batches for this model.

    Args:
        batch_size: most texts a batch; None for as many as make 500 to 1,000 tokens.
        share_prefixes: compute shared beginnings once where the model allows it. Not for use with interventions whose
            scope is part of a sequence: a shared row is no sequence.
    """
    share = share_prefixes and can_share_prefixes(model, max(len(text) for text in texts))
    order = sorted(range(len(texts)), key=lambda i: tuple(texts[i]) if share else -len(texts[i]))
    cost, limit = (_tree_size, TOKENS_PER_SHARED_BATCH) if share else (_padded_size, TOKENS_PER_PADDED_BATCH)
    batch: list[int] = []
    for index in order:
        candidate = [*batch, index]
        full = len(batch) == batch_size if batch_size else cost([texts[i] for i in candidate]) > limit
        if batch and full:
            yield _make_batch(model, batch, texts, share)
            candidate = [index]
        batch = candidate
    if batch:
        yield _make_batch(model, batch, texts, share)


def can_share_prefixes(model: nn.Module, longest: int) -> bool:
    """Whether a shared batch gives this model's own results, for texts of up to `longest` tokens."""
    inner = transformers_model(model)
    config = text_config(inner)
    window = getattr(config, "sliding_window", None)
    if isinstance(window, int) and longest > window:
        return False
    if inner not in _SHARING:
        attention = getattr(config, "_attn_implementation", None)
        accepted = inspect.signature(inner.forward).parameters
        takes_tree = attention in ("sdpa", "eager") and "position_ids" in accepted and "attention_mask" in accepted
        _SHARING[inner] = takes_tree and not getattr(inner.config, "is_encoder_decoder", False) and _probe(model)
    return _SHARING[inner]


def padded_batch(model: nn.Module, indices: list[int], texts: Sequence[Sequence[int]]) -> TextBatch:
    """One row a text, padded on the right. Positions are always passed: absolute ones are wrong without."""
    rows = [texts[index] for index in indices]
    length = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    slots = [torch.arange(len(row)) + number * length for number, row in enumerate(rows)]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return TextBatch(indices, _inputs(model, ids, mask, positions), slots)


def shared_batch(model: nn.Module, indices: list[int], texts: Sequence[Sequence[int]]) -> TextBatch:
    """One row with the tree of the texts' beginnings."""
    ids: list[int] = []
    parents: list[int] = []
    children: dict[tuple[int, int], int] = {}
    paths = []
    for index in indices:
        node, path = -1, []
        for token in texts[index]:
            if (node, token) not in children:
                children[node, token] = len(ids)
                ids.append(token)
                parents.append(node)
            node = children[node, token]
            path.append(node)
        paths.append(torch.tensor(path))
    sees = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    depths = torch.zeros(len(ids), dtype=torch.long)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node] = sees[parent]
            depths[node] = depths[parent] + 1
        sees[node, node] = True
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)
    inputs = _inputs(model, torch.tensor([ids]), mask[None, None], depths[None])
    return TextBatch(indices, inputs, paths)


def _make_batch(model: nn.Module, indices: list[int], texts: Sequence[Sequence[int]], share: bool) -> TextBatch:
    return (shared_batch if share else padded_batch)(model, indices, texts)


def _inputs(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> dict[str, Any]:
    device = next(model.parameters()).device
    accepted = inspect.signature(transformers_model(model).forward).parameters
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "use_cache": False}
    if "position_ids" in accepted:
        inputs["position_ids"] = positions.to(device)
    return {name: value for name, value in inputs.items() if name in accepted or name == "input_ids"}


def _probe(model: nn.Module) -> bool:
    """Runs two texts with a shared beginning both ways and compares the last layer's output."""
    texts = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 6, 5]]
    try:
        separate, shared = (_last_hidden(model, make(model, [0, 1], texts)) for make in (padded_batch, shared_batch))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False  # a model that cannot take such a mask says so in its own way
    scale = max(float(row.abs().max()) for row in separate)
    differences = [float((a - b).abs().max()) for a, b in zip(separate, shared, strict=True)]
    return max(differences) <= _PROBE_TOLERANCE * scale  # False, too, where anything is not a number


def _last_hidden(model: nn.Module, batch: TextBatch) -> list[torch.Tensor]:
    found: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output)

    handle = decoder_layers(model)[-1].register_forward_hook(keep)
    try:
        with torch.inference_mode():
            model(**batch.inputs)
    finally:
        handle.remove()
    hidden = ResidualLayout.of(model).tokens(first_tensor(found[0]), batch.inputs["input_ids"].shape[1]).float()
    return [hidden.reshape(-1, hidden.shape[-1])[slots] for slots in batch.slots]


def _tree_size(texts: Sequence[Sequence[int]]) -> int:
    """Nodes of the tree of beginnings. Sorted texts share most with their neighbour."""
    size = len(texts[0])
    for before, text in itertools.pairwise(texts):
        shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, text, strict=False))
        size += len(text) - sum(1 for _ in shared)
    return size


def _padded_size(texts: Sequence[Sequence[int]]) -> int:
    return len(texts) * max(len(text) for text in texts)
