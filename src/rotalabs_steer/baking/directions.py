"""A direction taken out of all that writes to the residual stream (weight orthogonalisation).

What writes to the stream is found out by adding up: the embeddings' outputs must sum to the first layer's input, and in
every layer the outputs of some of its linear maps must sum to the difference between its output and its input. Where
they do not, because of norms, experts or multipliers, the model is refused.
"""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rotalabs_steer.baking.trial import build, check_same, evaluating, logits, probe_tokens, rounding, state_of
from rotalabs_steer.errors import ArchitectureError
from rotalabs_steer.model.decoder import decoder_layers
from rotalabs_steer.model.layer_outputs import first_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transformers import PreTrainedModel

    from rotalabs_steer.steering.interventions import Ablate

_MAX_WRITERS = 3


def fold_ablation(model: PreTrainedModel, ablate: Ablate, strength: float) -> PreTrainedModel:
    """A new model in whose residual stream nothing is written along the direction of `ablate`.

    Raises:
        ArchitectureError: it cannot be found out what writes to the residual stream, or a norm lies behind it.
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
        # The head reads the stream, behind the final norm's weights: it keeps the embeddings as they were.
        config.tie_word_embeddings = config.get_text_config(decoder=True).tie_word_embeddings = False
    baked = build(type(model), config, state, model)

    with _Ablated(model, writers, ablate, strength):
        steered = logits(model, tokens)
    check_same(logits(baked, tokens), steered, unsteered, model)
    return baked


def _freed(rows: torch.Tensor, ablate: Ablate, strength: float) -> torch.Tensor:
    """`[..., hidden]` with the direction taken out of each row, in the dtype it has."""
    return ablate(rows.float(), torch.tensor([strength])).to(rows.dtype)


class _Ablated:
    """The same model with the outputs of these modules ablated as they are computed: what the weights must equal."""

    def __init__(self, model: nn.Module, names: Iterable[str], ablate: Ablate, strength: float) -> None:
        self._modules = [model.get_submodule(name) for name in names]
        self._ablate, self._strength = ablate, torch.tensor([strength])

    def __enter__(self) -> None:
        self._handles = [module.register_forward_hook(self._hook) for module in self._modules]

    def __exit__(self, *failure: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        ablated = self._ablate(output.float().cpu(), self._strength)
        return ablated.to(output.device, output.dtype)


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
        wide = [
            m for m in candidates if m in outputs and outputs[m].shape[-1] == after.shape[-1] and outputs[m].dim() > 1
        ]
        rows = {m: o.reshape(after.shape) if (o := outputs[m]).numel() == after.numel() else o for m in wide}  # OPT
        found = _adding_up(before, after, rows, rounding(model.dtype))
        if found is None:
            raise ArchitectureError(
                f"{type(model).__name__}: what writes to the residual stream {what} is not a sum of the outputs of "
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
    """The modules whose outputs, added to what was before, give what is after: the best of all small groups.

    The best and not the first that is within rounding: beside a stream with large values, a module that writes little
    would not be missed.
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


@torch.no_grad()
def _run(
    model: PreTrainedModel, tokens: torch.Tensor, watched: Iterable[nn.Module], layers: Iterable[nn.Module]
) -> tuple[dict[nn.Module, torch.Tensor], dict[nn.Module, torch.Tensor]]:
    """The outputs of modules and the inputs of layers in one forward pass, in fp32."""
    outputs: dict[nn.Module, torch.Tensor] = {}
    inputs: dict[nn.Module, torch.Tensor] = {}

    def keep_output(module: nn.Module, given: Any, output: Any) -> None:
        outputs[module] = _copy(first_tensor(output))

    def keep_input(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs[module] = _copy(given[0] if given else named["hidden_states"])

    handles = [module.register_forward_hook(keep_output) for module in watched]
    handles += [layer.register_forward_pre_hook(keep_input, with_kwargs=True) for layer in layers]
    try:
        with evaluating(model):
            model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return outputs, inputs


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """In fp32 on the CPU; always a copy, because some layers (Falcon's) add in place to what a module returned."""
    return tensor.detach().to("cpu", torch.float32, copy=True)
