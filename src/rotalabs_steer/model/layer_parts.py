"""The parts of decoder layers that write to the residual stream, each as what it adds there.

What a module called `mlp` or `self_attn` returns is not always that: a norm may come behind it (Gemma-2), a multiplier
(Granite), or the module adds the stream itself (BLOOM). So nothing is believed by name. One short call of the model
shows which modules add up to what each layer changes; a layer for which none do is refused.
"""

from __future__ import annotations

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
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float
    from torch.utils.hooks import RemovableHandle

_ROWS, _COLUMNS = 2, 5
_MOST_ROUNDING = 8.0
"""Mean square error of a sum, in units of the square that rounding to the model's dtype makes, up to which it holds."""
_LEAST_FACTOR = 1e-3


@dataclass(frozen=True)
class LayerPart:
    """A module of a layer, and what its output is multiplied with before it is added to the residual stream."""

    module: nn.Module
    factor: float = 1.0

    def added(
        self, output: Any, layout: ResidualLayout, rows: int, columns: int
    ) -> Float[torch.Tensor, "batch seq hidden"]:
        """What this part adds to the residual stream, from what its module returned in a call."""
        hidden = first_tensor(output)
        if hidden.shape == (rows * columns, layout.width):  # OPT, Llama 4: all tokens behind each other
            hidden = hidden.view(rows, columns, layout.width)
        tokens = layout.tokens(hidden, rows, columns)
        return tokens if self.factor == 1.0 else tokens * self.factor


def find_parts(model: nn.Module, layer_indices: Sequence[int], component: str) -> dict[int, LayerPart]:
    """The part of each of these layers that is `component`: "residual" (the layer itself), "mlp" or "attn".

    For "mlp" and "attn" the model is run once, on ten tokens.

    Raises:
        OptionError: unknown component.
        ArchitectureError: a layer has no such part, or its parts do not add up to what it changes.
    """
    check_component(component)
    layers = decoder_layers(model)
    if component == "residual":
        return {index: LayerPart(layers[index]) for index in layer_indices}
    for index in layer_indices:
        layer_part(layers[index], component)
    calls = _record(model, layer_indices)
    layout = ResidualLayout.of(model)
    multiplier = getattr(text_config(transformers_model(model)), "residual_multiplier", 1.0)  # as Granite calls it
    return {index: calls[index].part(component, layout, multiplier) for index in layer_indices}


@dataclass
class _LayerCall:
    """What went into a layer, out of it and out of its modules in one call."""

    layer: nn.Module
    before: Any = None
    after: Any = None
    outputs: dict[str, Any] = field(default_factory=dict)

    def part(self, component: str, layout: ResidualLayout, multiplier: float) -> LayerPart:
        """The module that adds what `component` adds, found by trying which sums give what the layer changes.

        Sums of modules as they are come first, then times the multiplier of the configuration, then times any factors.
        """
        before, after = self._read(self.before, layout), self._read(self.after, layout)
        if before is not None and after is not None:
            eps = torch.finfo(first_tensor(self.after).dtype).eps
            for known, names in itertools.product((1.0, multiplier, None), self._candidates(layout)):
                terms = [
                    term for name in names.values() if (term := self._read(self.outputs[name], layout)) is not None
                ]
                factors = _best_factors(after - before, terms) if known is None else [known] * len(terms)
                added = [factor * term for factor, term in zip(factors, terms, strict=True)]
                rounding = sum((one.square() for one in (before, after, *added)), torch.tensor(1e-30)) * eps**2 / 12
                error = float(((after - sum(added, before)).square() / rounding).mean())
                is_whole = component in names and (component, names.get("beside")) != ("mlp", "shared_mlp")
                if error <= _MOST_ROUNDING and min(map(abs, factors)) > _LEAST_FACTOR and is_whole:
                    factor = factors[list(names).index(component)]
                    return LayerPart(self.layer.get_submodule(names[component]), factor)
        raise ArchitectureError(
            f"It cannot be said what the {component!r} of {type(self.layer).__name__} adds to the residual stream: no "
            "modules of this layer add up to the difference between its output and its input (a norm behind the sum, "
            "several residual streams or further parts are the usual reasons). Use component='residual'."
        )

    def _candidates(self, layout: ResidualLayout) -> Iterator[dict[str, str]]:
        """Names of modules that may add up to what the layer changes, by component, the likely ones first."""
        table = architecture_table().parts
        names_of = {kind: [*part_names(self.layer, kind), *table[f"{kind}_behind"]] for kind in ("attn", "mlp")}
        names_of["beside"] = list(table["beside"])
        found = {
            kind: [name for name in names if self._read(self.outputs.get(name), layout) is not None]
            for kind, names in names_of.items()
        }
        choices: list[list[str | None]] = [[*found[kind]] or [None] for kind in ("attn", "mlp")]
        for beside in (None, *found["beside"]):
            for attn, mlp in itertools.product(*choices):
                names = {"attn": attn, "mlp": mlp, "beside": beside}
                given = {kind: name for kind, name in names.items() if name is not None}
                if given and len(set(given.values())) == len(given):
                    yield given

    def _read(self, output: Any, layout: ResidualLayout) -> torch.Tensor | None:
        """As `[batch, seq, hidden]` in fp64 on the CPU; None where it is no such thing."""
        if output is None:
            return None
        try:
            return LayerPart(self.layer).added(output, layout, _ROWS, _COLUMNS).to("cpu", torch.float64)
        except ArchitectureError:
            return None


def _best_factors(change: torch.Tensor, terms: Sequence[torch.Tensor]) -> list[float]:
    """What the terms must be multiplied with to come nearest to the change."""
    columns = torch.stack([term.flatten() for term in terms], dim=1)
    factors: list[float] = torch.linalg.lstsq(columns, change.flatten()[:, None]).solution[:, 0].tolist()
    return factors


def _record(model: nn.Module, layer_indices: Sequence[int]) -> dict[int, _LayerCall]:
    """A call of the model on a few tokens, as these layers saw it.

    Hooks of layers come before all others, so steering is not taken for something that the layer does.
    """
    layers = decoder_layers(model)
    calls = {index: _LayerCall(layers[index]) for index in layer_indices}
    wanted = set(itertools.chain.from_iterable(architecture_table().parts.values()))
    handles: list[RemovableHandle] = []
    for call in calls.values():
        handles.append(call.layer.register_forward_pre_hook(_keep_input(call), with_kwargs=True))
        for name, module in call.layer.named_modules():
            if name in wanted:
                handles.append(module.register_forward_hook(_keep_output(call, name)))
        handles.append(call.layer.register_forward_hook(_keep_after(call), prepend=True))
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


def _keep_input(call: _LayerCall) -> Callable[..., None]:
    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (*args, kwargs.get("hidden_states"), *kwargs.values())
        call.before = next((one.clone() for one in given if isinstance(one, torch.Tensor)), None)

    return keep


def _keep_output(call: _LayerCall, name: str) -> Callable[..., None]:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        call.outputs[name] = _copy(output)

    return keep


def _keep_after(call: _LayerCall) -> Callable[..., None]:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        call.after = _copy(output)

    return keep


def _copy(output: Any) -> torch.Tensor | None:
    """The hidden state of an output, safe from changes in place; None where there is none."""
    try:
        return first_tensor(output).clone()
    except ArchitectureError:
        return None


def _tokens(inner: nn.Module, module: nn.Module) -> dict[str, Any]:
    """Ten ordinary tokens, on either side of an encoder-decoder."""
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
