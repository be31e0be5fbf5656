"""How much a model prefers responses that show a behaviour.

The propensity of a pair is the mean log-probability of a token of its positive response minus the same of its negative
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
        share_prefixes: off for steering whose scope is only part of a sequence.

    Raises:
        DatasetError: a side has no token to score; the model has not run.
        ActivationError: the model's predictions are not finite; the pair is named.
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
    """Mean log-probability of a response token given all before it, in nats, for each text.

    A text without a prompt is all response; its first token has nothing before it and is left out.

    Args:
        name: what to call a text in an error.

    Raises:
        DatasetError: a text has no token to score; the model has not run.
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
    """Writes the mean log-probability of each response in a batch to the text's place in `scores`."""
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
    """Options of the model for logits at some slots, and the row of each slot in these logits.

    The head is as wide as the vocabulary, so where the model allows it is run on these positions only.
    """
    rows, columns = batch.inputs["input_ids"].shape
    accepted = inspect.signature(transformers_model(model).forward).parameters
    kept = torch.arange(columns)
    options: dict[str, Any] = {}
    if "logits_to_keep" in accepted:
        kept = torch.unique(slots % columns)
        options = {"logits_to_keep": kept.to(batch.inputs["input_ids"].device)}
    place = torch.zeros(columns, dtype=torch.long)
    place[kept] = torch.arange(len(kept))
    every = torch.arange(rows * columns)
    return options, (every // columns) * len(kept) + place[every % columns]
