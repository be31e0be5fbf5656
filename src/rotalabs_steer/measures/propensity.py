"""How much a model prefers responses that show a behaviour.

The propensity of a pair is the mean log-probability per token of its positive response minus that of its negative
response, in nats per token (after Tan et al. 2024, arXiv:2407.12404).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.errors import ActivationError
from rotalabs_steer.extraction.pair_texts import check_scorable, side_name, sides_of
from rotalabs_steer.model.batching import text_batches
from rotalabs_steer.model.decoder import transformers_model
from rotalabs_steer.model.inference import evaluating

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float
    from torch import nn

    from rotalabs_steer.datasets.rendering import RenderedPair, RenderedText
    from rotalabs_steer.model.batching import TextBatch


def pair_propensities(
    model: nn.Module, pairs: Sequence[RenderedPair], *, share_prefixes: bool = True
) -> Float[torch.Tensor, " pairs"]:
    """The propensity of each pair, in nats per token, for the model as it is steered now.

    Args:
        share_prefixes: compute the beginnings that texts share once. Turn it off for steering whose scope is only part
            of a sequence.

    Raises:
        DatasetError: a side has no token to score. The model has not run.
        ActivationError: the model's predictions for a pair are not finite.
    """
    scores = response_log_probs(model, sides_of(pairs), share_prefixes=share_prefixes, name=side_name)
    return scores[0::2] - scores[1::2]


def response_log_probs(
    model: nn.Module,
    texts: Sequence[RenderedText],
    *,
    share_prefixes: bool = True,
    name: Callable[[int], str] = "text {}".format,
) -> Float[torch.Tensor, " texts"]:
    """The mean log-probability per token of each text's response, in nats.

    A text without a prompt is all response. Its first token has no token before it and is left out.

    Args:
        name: gives the name of a text, by its index, for an error.

    Raises:
        DatasetError: a text has no token to score. The model has not run.
        ActivationError: the model's predictions are not finite.
    """
    check_scorable(texts, name)
    scores = torch.zeros(len(texts))
    with evaluating(model):
        for batch in text_batches(model, [text.ids for text in texts], share_prefixes=share_prefixes):
            _score_batch(model, texts, batch, scores)
    bad = (~scores.isfinite()).nonzero()
    if len(bad):
        raise ActivationError(
            f"The model's predictions for {name(int(bad[0]))} are NaN or infinite ({len(bad)} of {len(texts)} texts). "
            "Load the model in float32 or bfloat16 (float16 overflows on some models), or use a smaller strength."
        )
    return scores


def _score_batch(
    model: nn.Module, texts: Sequence[RenderedText], batch: TextBatch, scores: Float[torch.Tensor, " texts"]
) -> None:
    """Writes the mean log-probability of each response in a batch into `scores`, at the index of its text."""
    spans = [
        slots[max(texts[index].response_start, 1) - 1 : -1]  # the logits at these slots predict the response's tokens
        for index, slots in zip(batch.texts, batch.slots, strict=True)
    ]
    options, rows = _head_at(model, batch, torch.unique(torch.cat(spans)))
    logits = model(**batch.inputs, **options).logits.flatten(0, 1)
    for index, slots in zip(batch.texts, spans, strict=True):
        targets = torch.tensor(texts[index].ids[-len(slots) :])
        log_probs = logits[rows[slots]].float().log_softmax(dim=-1).cpu()
        scores[index] = log_probs.gather(1, targets[:, None]).mean()


def _head_at(model: nn.Module, batch: TextBatch, slots: torch.Tensor) -> tuple[dict[str, Any], torch.Tensor]:
    """The model's options for logits at some slots, and a table that gives the row of each slot in these logits.

    The head is as wide as the vocabulary, so it is applied at no other positions where the model allows that.
    """
    rows, columns = batch.inputs["input_ids"].shape
    kept = torch.arange(columns)
    options: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(transformers_model(model).forward).parameters:
        # The model takes one set of columns for all rows of a batch.
        kept = torch.unique(slots % columns)
        options = {"logits_to_keep": kept.to(batch.inputs["input_ids"].device)}
    column_rows = torch.zeros(columns, dtype=torch.long)
    column_rows[kept] = torch.arange(len(kept))
    return options, (torch.arange(rows)[:, None] * len(kept) + column_rows).flatten()
