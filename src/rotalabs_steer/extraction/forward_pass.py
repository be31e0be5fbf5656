"""One pass of the model over texts, reading all layers at once.

Each layer's hook reduces its output to a few vectors a text, in fp32, as soon as the layer has run, so memory does
not grow with the number of layers or texts. Behind the deepest layer asked for nothing runs: no final norm, no head.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from rotalabs_steer.decoder import decoder_layers, layer_part, transformers_model
from rotalabs_steer.errors import ActivationError, CompiledModelError
from rotalabs_steer.layer_outputs import ResidualLayout, first_tensor
from rotalabs_steer.text_batches import make_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float
    from torch import nn

    from rotalabs_steer.text_batches import BatchPlan, TextBatch

Place = tuple[int, str]
"""A layer, and the component of it that is read."""


class _DeepestLayerRead(Exception):  # noqa: N818 - a signal, no error
    """Leaves the forward call once everything asked for has been read."""


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
    """Runs the model over texts and hands weighted activations of all places to `receive`, batch by batch.

    Args:
        texts: token ids.
        plan: which texts go together.
        weights: for a text, one weight a token for each read-out: what is read is the weighted sum of the activations.
        receive: called with the indices of the batch's texts and their activations in fp32, on the CPU.
        name: what to call a text in an error.

    Raises:
        ActivationError: an activation is NaN or infinite; the message names layer and text.
        CompiledModelError: the model did not run the hooks.
    """
    reader = _Reader(model, places, name)
    total = sum(len(texts[index]) for rows in plan.batches for row in rows for index in row)
    with (
        evaluating(model),
        tqdm(total=total, unit="tok", desc="reading activations", disable=not show_progress) as progress,
        reader.attached(),
    ):
        for rows in plan.batches:
            indices, found = [], []
            for call in plan.calls(rows):
                batch = make_batch(model, call, texts)
                by_text = [weights(index) for index in batch.texts]
                matrices = torch.cat([batch.weights(readout) for readout in zip(*by_text, strict=True)])
                found.append(torch.unflatten(reader.read(batch, matrices), 1, (-1, len(batch.texts))))
                indices.extend(batch.texts)
            receive(indices, torch.cat(found, dim=2))
            progress.update(sum(len(texts[index]) for index in indices))


@contextlib.contextmanager
def evaluating(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Without dropout and, unless asked for, gradients; every module's mode is restored afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.enable_grad() if gradients else torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


class _Reader:
    """Hooks that pool what their layers return, and end the call behind the last of them."""

    def __init__(self, model: nn.Module, places: Sequence[Place], name: Callable[[int], str]) -> None:
        self._model = transformers_model(model)
        self._places, self._name = places, name
        self._layers = decoder_layers(model)
        self._layout = ResidualLayout.of(model)
        self._columns = 0
        self._matrices = torch.zeros(0, 0)
        self._pooled: dict[Place, torch.Tensor] = {}

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for place in self._places:
                part = layer_part(self._layers[place[0]], place[1])
                stack.callback(part.register_forward_hook(self._pool(place)).remove)
            deepest = self._layers[max(layer for layer, _ in self._places)]
            stack.callback(deepest.register_forward_hook(_leave).remove)
            yield

    def read(self, batch: TextBatch, matrices: Float[torch.Tensor, "rows slots"]) -> torch.Tensor:
        """`[places, rows, hidden]`: the products of `matrices` with what each place returns."""
        self._columns = batch.inputs["input_ids"].shape[1]
        self._matrices = matrices.to(batch.inputs["input_ids"].device)
        self._pooled.clear()
        with contextlib.suppress(_DeepestLayerRead):
            self._model(**batch.inputs)
        if len(self._pooled) < len(self._places):
            raise CompiledModelError(
                "The model ran without its hooks, so nothing was read: it was compiled in place. Read from the model "
                "as it was before model.compile()."
            )
        pooled = torch.stack([self._pooled[place].to("cpu") for place in self._places])
        finite = torch.isfinite(pooled).all(dim=2)
        if not bool(finite.all()):
            place, row = (~finite).nonzero()[0].tolist()
            text = self._name(batch.texts[row % len(batch.texts)])
            raise ActivationError(
                f"The activations of {text} at layer {self._places[place][0]} are NaN or infinite. Load the model in "
                "float32 or bfloat16 (float16 overflows on some models)."
            )
        return pooled

    def _pool(self, place: Place) -> Callable[[nn.Module, Any, Any], None]:
        def pool(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = self._layout.tokens(first_tensor(output), self._columns)
            self._pooled[place] = self._matrices.to(hidden.device) @ hidden.reshape(-1, hidden.shape[-1]).float()

        return pool


def _leave(module: nn.Module, inputs: Any, output: Any) -> None:
    raise _DeepestLayerRead
