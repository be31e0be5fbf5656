"""Steering only where the prompt calls for it (conditional activation steering; Lee et al. 2024, arXiv:2409.05907).

A condition compares the prompt's activations at one layer with a direction. It decides once for each row of a batch
whether steering acts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.arguments import as_integer, as_real, list_of
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.errors import DatasetError, OptionError, VectorError
from rotalabs_steer.model.activations import extract_activations
from rotalabs_steer.model.decoder import check_layer_indices
from rotalabs_steer.steering.plain_model import unsteered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Bool, Float

    from rotalabs_steer.chat.conversations import Prompt

MEASURES = ("cosine", "projection")


@dataclass(frozen=True, eq=False)
class Condition:
    """Acts on prompts whose score is above (or below) a threshold.

    The score of a prompt is the mean over its tokens, without the first, of their cosine with the direction or of
    their projection on it. The first token is left out because its activation is far larger than the others and nearly
    the same for every prompt.

    Attributes:
        vector: `[hidden]`; only its direction counts.
        layer_index: 0-based decoder layer at which the prompt is scored; at or before every layer that is steered.
        threshold: what the score is compared with.
        above: act on scores above the threshold; False for scores below.
        measure: "cosine" or "projection".
    """

    vector: Float[torch.Tensor, " hidden"]
    layer_index: int
    threshold: float
    above: bool = True
    measure: str = "cosine"

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise OptionError(f"Unknown measure {self.measure!r}. Use one of: {', '.join(MEASURES)}.")
        layer, threshold = as_integer(self.layer_index), as_real(self.threshold)
        if layer is None or layer < 0 or threshold is None:
            raise OptionError(
                f"A condition needs a 0-based decoder layer and a finite threshold, got {self.layer_index!r} and "
                f"{self.threshold!r}."
            )
        object.__setattr__(self, "layer_index", layer)
        object.__setattr__(self, "threshold", threshold)
        if not isinstance(self.vector, torch.Tensor):
            raise VectorError(f"A condition's vector is a torch tensor, got {type(self.vector).__name__}.")
        finite = self.vector.dim() == 1 and bool(torch.isfinite(self.vector).all())
        if not finite or not bool(self.vector.any()):
            raise VectorError(
                f"A condition's vector has shape [hidden], is finite and is not zero, got {list(self.vector.shape)}."
            )

    def scores(
        self, hidden: Float[torch.Tensor, "batch seq hidden"], prompt: torch.Tensor | bool
    ) -> Float[torch.Tensor, " batch"]:
        """The score of each row; `prompt` marks its tokens `[batch, seq]` (True: all)."""
        return prompt_scores(hidden, prompt, self.vector, self.measure)

    def decide(
        self, hidden: Float[torch.Tensor, "batch seq hidden"], prompt: torch.Tensor | bool
    ) -> Bool[torch.Tensor, " batch"]:
        """Whether steering acts on each row."""
        scores = self.scores(hidden, prompt)
        return scores > self.threshold if self.above else scores < self.threshold


@dataclass(frozen=True, eq=False)
class FittedCondition:
    """A condition and its F1 score in telling positive from negative prompts, on the prompts it was fitted on."""

    condition: Condition
    f1: float


def prompt_scores(
    hidden: Float[torch.Tensor, "batch seq hidden"],
    prompt: torch.Tensor | bool,
    vector: Float[torch.Tensor, " hidden"],
    measure: str,
) -> Float[torch.Tensor, " batch"]:
    """The score of each row, as `Condition` defines it."""
    direction = (vector / vector.norm()).to(hidden.device, torch.float32)
    values: torch.Tensor = hidden.float() @ direction
    if measure == "cosine":
        values = values / hidden.float().norm(dim=-1).clamp_min(1e-12)
    mask = torch.ones_like(values) if isinstance(prompt, bool) else prompt.to(values.device, values.dtype)
    rest = mask * (mask.cumsum(dim=1) > 1)
    mask = torch.where(rest.any(dim=1, keepdim=True), rest, mask)  # a prompt of one token has only its first
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1.0)


def fit_condition(
    model: torch.nn.Module,
    tokenizer: Any,
    positive_prompts: Sequence[Prompt],
    negative_prompts: Sequence[Prompt],
    layers: Sequence[int],
    *,
    measure: str = "cosine",
    template_options: Mapping[str, Any] | None = None,
) -> FittedCondition:
    """Fits the condition that best tells two kinds of prompts apart, by the activations of the unsteered model.

    For each layer, the vector is the difference between the mean unit activations of both kinds, and the threshold is
    the one with the largest F1. The layer with the largest F1 is chosen.

    Args:
        positive_prompts, negative_prompts: texts, or conversations as lists of messages.
        template_options: options of the chat template, as in `{"enable_thinking": False}`: the same as in generation.

    Raises:
        DatasetError: there are no positive or no negative prompts.
    """
    positive_prompts = list_of("positive_prompts", positive_prompts)
    negative_prompts = list_of("negative_prompts", negative_prompts)
    if not positive_prompts or not negative_prompts:
        raise DatasetError("A condition is fitted on prompts it should act on and prompts it should not: give both.")
    layers = check_layer_indices(model, layers)
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    chat = ChatTokenizer.of(tokenizer, template_options)
    asked = [chat.prompt(prompt) for prompt in (*positive_prompts, *negative_prompts)]
    with unsteered(model):
        for prompt in asked:
            ids = torch.tensor([prompt])
            for layer, hidden in extract_activations(model, {"input_ids": ids}, layers, token_position="all").items():
                found[layer].append(hidden[0].float())

    labels = torch.tensor([True] * len(positive_prompts) + [False] * len(negative_prompts))
    fitted = []
    for layer, rows in found.items():
        units = torch.stack([torch.nn.functional.normalize(row[1:], dim=-1).mean(dim=0) for row in rows])
        vector = units[labels].mean(dim=0) - units[~labels].mean(dim=0)
        scores = torch.stack([prompt_scores(row[None], True, vector, measure)[0] for row in rows])
        threshold, f1 = _best_threshold(scores, labels)
        fitted.append(FittedCondition(Condition(vector, layer, threshold, measure=measure), f1))
    return max(fitted, key=lambda one: one.f1)


def _best_threshold(scores: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """The threshold half way between two neighbouring scores that has the largest F1."""
    ordered = scores.sort().values
    candidates = torch.cat([ordered[:1] - 1.0, (ordered[:-1] + ordered[1:]) / 2])
    f1s = []
    for candidate in candidates:
        chosen = scores > candidate
        hits = float((chosen & labels).sum())
        f1s.append(2 * hits / (float(chosen.sum()) + float(labels.sum())))
    index = int(torch.tensor(f1s).argmax())
    return float(candidates[index]), f1s[index]
