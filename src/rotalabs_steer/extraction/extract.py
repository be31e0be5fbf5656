"""One pass over the pairs, from which vectors of any number of methods, positions, components and layers are made."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from rotalabs_steer.arguments import as_integer, list_of
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.datasets.loading import pairs_from
from rotalabs_steer.datasets.neutral import neutral_passages
from rotalabs_steer.datasets.rendering import RenderedText, render_pair
from rotalabs_steer.errors import ArchitectureError, DatasetError, OptionError, VectorError
from rotalabs_steer.extraction.forward_pass import read_activations
from rotalabs_steer.extraction.gradients import fisher_scores, pair_gradients
from rotalabs_steer.extraction.methods import DEFAULT_METHOD, get_method
from rotalabs_steer.extraction.pair_pass import sum_over_pairs
from rotalabs_steer.extraction.pair_texts import PairTexts, check_scorable, side_name, sides_of
from rotalabs_steer.extraction.readout import token_weights
from rotalabs_steer.extraction.statistics import FIELD_OF_NEED, FISHER, GRADIENT, NEUTRAL
from rotalabs_steer.model.batching import plan_batches
from rotalabs_steer.model.decoder import (
    check_component,
    check_layer_indices,
    decoder_layers,
    model_fingerprint,
    model_name,
    text_config,
    transformers_model,
)
from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from rotalabs_steer.datasets.loading import PairSource
    from rotalabs_steer.datasets.pairs import ContrastPairDataset
    from rotalabs_steer.datasets.rendering import RenderedPair
    from rotalabs_steer.extraction.forward_pass import Place
    from rotalabs_steer.extraction.readout import Readout
    from rotalabs_steer.extraction.statistics import LayerStatistics

_Item = TypeVar("_Item")

_PAIRS_AT_ONCE = 256
"""Gradients of more pairs are summed in parts, because each pair has a gradient of `[layers, hidden]`."""


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """What one pass over contrast pairs found. `vectors` makes steering vectors of it, without the model.

    Attributes:
        layers: the statistics of each layer, by (component, name of the token position).
        template_options: what the chat template was given.
    """

    behavior: str
    layers: Mapping[tuple[str, str], Mapping[int, LayerStatistics]]
    model_name: str
    fingerprint: Mapping[str, str | int]
    dataset_sha256: str
    template_options: Mapping[str, Any] = field(default_factory=dict)

    def vectors(
        self, method: str = DEFAULT_METHOD, token_position: str | None = None, component: str = "residual"
    ) -> SteeringVectorSet:
        """The steering vectors of a method, one for each layer.

        Args:
            token_position: needed only where several were read.

        Raises:
            OptionError: this component, this position or something that the method needs was not read.
            VectorError: the method finds no direction at a layer.
        """
        read = [position for part, position in self.layers if part == component]
        if token_position is None and len(read) == 1:
            token_position = read[0]
        if token_position not in read:
            raise OptionError(f"No {component!r} activations at {token_position!r} were read; there are {read}.")
        layers = self.layers[component, token_position].values()
        for need in sorted(get_method(method).needs):
            if any(getattr(statistics, FIELD_OF_NEED[need]) is None for statistics in layers):
                raise OptionError(
                    f"Method {method!r} needs {need}, not read: pass methods=[{method!r}, …] when reading."
                )
        about = {
            "token_position": token_position,
            "component": component,
            "dataset_sha256": self.dataset_sha256,
            "fingerprint": dict(self.fingerprint),
        }
        if self.template_options:
            about["template_options"] = dict(self.template_options)
        return SteeringVectorSet(self.behavior, [self._vector(method, statistics, about) for statistics in layers])

    def _vector(self, method: str, statistics: LayerStatistics, about: Mapping[str, Any]) -> SteeringVector:
        difference = statistics.mean_difference
        direction = get_method(method).direction(statistics).to(difference.dtype)
        where = f"layer {statistics.layer_index} ({about['component']}, {about['token_position']})"
        if not bool(difference.any()):
            raise VectorError(f"Positive and negative texts do not differ at {where}: there is nothing to steer by.")
        if not bool(direction.any()):
            raise VectorError(
                f"Method {method!r} finds no direction at {where}: what it looks at is the same in all pairs. Check "
                "that the pairs are not copies of one, or use another method."
            )
        if method != DEFAULT_METHOD:  # a principal component, for one, may point either way and has length one
            sign = torch.copysign(torch.ones(()), direction @ difference)
            direction = direction * (sign * difference.norm() / direction.norm())
        vector = direction.float()
        return SteeringVector(
            self.behavior,
            statistics.layer_index,
            vector,
            self.model_name,
            "caa" if method == DEFAULT_METHOD else method,
            {
                **about,
                "num_pairs": statistics.num_pairs,
                "pos_mean_norm": float(statistics.positive_mean.norm()),
                "neg_mean_norm": float(statistics.negative_mean.norm()),
                "vector_norm": float(vector.norm()),
            },
        )


def extract_vectors(
    model: nn.Module,
    tokenizer: Any,
    contrast_pairs: PairSource,
    layer_indices: Iterable[int] | None = None,
    *,
    method: str = DEFAULT_METHOD,
    token_position: Readout | None = None,
    component: str = "residual",
    batch_size: int | None = None,
    truncate: bool = False,
    neutral_texts: Sequence[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    template_options: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> SteeringVectorSet:
    """Steering vectors of several layers by one method; see `read_statistics` for the arguments and errors."""
    statistics = read_statistics(
        model,
        tokenizer,
        contrast_pairs,
        layer_indices,
        methods=[method],
        token_positions=[token_position],
        components=[component],
        batch_size=batch_size,
        truncate=truncate,
        neutral_texts=neutral_texts,
        resume=resume,
        template_options=template_options,
        show_progress=show_progress,
    )
    return statistics.vectors(method, component=component)


def read_statistics(
    model: nn.Module,
    tokenizer: Any,
    contrast_pairs: PairSource,
    layer_indices: Iterable[int] | None = None,
    *,
    methods: Sequence[str] = (DEFAULT_METHOD,),
    token_positions: Sequence[Readout | None] = (None,),
    components: Sequence[str] = ("residual",),
    batch_size: int | None = None,
    truncate: bool = False,
    neutral_texts: Sequence[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    template_options: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> ActivationStatistics:
    """Runs the model once over the pairs and keeps what the methods need.

    With several processes (`accelerate launch`, torchrun) each reads its share of the pairs and all return the same.

    Args:
        contrast_pairs: a dataset; a list of pairs or of dicts with "positive" and "negative"; a file of pairs; or the
            name of a built-in behaviour.
        layer_indices: 0-based decoder layers; None for all of them.
        methods: names in `METHODS`.
        token_positions: "last", "first", "mean", "response", "last_prompt", "span", a function from a `RenderedText` to
            token indices, or None: "response" where a pair has a prompt and a response, else "last".
        components: "residual" (the layer's output), "mlp" or "attn" (what that part adds to the residual stream).
        batch_size: maximum number of texts in a batch; None for as many as make about 500 tokens.
        truncate: cut texts that are longer than the model's context at their beginning; else they are an error.
        neutral_texts: for methods that compare with neutral text; by default those of the package.
        resume: a file that keeps the state of the extraction. One that was stopped goes on from there, to the same
            result.
        template_options: for the chat template, as in `{"enable_thinking": False}`; the vectors record them.

    Raises:
        DatasetError, ChatTemplateError, LayerError, OptionError: the input cannot be used; the model has not run.
        ActivationError: an activation is not finite; layer and pair are named.
    """
    dataset, chat = pairs_from(contrast_pairs), ChatTokenizer.of(tokenizer, template_options)
    if batch_size is not None and (as_integer(batch_size) or 0) < 1:
        raise OptionError(f"batch_size is {batch_size!r}; it must be an integer from 1 on, or None.")
    layers = check_layer_indices(model, range(len(decoder_layers(model))) if layer_indices is None else layer_indices)
    plain_model = transformers_model(model)
    if getattr(plain_model.config, "is_encoder_decoder", False):
        raise ArchitectureError(
            f"{type(plain_model).__name__} has an encoder: pairs are read by decoder-only models. "
            "Capture activations with ActivationHook and make SteeringVectors of their differences."
        )
    methods, components = _some("methods", methods), list(dict.fromkeys(_some("components", components)))
    token_positions = _some("token_positions", token_positions)
    neutral_texts = neutral_passages() if neutral_texts is None else _some("neutral_texts", neutral_texts)
    for component in components:
        check_component(component)
    needs = frozenset().union(*(get_method(method).needs for method in methods))
    if needs & {GRADIENT, FISHER} and set(components) != {"residual"}:
        raise OptionError("Methods by gradient are for the residual stream: leave components as it is.")
    longest = getattr(text_config(plain_model), "max_position_embeddings", None)
    pairs = render_pairs(chat, dataset, longest, truncate=truncate)
    if GRADIENT in needs:
        check_scorable(sides_of(pairs), side_name)
    neutral_ids = _neutral_ids(chat, neutral_texts) if needs & {NEUTRAL, FISHER} else []

    texts = PairTexts(pairs, token_positions)
    places = [(layer, component) for component in components for layer in layers]
    sums = sum_over_pairs(
        model, texts, places, needs, batch_size=batch_size, resume=resume, show_progress=show_progress
    )
    fields: dict[str, torch.Tensor] = {}  # with a row for each place: methods by gradient are for the residual stream
    if NEUTRAL in needs:
        fields["neutral_mean"] = _neutral_means(model, neutral_ids, places)
    if GRADIENT in needs:
        fields["gradient"] = _mean_gradient(model, pairs, layers, show_progress=show_progress)
    if FISHER in needs:
        fields["fisher_scores"] = fisher_scores(model, neutral_ids, layers).double()
    found: dict[tuple[str, str], dict[int, LayerStatistics]] = {}
    for place, (layer, component) in enumerate(places):
        others: dict[str, Any] = {name: value[place] for name, value in fields.items()}
        for position in texts.position_names:
            statistics = replace(sums[position].layer(place, layer), **others)
            found.setdefault((component, position), {})[layer] = statistics
    return ActivationStatistics(
        dataset.behavior, found, model_name(model), model_fingerprint(model), dataset.sha256, chat.template_options
    )


def check_number_of_pairs(dataset: ContrastPairDataset) -> None:
    """Raises a `DatasetError` for a dataset of one pair."""
    if len(dataset) == 1:
        raise DatasetError("One pair shows how two texts differ, not what a behaviour is: give at least two pairs.")


def render_pairs(
    tokenizer: Any, dataset: ContrastPairDataset, longest: int | None, *, truncate: bool
) -> list[RenderedPair]:
    """The pairs as token ids of at most `longest` tokens.

    Raises:
        DatasetError: there is only one pair, or one cannot be rendered; see `render_pair`.
        ChatTemplateError: the tokenizer cannot render prompts.
    """
    check_number_of_pairs(dataset)
    return [
        render_pair(tokenizer, pair, place=f"pair {number}", max_length=longest, truncate=truncate)
        for number, pair in enumerate(dataset)
    ]


def _some(name: str, given: Iterable[_Item]) -> list[_Item]:
    """The items of an argument; an `OptionError` if there are none."""
    items = list_of(name, given)
    if not items:
        raise OptionError(f"{name} is empty; give at least one, or leave it out for the default.")
    return items


def _neutral_ids(chat: ChatTokenizer, texts: Sequence[str]) -> list[tuple[int, ...]]:
    found = [chat.ids(text, special=True) for text in texts]
    for text, ids in zip(texts, found, strict=True):
        if len(ids) < 2:
            raise DatasetError(f"The neutral text {text!r:.40} has {len(ids)} tokens; give texts of at least two.")
    return found


def _neutral_means(model: nn.Module, texts: Sequence[tuple[int, ...]], places: Sequence[Place]) -> torch.Tensor:
    """`[places, hidden]`: the mean over all tokens but the first, whose norm would outweigh all others."""
    total: list[torch.Tensor] = []

    def receive(indices: list[int], activations: torch.Tensor) -> None:
        total.append(activations[:, 0].double().sum(dim=1))

    def weights(index: int) -> list[torch.Tensor]:
        return [token_weights(RenderedText(texts[index], 1), "response")]

    read_activations(model, texts, plan_batches(model, texts), places, weights, receive)
    return torch.stack(total).sum(dim=0) / len(texts)


def _mean_gradient(
    model: nn.Module, pairs: Sequence[RenderedPair], layers: Sequence[int], *, show_progress: bool
) -> torch.Tensor:
    """`[layers, hidden]`: the mean of `pair_gradients` over the pairs."""
    parts = [pairs[start : start + _PAIRS_AT_ONCE] for start in range(0, len(pairs), _PAIRS_AT_ONCE)]
    sums = [pair_gradients(model, part, layers, show_progress=show_progress).double().sum(dim=1) for part in parts]
    return torch.stack(sums).sum(dim=0) / len(pairs)
