"""What a running model is doing right now: the forward call under way, and the generation it belongs to.

Decoder layers are told little about positions: masks arrive fused, and only `generate` knows where the prompt ends. So
while somebody needs positions, a tracker listens at three places of the model:

- `_prepare_model_inputs`, which `generate` calls once, tells the length of the prompt;
- `prepare_inputs_for_generation`, which it calls before each forward call, announces that call: the very tensor of
  tokens that the call will be given, the 2-D mask and the whole sequence so far;
- the forward call of the model and of its decoder says what it was given. A call with the announced tensor is the
  generation's own. Any other call is judged by its own arguments, also where a logits processor makes it.

Nothing is guessed: where the arguments of a call disagree or do not tell, `ForwardCall.unknown` holds the reason, and
whoever asks for a position gets it as a `PositionError`. The last release undoes all of it.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.decoder import TOKEN_ARGUMENTS, find_decoder, transformers_model
from rotalabs_steer.errors import PositionError
from rotalabs_steer.positions import ForwardCall, forward_call

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    from torch import nn

_TRACKERS: weakref.WeakKeyDictionary[nn.Module, CallTracker] = weakref.WeakKeyDictionary()
_TRACKERS_LOCK = threading.RLock()
_CACHE_NAMES = ("past_key_values", "past_key_value", "past_buckets_states", "cache_params", "state")
_PACKING_NAMES = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "seq_idx")
"""Arguments that say where sequences begin which share one row."""
_CALLBACK_MODULES = ("transformers.generation.logits_process", "transformers.generation.stopping_criteria")
"""What `generate` lets look at each step, and what may call the model on a sequence of its own."""

_PACKED = (
    "Several sequences share one row of this call (continuous batching, or packed training data), so the first and "
    "last tokens of each cannot be told. Use the scope 'all', or pass each sequence as a row of its own."
)
_FUSED_MASK = (
    "The attention mask of this call is not of shape [batch, length], so padding cannot be told from text. Pass a "
    "[batch, length] attention_mask, or use the scope 'all'."
)
_COUNTLESS = (
    "The cache of this call does not tell how many tokens it holds. Use model.generate, pass an attention_mask that "
    "covers the whole sequence, or use the scope 'all'."
)
_ELSEWHERE = (
    "The model was called inside `generate`, but not by the generation loop of the model that was attached to, so the "
    "end of the prompt is unknown. Attach to the whole model that generates, prepare each call with "
    "model.prepare_inputs_for_generation, or use the scope 'all'."
)


@dataclass
class _Generation:
    """One `generate` call: its prompt, and what was found out about its rows.

    Attributes:
        embedded: columns of the sequence that `generate` was given as embeddings only, so that they have no ids.
    """

    prompt_columns: int | None = None
    prompt_ids: torch.Tensor | None = None
    embedded: int = 0
    memory: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Announcement:
    """The forward call that a generation is about to make."""

    generation: _Generation
    tokens: torch.Tensor
    mask: torch.Tensor | None
    sequence: torch.Tensor | None
    layers_seen: set[int] = field(default_factory=set)

    def ids_up_to(self, columns: int, rows: int) -> torch.Tensor | None:
        """The sequence as far as the call sees it. Chunked prefill shows the whole prompt only when it begins."""
        if self.generation.embedded:
            return None
        for ids in (self.sequence, self.generation.prompt_ids):
            if ids is not None and ids.shape[1] >= columns:
                return ids[:, :columns].repeat_interleave(max(rows // ids.shape[0], 1), dim=0)
        return None

    def columns_so_far(self) -> int | None:
        """Length of the sequence including this call, by what `generate` keeps; None for a chunk of a prompt."""
        if self.mask is not None:
            return self.mask.shape[1]
        if self.sequence is None:
            return None
        columns = self.generation.embedded + self.sequence.shape[1]
        return columns if columns >= (self.generation.prompt_columns or 0) else None


@dataclass(frozen=True, eq=False)
class CallArguments:
    """What the forward call of a decoder was given, as far as positions can be read off it.

    Attributes:
        tokens: ids `[batch, columns]`, or embeddings `[batch, columns, hidden]`.
        rows: sequences in the call; less than the rows of `tokens` where a sequence has several codebooks.
        mask: `[batch, length]`, or None.
        position_ids: as passed, or None.
        cached: columns in the cache; None where it does not count them.
        unknown: why positions cannot be known from these arguments, or None.
    """

    tokens: torch.Tensor
    rows: int
    mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    cached: int | None
    unknown: str | None


class _Local(threading.local):
    """What one thread is in.

    Attributes:
        generations: the `generate` calls under way, by `_generation_key`.
        announced: the call that a generation has announced last.
        own: the announcement of the model's call under way, where it is a generation's own.
        model_arguments: what the whole model was given, while its decoder runs.
        arguments: what the decoder was given, in code that is being compiled.
        call: the decoder's call under way, in code that is not.
        calls: finished calls of the decoder.
    """

    def __init__(self) -> None:
        self.generations: dict[int | None, _Generation] = {}
        self.announced: _Announcement | None = None
        self.own: _Announcement | None = None
        self.model_arguments: dict[str, Any] | None = None
        self.arguments: CallArguments | None = None
        self.call: ForwardCall | None = None
        self.calls = 0


class CallTracker:
    """Knows the forward call that a model is in, per thread. Get one with `CallTracker.of(model)`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(transformers_model(model))
        self._decoder = weakref.ref(find_decoder(model)[0])
        self.local = _Local()
        self.calls = 0
        self.refusal: tuple[threading.Thread, PositionError] | None = None
        self._users = 0
        self._patched: list[tuple[nn.Module, str, Any]] = []

    @classmethod
    def of(cls, model: nn.Module) -> CallTracker:
        """The one tracker of this model."""
        inner = transformers_model(model)
        with _TRACKERS_LOCK:
            if inner not in _TRACKERS:
                _TRACKERS[inner] = cls(model)
            return _TRACKERS[inner]

    def acquire(self) -> None:
        """Starts listening, unless somebody else made it listen already."""
        with _TRACKERS_LOCK:
            self._users += 1
            if self._users == 1:
                self._listen()

    def release(self) -> None:
        """Undoes one `acquire`; the last one leaves the model as it was."""
        with _TRACKERS_LOCK:
            self._users -= 1
            if self._users == 0:
                self._stop_listening()

    def current(self) -> ForwardCall:
        """The forward call that this thread is in.

        Raises:
            PositionError: the layer runs outside a forward call of its decoder.
        """
        call: ForwardCall | None = self.local.call
        arguments: CallArguments | None = self.local.arguments
        if call is None and arguments is not None:  # the compiler has left a layer out of the decoder's code
            announced: _Announcement | None = self.local.announced
            own = announced is not None and announced.tokens is arguments.tokens
            return self.describe(arguments, announced if own else None)
        if call is None:
            raise PositionError(
                "A decoder layer ran outside the decoder's forward call (called directly, or recomputed by gradient "
                "checkpointing), so the positions of its tokens are unknown. Call the whole model, with gradient "
                "checkpointing off."
            )
        return call

    def describe(self, arguments: CallArguments, announcement: _Announcement | None) -> ForwardCall:
        """The forward call of these arguments: a generation's own where it was announced, else one by itself."""
        columns, mask, unknown = arguments.tokens.shape[1], arguments.mask, arguments.unknown
        generation = None if announcement is None else announcement.generation
        if announcement is None:
            end = None if mask is None else mask.shape[1]
            if mask is not None and arguments.cached is not None and end != arguments.cached + columns:
                unknown = (
                    f"The attention mask covers {end} columns, but the cache holds {arguments.cached} and the call has "
                    f"{columns}, so positions are unknown. Pass a mask that covers the cache and the call together."
                )
            if unknown is None and _inside_generate():
                unknown = _ELSEWHERE
        else:
            mask = announcement.mask if mask is None else mask
            unknown = None if unknown == _FUSED_MASK else unknown  # `generate` fuses masks for static caches itself
            end = announcement.columns_so_far() if mask is None else mask.shape[1]
        if end is None and arguments.cached is not None:
            end = arguments.cached + columns
        if end is None:
            end, unknown = columns, unknown or _COUNTLESS
        if announcement is not None:
            ids = announcement.ids_up_to(end, arguments.rows)
        else:
            ids = arguments.tokens if arguments.tokens.dim() == 2 and end == columns else None
        if generation is not None and generation.prompt_columns is None:
            generation.prompt_columns = end
        return forward_call(
            arguments.rows,
            columns,
            offset=end - columns,
            mask=mask,
            ids=ids if ids is not None and ids.shape[0] == arguments.rows else None,
            prompt_columns=None if generation is None else generation.prompt_columns,
            memory=None if generation is None else generation.memory,
            position_ids=arguments.position_ids if generation is None else None,
            unknown=unknown,
        )

    def describe_compiled(self, arguments: CallArguments, layer: int) -> ForwardCall:
        """The forward call that compiled code is in when it comes to a layer.

        Compiled code copies tensors, so the announced call is known by its shape, and each layer sees it once.
        """
        announced: _Announcement | None = self.local.announced
        if announced is not None:
            if announced.tokens.shape[:2] == arguments.tokens.shape[:2] and layer not in announced.layers_seen:
                announced.layers_seen.add(layer)
            else:
                announced = None
        return self.describe(arguments, announced)

    def _listen(self) -> None:
        model, decoder = self._model(), self._decoder()
        assert model is not None
        assert decoder is not None
        if decoder is not model:
            self._patch(model, "forward", self._around_model)
        self._patch(decoder, "forward", functools.partial(self._around_decoder, decoder))
        for module in _modules_around(decoder, model):  # some models leave generating to a part of theirs
            self._patch(module, "_prepare_model_inputs", self._begin_generation)
            self._patch(module, "prepare_inputs_for_generation", self._announce)

    def _stop_listening(self) -> None:
        for module, name, replaced in reversed(self._patched):
            if replaced is None:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = replaced
        self._patched.clear()

    def _patch(self, module: nn.Module, name: str, around: Callable[..., Any]) -> None:
        """Puts `around` in front of a method of this one module, on top of what somebody else has put there."""
        original = getattr(module, name, None)
        if original is None:
            return

        @functools.wraps(original)
        def patched(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        self._patched.append((module, name, module.__dict__.get(name)))
        module.__dict__[name] = patched

    def _begin_generation(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        more = given.get("model_kwargs") or {}
        generation = _Generation()
        if not self._is_encoder_decoder():  # else these are the inputs of the encoder
            embeddings, mask = more.get("inputs_embeds"), _two_dimensional(more.get("attention_mask"))
            ids = given.get("inputs") if more.get("input_ids") is None else more["input_ids"]
            generation.prompt_ids = _two_dimensional(ids)
            if embeddings is not None:
                generation.embedded = embeddings.shape[1]
            for tokens in (mask, embeddings, ids):
                if tokens is not None:
                    generation.prompt_columns = tokens.shape[1]
                    break
        key, is_outermost = _generation_key()
        if is_outermost:
            self.local.generations.clear()
        self.local.generations[key] = generation
        return original(*args, **kwargs)

    def _announce(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        inputs = original(*args, **kwargs)
        generation = self.local.generations.get(_generation_key()[0])
        names = ("decoder_input_ids",) if self._is_encoder_decoder() else TOKEN_ARGUMENTS
        tokens = next((inputs[name] for name in names if inputs.get(name) is not None), None)
        if generation is not None and tokens is not None:
            sequence = mask = None
            if not self._is_encoder_decoder():
                sequence = _two_dimensional(args[0] if args else kwargs.get("input_ids"))
                mask = _two_dimensional(kwargs.get("attention_mask"))
            self.local.announced = _Announcement(generation, tokens, mask, sequence)
        return inputs

    def _around_model(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        local = self.local
        if torch.compiler.is_dynamo_compiling():
            local.model_arguments = kwargs
            output = forward(*args, **kwargs)
            local.model_arguments = None
            return output
        local.model_arguments, local.own = kwargs, self._own(args, kwargs)
        try:
            return forward(*args, **kwargs)
        finally:
            local.model_arguments = local.own = None

    def _around_decoder(self, decoder: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        local, arguments = self.local, self._read(decoder, args, kwargs)
        if torch.compiler.is_dynamo_compiling():
            local.arguments = arguments  # the compiled code hands it to its steering operator
            output = forward(*args, **kwargs)
            local.arguments = None
            return output
        if arguments.tokens.is_cuda and torch.cuda.is_current_stream_capturing():
            raise PositionError(
                "A CUDA graph is being captured by hand, and its replays would not run the steering. Use torch.compile "
                "or an uncaptured model (ContinuousBatchingConfig(use_cuda_graph=False) for generate_batch)."
            )
        if local.model_arguments is None:
            local.own = self._own(args, kwargs)
        local.call = self.describe(arguments, local.own)
        try:
            output = forward(*args, **kwargs)
        except PositionError as error:  # a worker thread may tell nobody of it
            self.refusal = (threading.current_thread(), error)
            raise
        finally:
            if local.own is not None:
                local.announced = None
            local.call = None
        self.calls += 1
        local.calls += 1
        return output

    def _own(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Announcement | None:
        """The announcement of this call, where a generation has prepared the very tensor of tokens that it is given."""
        announced: _Announcement | None = self.local.announced
        if announced is None or not any(announced.tokens is value for value in (*args, *kwargs.values())):
            return None
        return announced

    def _read(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallArguments:
        tokens = next(
            (kwargs[name] for name in TOKEN_ARGUMENTS if kwargs.get(name) is not None), args[0] if args else None
        )
        if not isinstance(tokens, torch.Tensor) or tokens.dim() < 2:
            raise PositionError(
                f"{type(decoder).__name__} was called without input_ids or inputs_embeds of shape [batch, length, ...]."
            )
        outer = self.local.model_arguments
        mask_name = "decoder_attention_mask" if self._is_encoder_decoder() else "attention_mask"
        outer_mask = None if outer is None else outer.get(mask_name)
        mask = _two_dimensional(kwargs.get("attention_mask"))
        if mask is None:
            mask = _two_dimensional(outer_mask)
            if mask is not None and mask.shape[1] < tokens.shape[1]:
                mask = (
                    None  # it is about other tokens than the decoder's, such as bytes that were gathered into patches
                )
        asked_mask = kwargs.get("attention_mask") if outer is None else outer_mask
        said = {**(outer or {}), **kwargs}
        unknown, cached = None, _cached_columns(kwargs)
        if any(said.get(name) is not None for name in _PACKING_NAMES):
            unknown = _PACKED
        elif mask is None and asked_mask is not None and _two_dimensional(asked_mask) is None:
            unknown = _FUSED_MASK
        if kwargs.get("decoder_input_ids") is not None:  # a canvas: its cache holds the prompt, not what precedes it
            mask, cached, unknown = None, 0, None
        codebooks = getattr(decoder, "num_codebooks", 1) if tokens.dim() == 2 else 1
        rows = tokens.shape[0] // codebooks  # music decoders take a row of ids for each codebook of a sequence
        return CallArguments(tokens, rows, mask, _two_dimensional(said.get("position_ids")), cached, unknown)

    def _is_encoder_decoder(self) -> bool:
        return bool(getattr(getattr(self._model(), "config", None), "is_encoder_decoder", False))


def _modules_around(decoder: nn.Module, model: nn.Module) -> list[nn.Module]:
    """The model, the decoder, and every module on the way from one to the other."""
    path = next(name for name, module in model.named_modules() if module is decoder)
    names = path.split(".") if path else []
    return [model.get_submodule(".".join(names[:depth])) for depth in range(len(names) + 1)]


def _two_dimensional(tensor: Any) -> torch.Tensor | None:
    return tensor if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 else None


def _cached_columns(kwargs: dict[str, Any]) -> int | None:
    """Columns of the sequence that the cache of this call holds; None where the cache does not tell."""
    cache = next((kwargs[name] for name in _CACHE_NAMES if kwargs.get(name) is not None), None)
    if cache is None:
        return 0
    for name in ("get_seq_length", "get_start_idx"):
        try:
            length = getattr(cache, name, lambda: None)()
        except ValueError:  # transformers' way of saying that all layers are recurrent
            return None if cache.has_previous_state() else 0
        if isinstance(length, torch.Tensor) and torch.compiler.is_compiling():
            return None  # a number on the device, which `generate` knows without looking
        if length is not None:
            return int(length)
    return getattr(cache, "seqlen_offset", None)


@functools.cache
def _generate_code() -> CodeType:
    from transformers import GenerationMixin

    code: CodeType = inspect.unwrap(GenerationMixin.generate).__code__
    return code


def _generation_key() -> tuple[int | None, bool]:
    """What tells the innermost `generate` call on the stack from others, and whether it is the only one.

    The identity of its frame is enough, since each generation begins by replacing what an earlier one left under it.
    """
    frame: FrameType | None = sys._getframe(1)
    found: list[int] = []
    while frame is not None:
        if frame.f_code is _generate_code():
            found.append(id(frame))
        frame = frame.f_back
    return (found[0] if found else None), len(found) <= 1


def _inside_generate() -> bool:
    """Whether a generation loop runs this code, and not what it lets look at each step, such as a logits processor."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _generate_code():
        if frame.f_globals.get("__name__") in _CALLBACK_MODULES:
            return False
        frame = frame.f_back
    return frame is not None
