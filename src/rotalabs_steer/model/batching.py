"""Texts as batches of model input, planned so that the model computes as few tokens as it can.

Texts share a row as a tree of prefixes (see `prefix_sharing`) where that is cheaper and the model allows it. Recurrent
models, and attention that takes no mask of ours, do not; a probe of the model decides. All other rows hold one text
each, padded on the right.
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from rotalabs_steer.model.decoder import decoder_layers, hidden_size, input_device, text_config, transformers_model
from rotalabs_steer.model.digest import adapters_of
from rotalabs_steer.model.inference import INPUT_ERRORS, layer_output
from rotalabs_steer.model.layer_outputs import ResidualLayout, first_tensor
from rotalabs_steer.model.prefix_sharing import PrefixTree, group_into_trees, tree_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float, Int

_TOKENS_PER_BATCH = 512
"""Enough to keep two processor cores at their peak; a GPU with free memory takes more."""

_MOST_TOKENS_PER_BATCH = 16_384
_SHARE_OF_FREE_MEMORY = 0.25
_ACTIVATIONS_PER_TOKEN = 64  # hidden states' worth of memory that one token takes while a layer runs, generously

_PROBE_TOLERANCE = 1e-3
# In bfloat16, the order of a sum alone changes a token's activations by one or two per cent.
_PROBE_TOLERANCE_OF_HALF = 5e-2


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Some texts as one model input.

    Attributes:
        texts: indices of the texts in this batch.
        inputs: keyword arguments for the model; `input_ids` is `[rows, columns]`.
        slots: for each text, the places of its tokens in the flattened `[rows * columns]` of the input.
    """

    texts: list[int]
    inputs: dict[str, Any]
    slots: list[Int[torch.Tensor, " seq"]]

    def weights(self, token_weights: Sequence[Float[torch.Tensor, " seq"]]) -> Float[torch.Tensor, "texts slots"]:
        """The matrix that turns flattened activations into one weighted sum for each text, from its tokens' weights."""
        matrix = torch.zeros(len(self.texts), self.inputs["input_ids"].numel())
        for row, (weights, slots) in enumerate(zip(token_weights, self.slots, strict=True)):
            matrix[row, slots] = weights
        return matrix


@dataclass(frozen=True)
class BatchPlan:
    """Which texts go together: batches of rows of text indices. The texts of one row form a prefix tree.

    Attributes:
        tokens: number of tokens that the model computes, padding included.
        attended: number of tokens that these attend to, in all.
        one_by_one: whether each row is a call of its own, for a model whose results padding changes.
    """

    batches: list[list[list[int]]]
    tokens: int
    attended: int
    one_by_one: bool = False

    def calls(self, rows: list[list[int]]) -> list[list[list[int]]]:
        """The rows of each call for a batch."""
        return [[row] for row in rows] if self.one_by_one else [rows]


def plan_batches(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    batch_size: int | None = None,
    *,
    share_prefixes: bool = True,
    together: int = 1,
) -> BatchPlan:
    """The cheapest way to run the model over texts (rows of token ids).

    Args:
        batch_size: maximum number of texts in a batch; None for as many as make about 500 tokens, more on a GPU with
            free memory.
        share_prefixes: compute shared prefixes once where the model allows it. Not for use with interventions on some
            tokens of a sequence only, because a tree is not a sequence.
        together: so many successive texts stay in one batch, such as the two sides of a pair.
    """
    budget = _token_budget(model)
    units = [list(range(start, start + together)) for start in range(0, len(texts), together)]
    by_length = sorted(units, key=lambda unit: -max(len(texts[i]) for i in unit))
    padded = _cut([([[i] for i in unit], max(len(texts[i]) for i in unit)) for unit in by_length], budget, batch_size)
    if not _exact_batches(model).padded:
        return replace(padded, one_by_one=True)
    if not (share_prefixes and can_share_prefixes(model, max(len(text) for text in texts))):
        return padded
    # In one layer, computing a token takes about one multiplication a parameter, and attending to one more token takes
    # two a dimension: one for the score and one for the weighted sum.
    parameters = sum(weight.numel() for weight in decoder_layers(model)[0].parameters())
    attention_cost = 2 * hidden_size(model) / max(parameters, 1)
    groups = sorted(group_into_trees(texts, units, batch_size, attention_cost), key=lambda group: -group[1])
    shared = _cut([([row], size) for row, size in groups], budget, batch_size)
    return min(shared, padded, key=lambda plan: plan.tokens + attention_cost * plan.attended)


def text_batches(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    batch_size: int | None = None,
    *,
    share_prefixes: bool = True,
) -> Iterator[TextBatch]:
    """The texts in batches for this model; see `plan_batches`."""
    plan = plan_batches(model, texts, batch_size, share_prefixes=share_prefixes)
    for rows in itertools.chain.from_iterable(map(plan.calls, plan.batches)):
        yield make_batch(model, rows, texts)


def make_batch(model: nn.Module, rows: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> TextBatch:
    """The model input for rows of text indices."""
    if all(len(row) == 1 for row in rows):
        return padded_batch(model, [index for (index,) in rows], texts)
    return shared_batch(model, rows, texts)


def padded_batch(model: nn.Module, indices: list[int], texts: Sequence[Sequence[int]]) -> TextBatch:
    """A batch with one text a row, padded on the right, where every model counts positions correctly by itself."""
    rows = [torch.tensor(texts[index], dtype=torch.long) for index in indices]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    slots = [torch.arange(len(row)) + number * ids.shape[1] for number, row in enumerate(rows)]
    return TextBatch(indices, _inputs(model, {"input_ids": ids, "attention_mask": mask}), slots)


def shared_batch(model: nn.Module, rows: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> TextBatch:
    """A batch whose rows hold the tree of several texts' prefixes each, padded on the right."""
    trees = [PrefixTree(texts[index] for index in row) for row in rows]
    ids, positions, sees = tree_tensors(trees)
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)
    inputs = _inputs(model, {"input_ids": ids, "attention_mask": mask[:, None], "position_ids": positions})
    slots = [torch.tensor(path) + row * ids.shape[1] for row, tree in enumerate(trees) for path in tree.paths]
    return TextBatch([index for row in rows for index in row], inputs, slots)


def can_share_prefixes(model: nn.Module, longest: int) -> bool:
    """Whether a shared batch gives this model's own results, for texts of up to `longest` tokens."""
    window = getattr(text_config(transformers_model(model)), "sliding_window", None)
    # The mask of a tree lets tokens see their whole prefix, so no text may be longer than a sliding window.
    return not (isinstance(window, int) and longest > window) and _exact_batches(model).shared


class _ExactBatches(NamedTuple):
    """The kinds of batches in which a model computes for every text what it computes for the text alone."""

    padded: bool
    shared: bool


_EXACT_BATCHES: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], _ExactBatches]] = weakref.WeakKeyDictionary()


def _exact_batches(model: nn.Module) -> _ExactBatches:
    """Found by running the model, once for each attention implementation, dtype and set of adapters."""
    inner = transformers_model(model)
    attention = getattr(text_config(inner), "_attn_implementation", None)
    state = (attention, next(model.parameters()).dtype, adapters_of(inner))
    known = _EXACT_BATCHES.setdefault(inner, {})
    if state not in known:
        texts = probe_texts(model)
        alone = _last_hidden(model, padded_batch(model, [1], texts))
        padded = _agree(alone, model, lambda: padded_batch(model, [0, 1], texts))
        # Other attention implementations take no mask of ours, and encoders have a sequence of their own.
        takes_trees = (
            attention in ("sdpa", "eager")
            and {"position_ids", "attention_mask"} <= inspect.signature(inner.forward).parameters.keys()
            and not getattr(inner.config, "is_encoder_decoder", False)
        )
        shared = padded and takes_trees and _agree(alone, model, lambda: shared_batch(model, [[0, 1]], texts))
        known[state] = _ExactBatches(padded, shared)
    return known[state]


def probe_texts(model: nn.Module) -> tuple[list[int], list[int]]:
    """Two short texts with a common prefix, used to probe which batches a model supports.

    Their tokens come from all over the vocabulary. The first is much longer, so that the second changes clearly in a
    model that lets it see the first.
    """
    embeddings: Any = transformers_model(model).get_input_embeddings()  # type: ignore[operator]
    size = getattr(embeddings, "num_embeddings", None) or text_config(transformers_model(model)).vocab_size
    ids = [size * number // 20 for number in range(1, 20)]
    return ids[:16], [*ids[:3], *ids[16:]]


def _agree(alone: torch.Tensor, model: nn.Module, make: Callable[[], TextBatch]) -> bool:
    """Whether every token of the last text of a batch has the same activations as in the text alone."""
    try:
        found = _last_hidden(model, make())
    except INPUT_ERRORS:
        return False
    if found.shape != alone.shape:
        return False
    half = next(model.parameters()).dtype in (torch.float16, torch.bfloat16)
    # Compared token by token: trained models have tokens whose activations are a thousand times larger than others.
    allowed = (_PROBE_TOLERANCE_OF_HALF if half else _PROBE_TOLERANCE) * alone.norm(dim=-1)
    return bool(((found - alone).norm(dim=-1) <= allowed).all())  # False, too, where anything is not a number


def _last_hidden(model: nn.Module, batch: TextBatch) -> Float[torch.Tensor, "seq hidden"]:
    """What the last layer returns for the last text of a batch."""
    output = layer_output(model, -1, batch.inputs)
    hidden = ResidualLayout.of(model).tokens(first_tensor(output), *batch.inputs["input_ids"].shape).float()
    return hidden.flatten(0, 1)[batch.slots[-1].to(hidden.device)]


def _cut(units: Sequence[tuple[list[list[int]], int]], budget: int, batch_size: int | None) -> BatchPlan:
    """Cuts units into batches of at most `budget` tokens and `batch_size` texts.

    Args:
        units: rows that stay together, and the length of the longest; the longest unit first, so that the first unit of
            a batch says how many columns the batch has.
    """
    batches: list[list[list[int]]] = []
    tokens = attended = columns = texts_in_batch = 0
    for rows, length in units:
        count = sum(len(row) for row in rows)
        is_full = batch_size is not None and texts_in_batch + count > batch_size
        if not batches or is_full or (len(batches[-1]) + len(rows)) * columns > budget:
            batches.append([])
            columns, texts_in_batch = length, 0
        batches[-1].extend(rows)
        tokens += len(rows) * columns
        attended += len(rows) * columns**2
        texts_in_batch += count
    return BatchPlan(batches, tokens, attended)


def _token_budget(model: nn.Module) -> int:
    device = input_device(model)
    if device.type != "cuda":
        return _TOKENS_PER_BATCH
    free, _ = torch.cuda.mem_get_info(device)
    size = hidden_size(model) * next(model.parameters()).element_size() * _ACTIVATIONS_PER_TOKEN
    return min(max(int(free * _SHARE_OF_FREE_MEMORY) // size, _TOKENS_PER_BATCH), _MOST_TOKENS_PER_BATCH)


def _inputs(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    device = input_device(model)
    accepted = inspect.signature(transformers_model(model).forward).parameters
    inputs = {name: tensor.to(device) for name, tensor in tensors.items()} | {"use_cache": False}
    return {name: value for name, value in inputs.items() if name in accepted or name == "input_ids"}
