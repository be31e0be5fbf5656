"""The parts of decoder layers that write to the residual stream, each as what it adds there.

What a module called `mlp` or `self_attn` returns is not always that: a norm (Gemma-2) or a multiplier (Granite) may
follow, or the module adds the stream itself (BLOOM). So names only suggest candidates. One short call of the model
shows which modules add up to the difference between a layer's output and its input. A layer without such modules is
refused.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rotalabs_steer.errors import ArchitectureError
from rotalabs_steer.model.architectures import architecture_table
from rotalabs_steer.model.decoder import (
    check_component,
    decoder_layers,
    find_decoder,
    input_device,
    layer_part,
    part_names,
    text_config,
    transformers_model,
)
from rotalabs_steer.model.inference import INPUT_ERRORS, probing
from rotalabs_steer.model.layer_outputs import ResidualLayout, first_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jaxtyping import Float
    from torch.utils.hooks import RemovableHandle

_ROWS, _COLUMNS = 2, 5
_MOST_ROUNDING = 8.0
"""Largest mean square error of a sum that counts as equal, in units of the error that rounding to the dtype makes."""
_LEAST_FACTOR = 1e-3  # a fitted factor below this means that the module does not contribute


@dataclass(frozen=True)
class LayerPart:
    """A module of a layer, and the factor that scales its output before it is added to the residual stream."""

    module: nn.Module
    factor: float = 1.0

    def added(
        self, output: Any, layout: ResidualLayout, rows: int, columns: int
    ) -> Float[torch.Tensor, "batch seq hidden"]:
        """What this part adds to the residual stream, from what its module returned in a call."""
        tokens = _by_token(first_tensor(output), layout, rows, columns)
        return tokens if self.factor == 1.0 else tokens * self.factor


def find_parts(model: nn.Module, layer_indices: Sequence[int], component: str) -> dict[int, LayerPart]:
    """The part of each of these layers that is `component`: "residual" (the layer itself), "mlp" or "attn".

    For "mlp" and "attn" the model is run once, on ten tokens.

    Raises:
        OptionError: unknown component.
        ArchitectureError: a layer has no such part, or its parts do not add up to the change that it makes.
    """
    check_component(component)
    layers = decoder_layers(model)
    if component == "residual":
        return {index: LayerPart(layers[index]) for index in layer_indices}
    for index in layer_indices:
        layer_part(layers[index], component)
    calls = _record(model, layer_indices)
    layout = ResidualLayout.of(model)
    multiplier = getattr(text_config(transformers_model(model)), "residual_multiplier", 1.0)  # Granite's name
    return {index: calls[index].part(component, layout, multiplier) for index in layer_indices}


@dataclass
class _LayerCall:
    """One call of a layer: its input, and the hidden states that its modules returned, by name; "" is the layer."""

    layer: nn.Module
    before: torch.Tensor | None = None
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)

    def part(self, component: str, layout: ResidualLayout, multiplier: float) -> LayerPart:
        """The module that adds what `component` adds, found by trying which sums equal the change of the layer.

        Sums without factors come first, then those with the configuration's multiplier, then those with fitted factors.
        """
        outputs = {name: _read(output, layout) for name, output in self.outputs.items()}
        read = {name: hidden for name, hidden in outputs.items() if hidden is not None}
        before, after = _read(self.before, layout), read.get("")
        if before is not None and after is not None:
            eps = torch.finfo(self.outputs[""].dtype).eps
            for known, names in itertools.product((1.0, multiplier, None), _candidates(self.layer, read)):
                terms = [read[name] for name in names.values()]
                factors = _best_factors(after - before, terms) if known is None else [known] * len(terms)
                added = [factor * term for factor, term in zip(factors, terms, strict=True)]
                # Rounding a number x to a dtype makes an error with a variance of up to (eps x)² / 12.
                rounding = sum((one.square() for one in (before, after, *added)), torch.tensor(1e-30)) * eps**2 / 12
                error = float(((after - sum(added, before)).square() / rounding).mean())
                # An MLP beside a shared MLP is only one part of what the layer's MLPs add.
                is_whole = component in names and (component, names.get("beside")) != ("mlp", "shared_mlp")
                if error <= _MOST_ROUNDING and min(map(abs, factors)) > _LEAST_FACTOR and is_whole:
                    factor = factors[list(names).index(component)]
                    return LayerPart(self.layer.get_submodule(names[component]), factor)
        raise ArchitectureError(
            f"It is unknown what the {component!r} of {type(self.layer).__name__} adds to the residual stream: no "
            "modules of this layer add up to the difference between its output and its input (a norm after the sum, "
            "several residual streams or further parts are the usual reasons). Use component='residual'."
        )


def _read(hidden: torch.Tensor | None, layout: ResidualLayout) -> torch.Tensor | None:
    """A hidden state as `[batch, seq, hidden]` in fp64 on the CPU; None where it has another shape."""
    if hidden is None:
        return None
    try:
        return _by_token(hidden, layout, _ROWS, _COLUMNS).to("cpu", torch.float64)
    except ArchitectureError:
        return None


def _by_token(hidden: torch.Tensor, layout: ResidualLayout, rows: int, columns: int) -> torch.Tensor:
    if hidden.shape == (rows * columns, layout.width):  # OPT, Llama 4: one row for each token
        hidden = hidden.view(rows, columns, layout.width)
    return layout.tokens(hidden, rows, columns)


def _candidates(layer: nn.Module, read: Mapping[str, torch.Tensor]) -> Iterator[dict[str, str]]:
    """Names of modules that may add up to the change of a layer, by component; the likely combinations come first."""
    table = architecture_table().parts
    names_of = {kind: [*part_names(layer, kind), *table[f"{kind}_behind"]] for kind in ("attn", "mlp")}
    found = {kind: [name for name in names if name in read] for kind, names in names_of.items()}
    beside = [name for name in table["beside"] if name in read]
    # The attention and the MLP are needed where a layer has them; something beside them only where the sum needs it.
    for third, attn, mlp in itertools.product((None, *beside), found["attn"] or (None,), found["mlp"] or (None,)):
        names = {"attn": attn, "mlp": mlp, "beside": third}
        given = {kind: name for kind, name in names.items() if name is not None}
        if given and len(set(given.values())) == len(given):
            yield given


def _best_factors(change: torch.Tensor, terms: Sequence[torch.Tensor]) -> list[float]:
    """The factors with which the sum of the terms comes closest to the change, by least squares."""
    columns = torch.stack([term.flatten() for term in terms], dim=1)
    factors: list[float] = torch.linalg.lstsq(columns, change.flatten()[:, None]).solution[:, 0].tolist()
    return factors


def _record(model: nn.Module, layer_indices: Sequence[int]) -> dict[int, _LayerCall]:
    """Runs the model on a few tokens, and records what these layers do."""
    layers = decoder_layers(model)
    calls = {index: _LayerCall(layers[index]) for index in layer_indices}
    wanted = {"", *itertools.chain.from_iterable(architecture_table().parts.values())}
    handles: list[RemovableHandle] = []
    for call in calls.values():
        keep_input = functools.partial(_keep_input, call)
        handles.append(call.layer.register_forward_pre_hook(keep_input, with_kwargs=True))
        for name, module in call.layer.named_modules():
            if name in wanted:
                keep_output = functools.partial(_keep_output, call, name)
                # The layer's own output is read before steering changes it, which is not something that the layer adds.
                handles.append(module.register_forward_hook(keep_output, prepend=name == ""))
    inner = transformers_model(model)
    try:
        with probing(inner):
            _run(inner)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _run(inner: nn.Module) -> None:
    """Runs the model, or its decoder alone where the model wants more than text."""
    problems = []
    for module in (inner, find_decoder(inner)[0]):
        try:
            module(**_tokens(inner, module))
        except INPUT_ERRORS as error:
            problems.append(str(error))
        else:
            return
    raise ArchitectureError(
        f"{type(inner).__name__} does not run on token ids alone ({problems[0]}), so what the parts of its layers "
        "add to the residual stream cannot be measured. Use component='residual'."
    )


def _keep_input(call: _LayerCall, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = (*args, kwargs.get("hidden_states"), *kwargs.values())
    call.before = next((one.clone() for one in given if isinstance(one, torch.Tensor)), None)


def _keep_output(call: _LayerCall, name: str, module: nn.Module, args: Any, output: Any) -> None:
    with contextlib.suppress(ArchitectureError):  # not every module returns a hidden state
        call.outputs[name] = first_tensor(output).clone()  # what follows may change the output in place


def _tokens(inner: nn.Module, module: nn.Module) -> dict[str, Any]:
    """Ten ordinary tokens as the arguments of a module, for encoder and decoder alike."""
    vocabulary = int(getattr(text_config(inner), "vocab_size", 0) or 32)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(3, vocabulary - 1), min(vocabulary, 1000), (_ROWS, _COLUMNS), generator=generator)
    ids = ids.to(input_device(inner))
    accepted = inspect.signature(module.forward).parameters
    given = {"attention_mask": torch.ones_like(ids), "decoder_input_ids": ids, "use_cache": False}
    codebooks = getattr(inner, "num_codebooks", 1)  # music decoders take a row of ids for each codebook of a sequence
    return {"input_ids": ids.repeat_interleave(codebooks, dim=0)} | {
        name: value for name, value in given.items() if name in accepted
    }
