"""One pass of the model over texts, reading all layers at once.

Each layer's hook reduces its output to one vector a text, in fp32, as soon as the layer has run, so memory does
not grow with the number of layers or texts.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from rotalabs_steer.decoder import decoder_layers, layer_part, transformers_model
from rotalabs_steer.errors import ActivationError
from rotalabs_steer.layer_outputs import ResidualLayout, first_tensor
from rotalabs_steer.text_batches import TextBatch, text_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float
    from torch import nn

    from rotalabs_steer.datasets.rendering import RenderedText


def read_activations(
    model: nn.Module,
    texts: Sequence[RenderedText],
    weights: Sequence[Float[torch.Tensor, " seq"]],
    layer_indices: Sequence[int],
    receive: Callable[[int, list[int], Float[torch.Tensor, "batch hidden"]], None],
    *,
    component: str = "residual",
    batch_size: int | None = None,
    show_progress: bool = False,
) -> None:
    """Runs the model over texts and hands every layer's weighted activations to `receive`.

    Args:
        weights: for each text, a weight for each token: what is read is the weighted sum of the activations.
        receive: called with (layer, indices of the texts in this batch, their activations in fp32).
        batch_size: most texts a batch; None for as many as make 500 to 1,000 tokens.

    Raises:
        ActivationError: an activation is NaN or infinite; the message names layer and text.
    """
    layers, layout = decoder_layers(model), ResidualLayout.of(model)
    batch: TextBatch
    matrix: torch.Tensor

    def reader(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def read(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = layout.tokens(first_tensor(output), batch.inputs["input_ids"].shape[1]).float()
            pooled = matrix.to(hidden.device) @ hidden.reshape(-1, hidden.shape[-1])
            finite = torch.isfinite(pooled).all(dim=1)
            if not bool(finite.all()):
                text = batch.texts[int((~finite).nonzero()[0])]
                raise ActivationError(
                    f"The activations of text {text} at layer {layer} are NaN or infinite. Load the model in "
                    "float32 or bfloat16 (float16 overflows on some models)."
                )
            receive(layer, batch.texts, pooled)

        return read

    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        ids = [text.ids for text in texts]
        batches = text_batches(model, ids, batch_size)
        total = sum(len(text) for text in ids)
        progress = tqdm(total=total, unit="tok", desc="reading activations", disable=not show_progress)
        stack.enter_context(progress)
        first = next(batches)  # before the hooks: making batches may probe the model
        for index in layer_indices:
            handle = layer_part(layers[index], component).register_forward_hook(reader(index))
            stack.callback(handle.remove)
        for batch in _chain(first, batches):
            matrix = batch.weights(weights)
            model(**batch.inputs, **_without_logits(model))
            progress.update(sum(len(ids[index]) for index in batch.texts))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients and dropout; every module's mode is restored afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _without_logits(model: nn.Module) -> dict[str, int]:
    """The language-model head on one position only, where the model has that option."""
    accepted = inspect.signature(transformers_model(model).forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}


def _chain(first: TextBatch, rest: Iterator[TextBatch]) -> Iterator[TextBatch]:
    yield first
    yield from rest
