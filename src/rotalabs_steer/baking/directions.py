"""Takes a direction out of everything that writes to the residual stream (weight orthogonalisation).

The modules that write to the stream are found by adding up outputs: those of the embeddings must sum to the first
layer's input, and in every layer those of some linear maps must sum to the difference between its output and its input.
If they do not, because of norms, experts or multipliers, the model is refused.
"""

from __future__ import annotations

import copy
import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rotalabs_steer.baking.trial import build, check_same, logits, probe_tokens, rounding, state_of
from rotalabs_steer.errors import ArchitectureError
from rotalabs_steer.model.decoder import decoder_layers
from rotalabs_steer.model.inference import probing
from rotalabs_steer.model.layer_outputs import first_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from transformers import PreTrainedModel

    from rotalabs_steer.steering.interventions import Ablate

_MAX_WRITERS = 3
"""The largest number of modules of one layer that are tried together. Most layers have two: attention and mlp."""


def fold_ablation(model: PreTrainedModel, ablate: Ablate, strength: float) -> PreTrainedModel:
    """A new model that writes nothing along the direction of `ablate` to its residual stream.

    Raises:
        ArchitectureError: the modules that write to the residual stream cannot be found.
    """
    tokens = probe_tokens(model)
    unsteered = logits(model, tokens)
    names = {module: name for name, module in model.named_modules()}
    writers = [names[module] for module in _writers(model, tokens)]

    state = state_of(model)
    for name in writers:
        module, weight = model.get_submodule(name), state[f"{name}.weight"]
        outputs_last = isinstance(module, (nn.Embedding, Conv1D))
        changed = _freed(weight if outputs_last else weight.T, ablate, strength)
        state[f"{name}.weight"] = (changed if outputs_last else changed.T).contiguous()
        if state.get(f"{name}.bias") is not None:
            state[f"{name}.bias"] = _freed(state[f"{name}.bias"], ablate, strength)
    config = copy.deepcopy(model.config)
    if config.get_text_config(decoder=True).tie_word_embeddings:
        # The head only reads the stream, so it keeps the weights that the embeddings had.
        config.tie_word_embeddings = config.get_text_config(decoder=True).tie_word_embeddings = False
    baked = build(type(model), config, state, model)

    with _ablated(model, writers, ablate, strength):
        steered = logits(model, tokens)
    check_same(logits(baked, tokens), steered, unsteered, model)
    return baked


def _freed(rows: torch.Tensor, ablate: Ablate, strength: float) -> torch.Tensor:
    """Rows `[..., hidden]` without the direction, in their own dtype."""
    return ablate(rows.float(), torch.tensor([strength])).to(rows.dtype)


@contextmanager
def _ablated(model: nn.Module, names: Iterable[str], ablate: Ablate, strength: float) -> Iterator[None]:
    """Ablates the outputs of these modules when they are computed, which the changed weights must be equivalent to."""
    factor = torch.tensor([strength])

    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return ablate(output.float().cpu(), factor).to(output.device, output.dtype)

    handles = [model.get_submodule(name).register_forward_hook(hook) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _writers(model: PreTrainedModel, tokens: torch.Tensor) -> list[nn.Module]:
    """The embeddings and linear maps whose outputs add up to the residual stream, each once."""
    layers = decoder_layers(model)
    inside = {module for layer in layers for module in layer.modules()}
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding) and m not in inside]
    linear = {layer: [m for m in layer.modules() if isinstance(m, (nn.Linear, Conv1D))] for layer in layers}
    outputs, inputs = _run(model, tokens, [*embeddings, *layers, *itertools.chain(*linear.values())], layers)

    def find(
        before: torch.Tensor, after: torch.Tensor, candidates: Sequence[nn.Module], what: str
    ) -> Sequence[nn.Module]:
        rows = {}
        for module in candidates:
            output = outputs.get(module)
            if output is not None and output.dim() > 1 and output.shape[-1] == after.shape[-1]:
                # Some mlps (OPT's) work on all tokens of a batch as one list.
                rows[module] = output.reshape(after.shape) if output.numel() == after.numel() else output
        found = _adding_up(before, after, rows, rounding(model.dtype))
        if found is None:
            raise ArchitectureError(
                f"{type(model).__name__}: what is written to the residual stream {what} is not a sum of the outputs of "
                "its embeddings or linear maps (norms, experts or multipliers lie between). A direction cannot be "
                "taken out of its weights exactly: steer with ActivationInjector(..., intervention='ablate')."
            )
        return found

    writers = list(find(torch.zeros(()), inputs[layers[0]], embeddings, "before the first layer"))
    for index, layer in enumerate(layers):
        if layer not in inputs or (index and not torch.equal(inputs[layer], outputs[layers[index - 1]])):
            raise ArchitectureError(
                f"{type(model).__name__}: layer {index} does not read what layer {index - 1} returns. A direction "
                "cannot be taken out of its weights exactly: steer with ActivationInjector(..., intervention='ablate')."
            )
        writers += find(inputs[layer], outputs[layer], linear[layer], f"in layer {index}")
    return list(dict.fromkeys(writers))


def _adding_up(
    before: torch.Tensor, after: torch.Tensor, outputs: Mapping[nn.Module, torch.Tensor], tolerated: float
) -> tuple[nn.Module, ...] | None:
    """The modules whose outputs, added to `before`, give `after`; None if no small group of modules does.

    All groups are compared and the best one is taken. The first one within rounding could lack a module that writes
    values much smaller than those of the stream.
    """
    groups: dict[tuple[nn.Module, ...], torch.Tensor] = {}
    for count in range(1, _MAX_WRITERS + 1):
        for group in itertools.combinations(outputs, count):
            if all(outputs[module].shape[-2] == after.shape[-2] for module in group):
                groups[group] = before + sum(outputs[module] for module in group) - after
    if not groups:
        return None
    best = min(groups, key=lambda group: float(groups[group].square().mean()))
    size = before.abs() + after.abs() + sum(outputs[module].abs() for module in best)
    return best if bool((groups[best].abs() <= tolerated * size).all()) else None


def _run(
    model: PreTrainedModel, tokens: torch.Tensor, watched: Iterable[nn.Module], layers: Iterable[nn.Module]
) -> tuple[dict[nn.Module, torch.Tensor], dict[nn.Module, torch.Tensor]]:
    """The outputs of `watched` modules and the inputs of `layers` in one forward pass, in fp32."""
    outputs: dict[nn.Module, torch.Tensor] = {}
    inputs: dict[nn.Module, torch.Tensor] = {}

    def keep_output(module: nn.Module, given: Any, output: Any) -> None:
        outputs[module] = _copy(first_tensor(output))

    def keep_input(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs[module] = _copy(given[0] if given else named["hidden_states"])

    handles = [module.register_forward_hook(keep_output) for module in watched]
    handles += [layer.register_forward_pre_hook(keep_input, with_kwargs=True) for layer in layers]
    try:
        with probing(model):
            model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return outputs, inputs


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in fp32 on the CPU. It is always a copy, because some layers (Falcon's) add to outputs in place."""
    return tensor.detach().to("cpu", torch.float32, copy=True)
