"""Texts as batches of model inputs, in which tokens that texts share from their beginning appear once.

The two sides of a contrast pair share their prompt, all pairs share the system message, and the options of a
multiple-choice question differ in one token. A row of a shared batch holds the tree of some texts' beginnings; an
attention mask lets every token see its own ancestors only, and its position is its depth. So the model computes
each distinct token once, with the same result as text by text. Models for which that is not so (recurrent ones, or
attention that takes no such mask) get right-padded rows instead; a probe of the model decides. Where texts share too
little to pay for the mask, rows are padded, too.
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.model.decoder import decoder_layers, hidden_size, input_device, text_config, transformers_model
from rotalabs_steer.model.digest import adapters_of
from rotalabs_steer.model.layer_outputs import ResidualLayout, first_tensor, probing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float, Int
    from torch import nn

TOKENS_PER_BATCH = 512
"""Enough to keep two processor cores at their peak; a GPU with free memory takes more."""

_TOKENS_PER_TREE = 256  # up to here, attending to one another costs a tree's tokens less than padding would
_MOST_TOKENS_PER_TREE = 4_096  # the mask of a tree has a number for every two of its tokens
_MOST_TOKENS = 16_384
_SHARE_OF_FREE_MEMORY = 0.25
_ACTIVATIONS_PER_TOKEN = 64  # hidden states' worth of memory that one token takes while a layer runs, generously

_PROBE_TOLERANCE = 1e-3
_PROBE_TOLERANCE_OF_HALF = (
    5e-2  # in bfloat16 the order of a sum alone moves a token's activations by one or two per cent
)


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
        """The matrix that turns flattened activations into one weighted sum a text, from weights for its tokens."""
        matrix = torch.zeros(len(self.texts), self.inputs["input_ids"].numel())
        for row, (weights, slots) in enumerate(zip(token_weights, self.slots, strict=True)):
            matrix[row, slots] = weights
        return matrix


@dataclass(frozen=True)
class BatchPlan:
    """Which texts go together: batches of rows of text indices. A row with several texts is a tree.

    Attributes:
        tokens: how many the model will compute, padding included.
        attended: how many tokens these attend to, in all.
        one_by_one: each row of a batch is a call of its own, for a model whose results padding changes.
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
        batch_size: most texts a batch; None for as many as make about 500 tokens, more on a roomy GPU.
        share_prefixes: compute shared beginnings once where the model allows it. Not for use with interventions whose
            scope is part of a sequence: a tree is no sequence.
        together: runs of this many texts stay in one batch.
    """
    budget = _token_budget(model)
    units = [list(range(start, start + together)) for start in range(0, len(texts), together)]
    by_length = sorted(units, key=lambda unit: -max(len(texts[i]) for i in unit))
    padded = _cut([([[i] for i in unit], max(len(texts[i]) for i in unit)) for unit in by_length], budget, batch_size)
    if not _Batching.of(model).pads:
        return replace(padded, one_by_one=True)
    if not (share_prefixes and can_share_prefixes(model, max(len(text) for text in texts))):
        return padded
    parameters = sum(weight.numel() for weight in decoder_layers(model)[0].parameters())
    attending = 2 * hidden_size(model) / max(parameters, 1)  # to one more token costs so much of computing a token
    trees = sorted(_trees(texts, units, batch_size, attending), key=lambda tree: -tree[1])
    shared = _cut([([row], size) for row, size in trees], budget, batch_size)
    return min(shared, padded, key=lambda plan: plan.tokens + attending * plan.attended)


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
    """Rows of text indices as model input."""
    if all(len(row) == 1 for row in rows):
        return padded_batch(model, [index for (index,) in rows], texts)
    return shared_batch(model, rows, texts)


def padded_batch(model: nn.Module, indices: list[int], texts: Sequence[Sequence[int]]) -> TextBatch:
    """One row a text, padded on the right, where every model counts positions rightly by itself."""
    rows = [texts[index] for index in indices]
    length = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    slots = [torch.arange(len(row)) + number * length for number, row in enumerate(rows)]
    return TextBatch(indices, _inputs(model, {"input_ids": ids, "attention_mask": mask}), slots)


def shared_batch(model: nn.Module, rows: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> TextBatch:
    """One row a tree of its texts' beginnings, padded on the right."""
    trees = [_Tree.of([texts[index] for index in row]) for row in rows]
    length = max(len(tree.ids) for tree in trees)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    sees = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself: no row may see nothing
    slots = []
    for number, tree in enumerate(trees):
        size = len(tree.ids)
        ids[number, :size] = torch.tensor(tree.ids)
        for path in tree.paths:
            nodes = torch.tensor(path)
            positions[number, nodes] = torch.arange(len(path))
            sees[number][nodes[:, None], nodes] = torch.ones(len(path), len(path), dtype=torch.bool).tril()
            slots.append(nodes + number * length)
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)
    inputs = _inputs(model, {"input_ids": ids, "attention_mask": mask[:, None], "position_ids": positions})
    return TextBatch([index for row in rows for index in row], inputs, slots)


def can_share_prefixes(model: nn.Module, longest: int) -> bool:
    """Whether a shared batch gives this model's own results, for texts of up to `longest` tokens."""
    window = getattr(text_config(transformers_model(model)), "sliding_window", None)
    return not (isinstance(window, int) and longest > window) and _Batching.of(model).shares


@dataclass(frozen=True)
class _Batching:
    """What a model gives its own results for: padded rows, and trees of texts.

    Probed once for each attention implementation, dtype and set of adapters.
    """

    pads: bool
    shares: bool

    @classmethod
    def of(cls, model: nn.Module) -> _Batching:
        inner = transformers_model(model)
        attention = getattr(text_config(inner), "_attn_implementation", None)
        state = (attention, next(model.parameters()).dtype, adapters_of(inner))
        known = _PROBED.setdefault(inner, {})
        if state not in known:
            texts = probe_texts(model)
            alone = _last_hidden(model, padded_batch(model, [1], texts))
            pads = _agree(alone, model, lambda: padded_batch(model, [0, 1], texts))
            shares = pads and _takes_trees(inner) and _agree(alone, model, lambda: shared_batch(model, [[0, 1]], texts))
            known[state] = cls(pads, shares)
        return known[state]


def probe_texts(model: nn.Module) -> tuple[list[int], list[int]]:
    """Two short texts that begin alike, to find out by what a model can do: tokens from all over its vocabulary.

    The first is much longer, so that a model which lets the second see it gives itself away.
    """
    embeddings: Any = transformers_model(model).get_input_embeddings()  # type: ignore[operator]
    size = getattr(embeddings, "num_embeddings", None) or text_config(transformers_model(model)).vocab_size
    ids = [size * number // 20 for number in range(1, 20)]
    return ids[:16], [*ids[:3], *ids[16:]]


def _takes_trees(inner: nn.Module) -> bool:
    """Whether a model's code could work with a tree: a mask and positions of ours, and no encoder."""
    accepted = inspect.signature(inner.forward).parameters
    attention = getattr(text_config(inner), "_attn_implementation", None)
    encodes = getattr(inner.config, "is_encoder_decoder", False)
    return attention in ("sdpa", "eager") and {"position_ids", "attention_mask"} <= set(accepted) and not encodes


def _agree(alone: torch.Tensor, model: nn.Module, make: Callable[[], TextBatch]) -> bool:
    """Whether every token of the last text of a batch, behind another in its tree, comes out as it does alone."""
    try:
        found = _last_hidden(model, make())
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError, ImportError):
        return False  # a model that cannot take such input says so in its own way
    if found.shape != alone.shape:
        return False
    half = next(model.parameters()).dtype in (torch.float16, torch.bfloat16)
    allowed = (_PROBE_TOLERANCE_OF_HALF if half else _PROBE_TOLERANCE) * alone.norm(dim=-1)
    return bool(((found - alone).norm(dim=-1) <= allowed).all())  # False, too, where anything is not a number


_PROBED: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], _Batching]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class _Tree:
    """Distinct beginnings of some texts: a token id a node, and each text's path of nodes from the root."""

    ids: list[int]
    paths: list[list[int]]

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> _Tree:
        ids: list[int] = []
        children: dict[tuple[int, int], int] = {}
        paths = []
        for text in texts:
            node, path = -1, []
            for token in text:
                node = children.setdefault((node, token), len(ids))
                if node == len(ids):
                    ids.append(token)
                path.append(node)
            paths.append(path)
        return cls(ids, paths)


def _trees(
    texts: Sequence[Sequence[int]], units: Sequence[list[int]], batch_size: int | None, attending: float
) -> list[tuple[list[int], int]]:
    """Units of texts as trees, each with its size. Neighbours in order share most.

    All tokens of a tree attend to one another under its mask, so a large one grows while what is shared outweighs that.
    """
    trees: list[tuple[list[int], int]] = []
    row: list[int] = []
    size = 0
    for unit in sorted(units, key=lambda unit: [texts[index] for index in unit]):
        grown, alone = size + _growth(texts, row, unit), _growth(texts, [], unit)
        apart = size + alone + attending * (size**2 + alone**2)
        dearer = grown > _TOKENS_PER_TREE and grown + attending * grown**2 > apart
        too_many = batch_size is not None and len(row) + len(unit) > batch_size
        if row and (dearer or grown > _MOST_TOKENS_PER_TREE or too_many):
            trees.append((row, size))
            row, grown = [], alone
        row, size = [*row, *unit], grown
    return [*trees, (row, size)]


def _growth(texts: Sequence[Sequence[int]], row: Sequence[int], unit: Sequence[int]) -> int:
    """By how many nodes a tree grows at most. Each text is compared with the few before it: sorted texts are alike."""
    added, before = 0, list(row[-len(unit) :])
    for index in unit:
        shared = max((_common(texts[other], texts[index]) for other in before), default=0)
        added += len(texts[index]) - shared
        before.append(index)
    return added


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _cut(items: Sequence[tuple[list[list[int]], int]], budget: int, batch_size: int | None) -> BatchPlan:
    """Rows and their length, longest first, cut into batches of at most `budget` tokens and `batch_size` texts."""
    batches: list[list[list[int]]] = []
    tokens = attended = columns = in_batch = 0
    for rows, length in items:
        count = sum(len(row) for row in rows)
        too_many = batch_size is not None and in_batch + count > batch_size
        if not batches or too_many or (len(batches[-1]) + len(rows)) * columns > budget:
            batches.append([])
            columns, in_batch = length, 0
        batches[-1].extend(rows)
        tokens += len(rows) * columns
        attended += len(rows) * columns**2
        in_batch += count
    return BatchPlan(batches, tokens, attended)


def _token_budget(model: nn.Module) -> int:
    device = input_device(model)
    if device.type != "cuda":
        return TOKENS_PER_BATCH
    free, _ = torch.cuda.mem_get_info(device)
    size = hidden_size(model) * next(model.parameters()).element_size() * _ACTIVATIONS_PER_TOKEN
    return min(max(int(free * _SHARE_OF_FREE_MEMORY) // size, TOKENS_PER_BATCH), _MOST_TOKENS)


def _inputs(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    device = input_device(model)
    accepted = inspect.signature(transformers_model(model).forward).parameters
    inputs = {name: tensor.to(device) for name, tensor in tensors.items()} | {"use_cache": False}
    return {name: value for name, value in inputs.items() if name in accepted or name == "input_ids"}


def _last_hidden(model: nn.Module, batch: TextBatch) -> Float[torch.Tensor, "seq hidden"]:
    """What the last layer returns for the last text of a batch."""
    found: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output)

    handle = decoder_layers(model)[-1].register_forward_hook(keep)
    try:
        with probing(model):
            transformers_model(model)(**batch.inputs)
    finally:
        handle.remove()
    hidden = ResidualLayout.of(model).tokens(first_tensor(found[0]), *batch.inputs["input_ids"].shape).float()
    return hidden.reshape(-1, hidden.shape[-1])[batch.slots[-1].to(hidden.device)]
