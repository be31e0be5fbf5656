"""What must hold for an architecture to be steerable, each as a function that returns or says what is wrong.

A check is not applicable where the model itself, unsteered, lacks the property: that is measured, never listed.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from architectures.extra_inputs import extra_inputs
from architectures.parts import IN_TWO_MODULES, NO_SUM, SINGLE_PART, THIRD_PARTS
from architectures.sizes import DECODER_LAYERS
from rotalabs_steer import ActivationInjector, SteeringVector, extract_activations
from rotalabs_steer.errors import ArchitectureError
from rotalabs_steer.extraction.forward_pass import read_activations
from rotalabs_steer.model.batching import plan_batches
from rotalabs_steer.model.decoder import decoder_layers, hidden_size
from tiny import count_hooks

if TYPE_CHECKING:
    from collections.abc import Callable

MODES = ("all", "first", "last")
SHORT, LONG = 5, 8
STRENGTH = 1.5
NEW_TOKENS = 4
TOLERANCE = {"atol": 2e-4, "rtol": 1e-3}


class NotApplicable(Exception):  # noqa: N818  # not an error
    """The unsteered model lacks the property that a check is about."""


@dataclass
class Subject:
    """A model under test and how it is called."""

    model: torch.nn.Module
    layer: int = field(init=False)

    def __post_init__(self) -> None:
        self.layer = len(decoder_layers(self.model)) // 2

    @property
    def encodes(self) -> bool:
        config = self.model.config
        return config.is_encoder_decoder or config.model_type == "diffusion_gemma"

    @property
    def sees_patches(self) -> bool:
        """Whether the layers see patches of bytes; a byte's logits come from the patch before its own."""
        return self.model.config.model_type == "blt"

    @property
    def mask_name(self) -> str:
        """What the forward call calls the mask of the steered tokens; a canvas of block diffusion has none."""
        if self.model.config.model_type == "diffusion_gemma":
            return "none"
        return "decoder_attention_mask" if self.encodes else "attention_mask"

    @property
    def last(self) -> int:
        return len(decoder_layers(self.model)) - 1

    @property
    def width(self) -> int:
        return hidden_size(self.model)

    @property
    def codebooks(self) -> int:
        """Rows of ids that make one sequence: music decoders take a row for each codebook."""
        return getattr(self.model, "num_codebooks", 1) if "Musicgen" in type(self.model).__name__ else 1

    def rows(self) -> list[torch.Tensor]:
        """A short and a long sequence of ordinary tokens."""
        generator = torch.Generator().manual_seed(1)
        return [torch.randint(10, 60, (length,), generator=generator) for length in (SHORT, LONG)]

    def batch(self) -> torch.Tensor:
        """Two sequences without padding."""
        long = self.rows()[1]
        return torch.stack([long, long.flip(0)])

    def inputs(self, ids: torch.Tensor, mask: torch.Tensor | None = None, positions: bool = False) -> dict[str, Any]:
        """Arguments of a forward call; an encoder-decoder gets them on its decoder's side."""
        mask = torch.ones_like(ids) if mask is None else mask
        prefix = "decoder_" if self.encodes else ""
        inputs: dict[str, Any] = {
            f"{prefix}input_ids": ids.repeat_interleave(self.codebooks, dim=0),
            self.mask_name: mask,
        }
        if positions:
            inputs[f"{prefix}position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return self._accepted(inputs) | extra_inputs(self.model, ids, self.width)

    def takes(self, name: str) -> bool:
        parameters = inspect.signature(self.model.forward).parameters
        return name in parameters

    def _accepted(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in inputs.items() if self.takes(name)}

    @torch.no_grad()
    def logits(self, **inputs: Any) -> torch.Tensor:
        """`[batch, seq, ...]`; the codebooks of a music decoder side by side."""
        torch.manual_seed(0)
        output = self.model(**inputs)
        logits = output[0] if getattr(output, "logits", None) is None else output.logits
        return logits.unflatten(0, (-1, self.codebooks)).movedim(1, 2).flatten(2)

    def vector(self, scale: float = 1.0) -> SteeringVector:
        generator = torch.Generator().manual_seed(3)
        return SteeringVector("test", self.layer, torch.randn(self.width, generator=generator) * scale, "tiny")

    def steered(self, mode: str) -> ActivationInjector:
        return ActivationInjector(self.model, self.vector(), strength=STRENGTH, injection_mode=mode)

    @torch.no_grad()
    def layer_outputs(self, **inputs: Any) -> dict[int, torch.Tensor]:
        """What each decoder layer that ran handed on, read with hooks of this test."""
        outputs: dict[int, torch.Tensor] = {}

        def keep(index: int) -> Callable[..., None]:
            return lambda module, args, output: outputs.update({index: _tensor(output).clone()})

        handles = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(decoder_layers(self.model))]
        try:
            self.logits(**inputs)
        finally:
            for handle in handles:
                handle.remove()
        return outputs

    def streams(self, hidden: torch.Tensor, tokens: torch.Size) -> torch.Tensor:
        """A layer's output as `[streams, batch, seq, hidden]`, in whatever order the model keeps them.

        Batch, sequence, streams and hidden have different sizes in these tests, so shapes tell. Virtual tokens before
        the sequence are left out.
        """
        if hidden.shape[-1] > self.width:
            hidden = hidden.unflatten(-1, (-1, self.width))
        batch, seq = tokens
        if self.sees_patches:
            return hidden.unsqueeze(0)
        rows = hidden.shape.index(batch)
        columns = 1 - rows if hidden.dim() == 3 else hidden.shape.index(seq)
        hidden = hidden.movedim([rows, columns], [0, 1])
        if hidden.shape[1] > seq and hidden.shape[1] % seq == 0:
            hidden = hidden.unflatten(1, (-1, seq)).movedim(1, 2)
        hidden = hidden[:, -seq:]
        return hidden.unsqueeze(0) if hidden.dim() == 3 else hidden.movedim(2, 0)

    def captured(self, streams: torch.Tensor) -> torch.Tensor:
        """What is captured of several streams: their mean, or the one that `output_hidden_states` shows."""
        return streams[0] if self.model.config.model_type == "prophetnet" else streams.mean(dim=0)


def check_shapes(subject: Subject) -> None:
    """As many layers as configured, and vectors as wide as the streams that they return."""
    found = len(decoder_layers(subject.model))
    assert found == DECODER_LAYERS, f"{found} layers found, {DECODER_LAYERS} configured"
    outputs = subject.layer_outputs(**subject.inputs(subject.batch()))
    assert subject.layer in outputs, f"layer {subject.layer} of {found} did not run"
    for index, output in outputs.items():
        width = subject.streams(output, subject.batch().shape).shape[-1]
        assert width == subject.width, f"layer {index} is {width} wide, hidden_size says {subject.width}"


def check_capture(subject: Subject) -> None:
    """Captured activations are what the layers return, and what `output_hidden_states` shows."""
    ids = subject.batch()
    inputs = subject.inputs(ids)
    outputs = {index: subject.streams(o, ids.shape) for index, o in subject.layer_outputs(**inputs).items()}
    torch.manual_seed(0)
    captured = extract_activations(subject.model, inputs, list(outputs), token_position="all")
    for index, output in outputs.items():
        _equal(captured[index], subject.captured(output), f"layer {index} and its own output")
    shown = [subject.streams(hidden, ids.shape) for hidden in _hidden_states(subject, inputs, ids.shape)]
    shown = [hidden for hidden in shown if hidden.shape[1:] == outputs[0].shape[1:]]
    offset = next((o for o in range(len(shown)) if _close(shown[o][0], outputs[0][0])), None)
    assert offset is not None or not shown, "layer 0 is in no hidden state"
    for number, (index, output) in enumerate(outputs.items()):
        if index < subject.last and shown:
            other = shown[number + offset]
            _equal(output[: len(other)], other, f"layer {index} and hidden_states")


def check_parts(subject: Subject) -> None:
    """The stream before a layer plus what its attention and mlp add is the stream after; else a part is refused."""
    ids = subject.batch()
    inputs = subject.inputs(ids)
    found, refused = 0, set()
    for index, layer in enumerate(decoder_layers(subject.model)):
        added, call = {}, _watch(subject, layer, inputs)
        for component in ("attn", "mlp"):
            try:
                torch.manual_seed(0)
                added[component] = extract_activations(subject.model, inputs, [index], component, "all")[index]
            except ArchitectureError:
                refused.add((type(layer).__name__, component))
        third = THIRD_PARTS.get(type(layer).__name__, ())
        if added and type(layer).__name__ not in IN_TWO_MODULES:
            others = sum(_flat(call[name], ids.shape) for name in third if call.get(name) is not None)
            before, after = (subject.streams(call[name], ids.shape)[0] for name in ("before", "after"))
            _equal(
                before + sum(added.values()) + others, after, f"layer {index}: before + {' + '.join(added)} and after"
            )
            found += 1
    unexpected = {name for name, _ in refused} - {*NO_SUM, *SINGLE_PART, *IN_TWO_MODULES}
    assert not unexpected, f"parts of {sorted(unexpected)} are refused"
    if refused and refused <= {(name, "mlp") for name in IN_TWO_MODULES}:
        raise NotApplicable("its mlp is the sum of two modules and is refused")
    if not found:
        raise NotApplicable(f"refused: {NO_SUM[next(name for name, _ in refused)]}")


def _watch(subject: Subject, layer: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What goes into a layer, out of it, and out of its modules, in one call."""
    seen: dict[str, torch.Tensor] = {}

    def before(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = (*args, kwargs.get("hidden_states"), *kwargs.values())
        seen["before"] = next(one for one in given if isinstance(one, torch.Tensor)).clone()

    def keep(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) or (isinstance(output, tuple) and isinstance(output[0], torch.Tensor)):
                seen[name] = _tensor(output).clone()

        return hook

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(keep("after"))]
    handles += [module.register_forward_hook(keep(name)) for name, module in layer.named_modules() if name]
    try:
        subject.logits(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _flat(hidden: torch.Tensor, tokens: torch.Size) -> torch.Tensor:
    return hidden.reshape(*tokens, -1)


def check_extraction(subject: Subject) -> None:
    """Texts read in batches have the mean activations that each has alone, at every layer."""
    rows = subject.rows()
    texts = [row.tolist() for row in (*rows, torch.cat([rows[0], rows[1][:2]]))]
    if subject.sees_patches:
        raise NotApplicable("its layers see patches of bytes, not tokens")
    if subject.encodes or extra_inputs(subject.model, rows[0][None], subject.width) or subject.codebooks > 1:
        raise NotApplicable("extraction is for models that take text alone, without an encoder")
    alone = [subject.layer_outputs(**subject.inputs(torch.tensor([text]))) for text in texts]
    layers = sorted(alone[0])
    found: dict[int, torch.Tensor] = {}

    def receive(indices: list[int], activations: torch.Tensor) -> None:
        found.update(zip(indices, activations[:, 0].unbind(dim=1), strict=True))

    def weights(index: int) -> list[torch.Tensor]:
        return [torch.full((len(texts[index]),), 1 / len(texts[index]))]

    places = [(layer, "residual") for layer in layers]
    read_activations(subject.model, texts, plan_batches(subject.model, texts), places, weights, receive)
    for index, text in enumerate(texts):
        for number, layer in enumerate(layers):
            streams = subject.streams(alone[index][layer], torch.Size((1, len(text))))
            _equal(found[index][number], subject.captured(streams)[0].mean(dim=0), f"text {index} at layer {layer}")


def check_injection(subject: Subject) -> None:
    """The vector arrives at the tokens that are meant, at no other, and changes the logits."""
    short, long = subject.rows()
    ids = torch.stack([torch.cat([torch.zeros(LONG - SHORT, dtype=torch.long), short]), long])
    mask = (ids != 0).long()
    inputs = subject.inputs(ids, mask)
    told = subject.takes(subject.mask_name) and not subject.sees_patches
    starts = (LONG - SHORT, 0) if told else (0, 0)
    columns = {"all": slice(None), "first": slice(0, 1), "last": slice(-1, None)}
    plain, plain_logits = subject.layer_outputs(**inputs)[subject.layer], subject.logits(**inputs)
    for mode in MODES:
        with subject.steered(mode):
            moved = subject.layer_outputs(**inputs)[subject.layer] - plain
            changed = subject.logits(**inputs) - plain_logits
        streams = subject.streams(moved, ids.shape)
        expected = torch.zeros(*streams.shape[1:3], 1)
        for row, start in enumerate(starts):
            expected[row, start:][columns[mode]] = 1.0
        wanted = (expected * STRENGTH * subject.vector().vector).expand_as(streams)
        _equal(streams, wanted, f"shift in mode {mode!r}", atol=1e-4)
        assert streams.numel() == moved.numel() or _close(streams.sum(), moved.sum()), "virtual tokens were moved"
        assert changed.abs().max() > 1e-5 or subject.sees_patches, f"mode {mode!r} leaves the logits as they were"


def check_restore(subject: Subject) -> None:
    """Afterwards nothing is left: no hook, no replaced method, the same logits bit for bit."""
    inputs = subject.inputs(subject.batch())
    hooks, plain = count_hooks(subject.model), subject.logits(**inputs)
    with subject.steered("all"):
        subject.logits(**inputs)
    assert torch.equal(subject.logits(**inputs), plain), "logits differ after leaving"
    assert count_hooks(subject.model) == hooks, f"{count_hooks(subject.model) - hooks} hooks are left"


def check_cache(subject: Subject) -> None:
    """Cached generation has the logits of uncached generation, in every mode."""
    try:
        plain = [_generate(subject, use_cache) for use_cache in (True, False)]
    except Exception as error:
        raise NotApplicable(f"not tested, generate refuses these inputs: {_first_line(error)}") from error
    if not _close(*plain):
        raise NotApplicable("unsteered, the cache changes its logits")
    for mode in MODES:
        with subject.steered(mode):
            cached, uncached = [_generate(subject, use_cache) for use_cache in (True, False)]
        _equal(cached, uncached, f"cached and uncached logits in mode {mode!r}")


def check_padding(subject: Subject, side: str) -> None:
    """A row in a padded batch has the logits that it has alone, in every mode."""
    if not subject.takes(subject.mask_name):
        raise NotApplicable("takes no attention mask")
    try:
        positions = next((p for p in (True, False) if _close(*_padded_and_alone(subject, side, p))), None)
    except Exception as error:
        raise NotApplicable(f"not tested, the model refuses this padded batch: {_first_line(error)}") from error
    if positions is None:
        raise NotApplicable(f"unsteered, padding on the {side} changes its logits")
    for mode in MODES:
        with subject.steered(mode):
            padded, alone = _padded_and_alone(subject, side, positions)
        _equal(padded, alone, f"padded and single logits in mode {mode!r}")


CHECKS: dict[str, Callable[[Subject], None]] = {
    "shapes": check_shapes,
    "capture": check_capture,
    "parts": check_parts,
    "extraction": check_extraction,
    "injection": check_injection,
    "restore": check_restore,
    "cache": check_cache,
    "left padding": lambda subject: check_padding(subject, "left"),
    "right padding": lambda subject: check_padding(subject, "right"),
}


def _generate(subject: Subject, use_cache: bool) -> torch.Tensor:
    torch.manual_seed(0)
    result = subject.model.generate(
        **subject.inputs(subject.batch()[:1]),
        use_cache=use_cache,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(result.logits)


def _padded_and_alone(subject: Subject, side: str, positions: bool) -> tuple[torch.Tensor, torch.Tensor]:
    short, long = subject.rows()
    padding = torch.zeros(LONG - SHORT, dtype=torch.long)
    ids = torch.stack([torch.cat([padding, short] if side == "left" else [short, padding]), long])
    mask = torch.ones_like(ids)
    mask[0] = (ids[0] != 0).long()
    padded = subject.logits(**subject.inputs(ids, mask, positions))
    real = padded[0, -SHORT:] if side == "left" else padded[0, :SHORT]
    alone = [subject.logits(**subject.inputs(row[None]))[0] for row in (short, long)]
    return torch.cat([real, padded[1]]), torch.cat(alone)


def _hidden_states(subject: Subject, inputs: dict[str, Any], tokens: torch.Size) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        output = subject.model(**inputs, output_hidden_states=True)
    shown = getattr(output, "decoder_hidden_states", None) or getattr(output, "hidden_states", None) or ()
    return [hidden for hidden in shown if set(tokens) <= set(hidden.shape)]


def _tensor(output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    return output.hidden_states if hasattr(output, "hidden_states") else output[0]


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, **TOLERANCE)


def _equal(one: torch.Tensor, other: torch.Tensor, what: str, **tolerance: float) -> None:
    assert one.shape == other.shape, f"{what}: shapes {list(one.shape)} and {list(other.shape)}"
    assert torch.allclose(one, other, **(TOLERANCE | tolerance)), (
        f"{what} differ by up to {(one - other).abs().max():.3g} (values up to {other.abs().max():.3g})"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:100]
