"""How much a model prefers responses that show a behaviour.

The propensity of a pair is the mean log-probability of a token of its positive response minus the same of its negative
response, in nats per token (after Tan et al. 2024, arXiv:2407.12404).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.decoder import transformers_model
from rotalabs_steer.extraction.forward_pass import evaluating
from rotalabs_steer.text_batches import TextBatch, text_batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import nn

    from rotalabs_steer.datasets.rendering import RenderedPair, RenderedText


def pair_propensities(
    model: nn.Module, pairs: Sequence[RenderedPair], *, share_prefixes: bool = True
) -> Float[torch.Tensor, " pairs"]:
    """The propensity of each pair, in nats per token, for the model as it is steered now.

    Args:
        share_prefixes: off for steering whose scope is only part of a sequence.
    """
    sides = [side for pair in pairs for side in (pair.positive, pair.negative)]
    scores = response_log_probs(model, sides, share_prefixes=share_prefixes)
    return scores[0::2] - scores[1::2]


def response_log_probs(
    model: nn.Module, texts: Sequence[RenderedText], *, share_prefixes: bool = True
) -> Float[torch.Tensor, " texts"]:
    """Mean log-probability of a response token given all before it, in nats, for each text.

    A text without a prompt is all response; its first token has nothing before it and is left out.
    """
    scores = torch.zeros(len(texts))
    with evaluating(model):
        for batch in text_batches(model, [text.ids for text in texts], share_prefixes=share_prefixes):
            spans = [_predicting(texts[index], slots) for index, slots in zip(batch.texts, batch.slots, strict=True)]
            logits, rows = _logits_at(model, batch, _distinct(torch.cat(spans)))
            for index, slots in zip(batch.texts, spans, strict=True):
                text = texts[index]
                targets = torch.tensor(text.ids[len(text.ids) - len(slots) :])
                log_probs = logits[rows[slots]].float().log_softmax(dim=-1).cpu()
                scores[index] = log_probs.gather(1, targets[:, None]).mean()
    return scores


def _predicting(text: RenderedText, slots: torch.Tensor) -> torch.Tensor:
    """The slots whose logits predict the response's tokens."""
    start = max(text.response_start, 1)
    return slots[start - 1 : -1]


def _distinct(slots: torch.Tensor) -> torch.Tensor:
    distinct: torch.Tensor = torch.unique(slots)
    return distinct


def _logits_at(model: nn.Module, batch: TextBatch, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a batch at some slots, `[kept, vocab]`, and the row of each slot in them.

    The head is as wide as the vocabulary, so where the model allows it is run on these positions only.
    """
    rows, columns = batch.inputs["input_ids"].shape
    accepted = inspect.signature(transformers_model(model).forward).parameters
    kept = torch.arange(columns)
    options: dict[str, Any] = {}
    if "logits_to_keep" in accepted:
        kept = _distinct(slots % columns)
        options = {"logits_to_keep": kept.to(batch.inputs["input_ids"].device)}
    logits = model(**batch.inputs, **options).logits
    place = torch.zeros(columns, dtype=torch.long)
    place[kept] = torch.arange(len(kept))
    every = torch.arange(rows * columns)
    return logits.flatten(0, 1), (every // columns) * len(kept) + place[every % columns]
