"""The effect of an addition at a layer, to first order: its gain by gradient, its cost by Fisher information.

With δ added to a layer's output at every position, the mean log-odds of contrast pairs change by gᵀδ, and predictions
on neutral text move by a KL of ½ δᵀFδ per token. One backward pass gives both for all layers.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from rotalabs_steer.errors import ActivationError
from rotalabs_steer.extraction.pair_texts import check_scorable, side_name, sides_of
from rotalabs_steer.model.batching import TextBatch, text_batches
from rotalabs_steer.model.decoder import decoder_layers, hidden_size, transformers_model
from rotalabs_steer.model.inference import evaluating
from rotalabs_steer.model.layer_outputs import ResidualLayout, first_tensor, with_first_tensor
from rotalabs_steer.steering.plain_model import unsteered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from jaxtyping import Float
    from torch import nn

    from rotalabs_steer.datasets.rendering import RenderedPair

_MOST_PROBE_TOKENS = 32
_HINT = "Load the model in float32 or bfloat16 (float16 overflows on some models)."


def pair_gradients(
    model: nn.Module,
    pairs: Sequence[RenderedPair],
    layer_indices: Sequence[int],
    *,
    at: Mapping[int, Float[torch.Tensor, " hidden"]] | None = None,
    first_tokens: int | None = None,
    show_progress: bool = False,
) -> Float[torch.Tensor, "layers pairs hidden"]:
    """Gradient of each pair's log-odds with respect to one vector added at all positions of each layer's output.

    The log-odds of a pair are the mean log-probability of a token of the positive response minus that of the negative.

    Args:
        at: for each layer, the vector that is added where the gradient is taken; by default nothing is added.
        first_tokens: how many tokens of each response count, from its beginning; by default all of them.

    Raises:
        DatasetError: a side has no token of a response to score; the model has not run.
        ActivationError: a gradient is not finite; pair and layer are named.
    """
    texts = sides_of(pairs)
    check_scorable(texts, side_name)
    starts = [max(text.response_start, 1) for text in texts]
    ids = [text.ids[: start + (first_tokens or len(text.ids))] for text, start in zip(texts, starts, strict=True)]
    gradients = torch.zeros(len(layer_indices), len(texts), hidden_size(model))
    with (
        unsteered(model),
        evaluating(model, gradients=True),
        tqdm(total=len(ids), unit="text", desc="gradients", disable=not show_progress, leave=False) as progress,
    ):
        for batch in text_batches(model, ids, share_prefixes=False):
            with _additions(model, batch, layer_indices, at) as additions:
                log_probs = _log_probs(model, batch)
                total = log_probs.new_zeros(())
                for row, index in enumerate(batch.texts):
                    start = starts[index]
                    targets = torch.tensor(ids[index][start:], device=log_probs.device)
                    predicted = log_probs[row, start - 1 :][: len(targets)].gather(1, targets[:, None])
                    # Each row has its own addition, so one backward pass gives the gradient of every text by itself.
                    total = total + (1 if index % 2 == 0 else -1) * predicted.mean()
                _gather(total, additions, gradients, batch.texts)
            progress.update(len(batch.texts))
    _check_finite(gradients, layer_indices, side_name)
    return gradients[:, 0::2] + gradients[:, 1::2]


def fisher_scores(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    layer_indices: Sequence[int],
    *,
    draws: int = 8,
    seed: int = 0,
) -> Float[torch.Tensor, "layers scores hidden"]:
    """Vectors s (scores) at each layer whose mean s sᵀ is the Fisher information per token of neutral texts.

    Each score is the gradient of the summed log-probability of tokens drawn from the model itself, one at every
    position of a text, divided by the square root of the text's length. Draws at different positions are independent
    with mean zero, so the products between positions vanish in the mean.

    Args:
        texts: token ids; each is cut to 32 tokens.
        draws: number of scores for each text.

    Raises:
        ActivationError: a prediction or a gradient is not finite; text and layer are named.
    """

    def name(column: int) -> str:
        return f"neutral text {column % len(ids)}"

    generator = torch.Generator().manual_seed(seed)
    ids = [tuple(text[:_MOST_PROBE_TOKENS]) for text in texts]
    scores = torch.zeros(len(layer_indices), draws * len(ids), hidden_size(model))
    with unsteered(model), evaluating(model, gradients=True):
        for batch in text_batches(model, ids, share_prefixes=False):
            with _additions(model, batch, layer_indices) as additions:
                log_probs = _log_probs(model, batch)
                flat = log_probs.flatten(0, 1)[torch.cat(batch.slots).to(log_probs.device)]  # without the padding
                lengths = torch.tensor([len(ids[index]) for index in batch.texts])
                for index, predicted in zip(batch.texts, torch.split(flat.detach(), lengths.tolist()), strict=True):
                    if bool(predicted.isnan().any()):  # no token could be drawn from these
                        raise ActivationError(f"The model's predictions for {name(index)} are NaN. {_HINT}")
                weights = lengths.rsqrt().repeat_interleave(lengths).to(flat.device)
                for draw in range(draws):
                    tokens = torch.multinomial(flat.detach().exp().cpu(), 1, generator=generator).to(flat.device)
                    total = (flat.gather(1, tokens)[:, 0] * weights).sum()
                    columns = [draw * len(ids) + index for index in batch.texts]
                    _gather(total, additions, scores, columns, keep=draw < draws - 1)
    _check_finite(scores, layer_indices, name)
    return scores


def _check_finite(
    found: Float[torch.Tensor, "layers columns hidden"], layer_indices: Sequence[int], name: Callable[[int], str]
) -> None:
    bad = (~found.isfinite().all(dim=2)).nonzero()
    if len(bad):
        layer, column = bad[0].tolist()
        raise ActivationError(
            f"The gradient of {name(column)} at layer {layer_indices[layer]} is NaN or infinite. {_HINT}"
        )


@contextlib.contextmanager
def _additions(
    model: nn.Module,
    batch: TextBatch,
    layer_indices: Sequence[int],
    at: Mapping[int, Float[torch.Tensor, " hidden"]] | None = None,
) -> Iterator[list[torch.Tensor]]:
    """Adds `[rows, 1, hidden]` to each layer's output, with respect to which the output can be differentiated.

    Args:
        at: the vector to add at each layer; by default zeros.
    """
    layers, layout = decoder_layers(model), ResidualLayout.of(model)
    rows, columns = batch.inputs["input_ids"].shape
    additions: list[torch.Tensor] = []

    def adding(addition: torch.Tensor) -> Callable[[nn.Module, Any, Any], Any]:
        def add(module: nn.Module, inputs: Any, output: Any) -> Any:
            hidden = first_tensor(output)
            added = addition.to(hidden.device, hidden.dtype)
            if layout.is_plain(hidden, rows, columns):
                return with_first_tensor(output, hidden + added)
            return with_first_tensor(output, layout.replace(hidden, layout.streams(hidden, rows, columns) + added))

        return add

    with contextlib.ExitStack() as stack:
        for index in layer_indices:
            value = torch.zeros(layout.width) if at is None else at[index].float().cpu()
            addition = value.repeat(rows, 1, 1).requires_grad_()
            additions.append(addition)
            stack.callback(layers[index].register_forward_hook(adding(addition)).remove)
        yield additions


def _log_probs(model: nn.Module, batch: TextBatch) -> Float[torch.Tensor, "rows columns vocab"]:
    logits: torch.Tensor = transformers_model(model)(**batch.inputs).logits
    return logits.float().log_softmax(dim=-1)


def _gather(
    total: torch.Tensor,
    additions: Sequence[torch.Tensor],
    into: Float[torch.Tensor, "layers columns hidden"],
    columns: Sequence[int],
    *,
    keep: bool = False,
) -> None:
    """Writes the gradients of `total` into some columns. `keep` keeps the graph for another call."""
    for number, gradient in enumerate(torch.autograd.grad(total, additions, retain_graph=keep)):
        into[number, list(columns)] = gradient[:, 0].float().cpu()
