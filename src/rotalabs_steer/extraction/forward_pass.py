"""One pass of the model over texts, reading all layers at once.

Each layer's hook reduces its output, in fp32, as soon as the layer has run: to a few vectors for each text, or a few
numbers for each token. So memory does not grow with the number of layers or texts. Nothing runs after the deepest layer
that is read: no final norm, no head.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from tqdm.auto import tqdm

from rotalabs_steer.errors import ActivationError, CompiledModelError
from rotalabs_steer.model.batching import make_batch
from rotalabs_steer.model.decoder import decoder_layers, transformers_model
from rotalabs_steer.model.inference import reading
from rotalabs_steer.model.layer_outputs import ResidualLayout
from rotalabs_steer.model.layer_parts import find_parts
from rotalabs_steer.steering.plain_model import unsteered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from jaxtyping import Float
    from torch import nn

    from rotalabs_steer.model.batching import BatchPlan, TextBatch
    from rotalabs_steer.model.layer_parts import LayerPart

    Reduction = Callable[["Place", Float[torch.Tensor, "slots hidden"]], Float[torch.Tensor, "rows columns"]]

Place: TypeAlias = tuple[int, str]
"""A layer's index, and the component of the layer that is read."""


class _DeepestLayerRead(Exception):  # noqa: N818 - a signal, not an error
    """Ends the forward call once every place has been read."""


def read_activations(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    plan: BatchPlan,
    places: Sequence[Place],
    weights: Callable[[int], Sequence[Float[torch.Tensor, " seq"]]],
    receive: Callable[[list[int], Float[torch.Tensor, "places readouts texts hidden"]], None],
    *,
    name: Callable[[int], str] = "text {}".format,
    show_progress: bool = False,
) -> None:
    """Runs the unsteered model over texts and passes weighted sums of their activations to `receive`, batch by batch.

    Args:
        texts: token ids.
        plan: which texts go together.
        weights: maps a text's index to a list with one tensor `[seq]` of token weights for each read-out.
        receive: called with the indices of the batch's texts and the sums in fp32, on the CPU.
        name: maps a text's index to what an error calls it.

    Raises:
        ActivationError: an activation is NaN or infinite; the message names layer and text.
        CompiledModelError: the model did not run the hooks.
    """
    reader = _Reader(model, places)
    with unsteered(model), reading(model), _progress(texts, plan, show_progress) as progress, reader.attached():
        for rows in plan.batches:
            indices, found = [], []
            for call in plan.calls(rows):
                batch = make_batch(model, call, texts)
                by_text = [weights(index) for index in batch.texts]
                # One matrix product pools all read-outs: row r belongs to text r modulo the number of texts.
                matrices = torch.cat([batch.weights(readout) for readout in zip(*by_text, strict=True)])
                pooled = torch.stack(reader.read(batch, _pooling(matrices)))
                _check_finite(pooled, places, batch.texts, name)
                found.append(torch.unflatten(pooled, 1, (-1, len(batch.texts))))
                indices.extend(batch.texts)
            receive(indices, torch.cat(found, dim=2))
            progress.update(sum(len(texts[index]) for index in indices))


def read_projections(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    plan: BatchPlan,
    directions: Mapping[int, Float[torch.Tensor, "directions hidden"]],
    *,
    name: Callable[[int], str] = "text {}".format,
    show_progress: bool = False,
) -> dict[int, list[Float[torch.Tensor, "tokens directions"]]]:
    """The products of every token's residual stream with some directions, by layer: one tensor for each text.

    The tensors are in fp32, on the CPU. The model is read as it is steered now.

    Raises:
        ActivationError, CompiledModelError: as in `read_activations`.
    """
    places = [(layer, "residual") for layer in directions]
    reader = _Reader(model, places)
    found = {layer: [torch.empty(0)] * len(texts) for layer in directions}

    def project(place: Place, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ directions[place[0]].to(hidden).T

    with reading(model), _progress(texts, plan, show_progress) as progress, reader.attached():
        for call in (call for rows in plan.batches for call in plan.calls(rows)):
            batch = make_batch(model, call, texts)
            read = reader.read(batch, project)
            for index, slots in zip(batch.texts, batch.slots, strict=True):
                for place, products in zip(places, read, strict=True):
                    _check_finite(products[None, slots], [place], [index], name)
                    found[place[0]][index] = products[slots]
            progress.update(sum(len(texts[index]) for index in batch.texts))
    return found


class _Reader:
    """Hooks that reduce what their layers return, and end the forward call after the deepest of them."""

    def __init__(self, model: nn.Module, places: Sequence[Place]) -> None:
        self._model = transformers_model(model)
        self._places = places
        self._layers = decoder_layers(model)
        self._parts = {
            component: find_parts(model, [layer for layer, kind in places if kind == component], component)
            for component in {kind for _, kind in places}
        }
        self._layout = ResidualLayout.of(model)
        self._found: dict[Place, torch.Tensor] = {}

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for place in self._places:
                part = self._parts[place[1]][place[0]]
                stack.callback(part.module.register_forward_hook(self._hook(place, part)).remove)
            # Hooks run in the order in which they were registered, so this one comes after those that read the layer.
            deepest = self._layers[max(layer for layer, _ in self._places)]
            stack.callback(deepest.register_forward_hook(_leave).remove)
            yield

    def read(self, batch: TextBatch, reduce: Reduction) -> list[torch.Tensor]:
        """For each place, `reduce` of the place and what it returns for the batch, `[slots, hidden]` in fp32."""
        self._rows, self._columns = batch.inputs["input_ids"].shape
        self._reduce: Reduction = reduce
        self._found.clear()
        with contextlib.suppress(_DeepestLayerRead):
            self._model(**batch.inputs)
        if len(self._found) < len(self._places):
            raise CompiledModelError(
                "The model ran without its hooks, so nothing was read: it was compiled in place. Read from the model "
                "as it was before model.compile()."
            )
        return [self._found[place].to("cpu") for place in self._places]

    def _hook(self, place: Place, part: LayerPart) -> Callable[[nn.Module, Any, Any], None]:
        def read(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = part.added(output, self._layout, self._rows, self._columns)
            self._found[place] = self._reduce(place, hidden.reshape(-1, hidden.shape[-1]).float())

        return read


def _pooling(matrices: Float[torch.Tensor, "rows slots"]) -> Reduction:
    def pool(place: Place, hidden: torch.Tensor) -> torch.Tensor:
        return matrices.to(hidden.device) @ hidden

    return pool


def _check_finite(
    found: Float[torch.Tensor, "places rows columns"],
    places: Sequence[Place],
    texts: Sequence[int],
    name: Callable[[int], str],
) -> None:
    """Raises an error that names layer and text of the first value that is not finite.

    Rows cycle through the texts: row r belongs to text r modulo the number of texts.
    """
    finite = torch.isfinite(found).all(dim=2)
    if not bool(finite.all()):
        place, row = (~finite).nonzero()[0].tolist()
        raise ActivationError(
            f"The activations of {name(texts[row % len(texts)])} at layer {places[place][0]} are NaN or infinite. "
            "Load the model in float32 or bfloat16 (float16 overflows on some models)."
        )


def _progress(texts: Sequence[Sequence[int]], plan: BatchPlan, show: bool) -> tqdm[Any]:
    total = sum(len(texts[index]) for rows in plan.batches for row in rows for index in row)
    return tqdm(total=total, unit="tok", desc="reading activations", disable=not show, leave=False)


def _leave(module: nn.Module, inputs: Any, output: Any) -> None:
    raise _DeepestLayerRead
