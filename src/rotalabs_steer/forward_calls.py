"""What a running model is doing right now: the forward call under way, and the generation it belongs to.

Decoder layers are told little about positions: masks arrive fused, cache positions not at all, and the length of
the prompt is known to `generate` alone. So while somebody needs positions, a tracker listens at three places of
the model: `generate`, the model's own forward call, and the decoder's. All of it is undone at the last release.
"""

from __future__ import annotations

import functools
import inspect
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

    from torch import nn
    from torch.utils.hooks import RemovableHandle

_TRACKERS: weakref.WeakKeyDictionary[nn.Module, CallTracker] = weakref.WeakKeyDictionary()
_TRACKERS_LOCK = threading.RLock()
_CACHE_NAMES = ("past_key_values", "past_key_value", "past_buckets_states", "cache_params", "state")


@dataclass
class _Generation:
    """A `generate` call under way in this thread, as far as it has said."""

    prompt_columns: int | None = None
    mask: torch.Tensor | None = None
    ids: torch.Tensor | None = None
    memory: dict[Any, torch.Tensor] = field(default_factory=dict)

    def see_ids(self, ids: torch.Tensor | None) -> None:
        """Keeps the longest sequence seen: chunked prefill shows a chunk at a time, after the whole prompt."""
        if ids is None or self.ids is None or ids.shape[1] >= self.ids.shape[1]:
            self.ids = ids

    def ids_up_to(self, columns: int, batch_size: int) -> torch.Tensor | None:
        """The sequence as far as a call sees it; rows are repeated where `generate` has repeated prompts for beams."""
        if self.ids is None or self.ids.shape[1] < columns:
            return None
        return self.ids[:, :columns].repeat_interleave(max(batch_size // self.ids.shape[0], 1), dim=0)


class _Local(threading.local):
    """What this thread is in."""

    generation: _Generation | None = None
    mask: torch.Tensor | None = None
    call: ForwardCall | None = None
    end: int = 0


class CallTracker:
    """Knows the forward call that a model is in, per thread. Get one with `CallTracker.of(model)`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(transformers_model(model))
        self._decoder = weakref.ref(find_decoder(model)[0])
        self._local = _Local()
        self._users = 0
        self._handles: list[RemovableHandle] = []
        self._patched: list[str] = []

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
        call: ForwardCall | None = self._local.call
        if call is None:
            raise PositionError(
                "A decoder layer ran outside the decoder's forward call (called directly, or recomputed by gradient "
                "checkpointing), so the positions of its tokens are unknown. Call the whole model, with gradient "
                "checkpointing off."
            )
        return call

    def _listen(self) -> None:
        model, decoder = self._model(), self._decoder()
        assert model is not None
        assert decoder is not None
        if decoder is not model:
            self._handles.append(model.register_forward_pre_hook(self._enter_model, with_kwargs=True))
            self._handles.append(model.register_forward_hook(self._leave_model, always_call=True))
        self._handles.append(decoder.register_forward_pre_hook(self._enter_decoder, with_kwargs=True))
        self._handles.append(decoder.register_forward_hook(self._leave_decoder, always_call=True))
        if callable(getattr(model, "generate", None)):
            self._patch(model, "generate", self._around_generate)
            self._patch(model, "prepare_inputs_for_generation", self._around_prepare_inputs)

    def _stop_listening(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        model = self._model()
        for name in self._patched:
            if model is not None:
                model.__dict__.pop(name, None)
        self._patched.clear()

    def _patch(self, model: nn.Module, name: str, around: Callable[..., Any]) -> None:
        original = getattr(model, name, None)
        if original is None or name in model.__dict__:
            return

        @functools.wraps(original)
        def patched(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        model.__dict__[name] = patched
        self._patched.append(name)

    def _around_generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._local.generation is not None:  # the model drafts for itself
            return original(*args, **kwargs)
        self._local.generation = _begin(original, args, kwargs)
        try:
            return original(*args, **kwargs)
        finally:
            self._local.generation = None

    def _around_prepare_inputs(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        generation = self._local.generation
        if generation is not None and not self._is_encoder_decoder():
            generation.mask = _two_dimensional(kwargs.get("attention_mask"))
            generation.see_ids(_two_dimensional(args[0] if args else kwargs.get("input_ids")))
        return original(*args, **kwargs)

    def _enter_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = "decoder_attention_mask" if self._is_encoder_decoder() else "attention_mask"
        self._local.mask = _two_dimensional(kwargs.get(name))

    def _leave_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._local.mask = None

    def _enter_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = (kwargs.get(name) for name in TOKEN_ARGUMENTS)
        tokens = next((value for value in (*named, *args) if value is not None), None)
        if not isinstance(tokens, torch.Tensor) or tokens.dim() < 2:
            raise PositionError(
                f"{type(module).__name__} was called without input_ids or inputs_embeds of shape [batch, length, ...]."
            )
        batch_size, columns = tokens.shape[:2]
        codebooks = getattr(module, "num_codebooks", 1) if tokens.dim() == 2 else 1
        batch_size //= codebooks  # music decoders take a row of ids for each codebook of a sequence
        generation = self._local.generation
        mask = _two_dimensional(kwargs.get("attention_mask"))
        if mask is None:
            mask = self._local.mask
        if mask is None and generation is not None:
            mask = generation.mask
        if mask is not None and mask.shape[1] < columns:
            mask = None
        cached = _cached_columns(kwargs) if mask is None else mask.shape[1] - columns
        if kwargs.get("decoder_input_ids") is not None:  # a canvas: its cache holds the prompt, not what precedes it
            mask, cached = None, 0
        offset = self._local.end if cached is None else cached
        ids = _two_dimensional(tokens) if generation is None else generation.ids_up_to(offset + columns, batch_size)
        if codebooks > 1:
            ids = None
        call = forward_call(
            batch_size,
            columns,
            offset=offset,
            mask=mask,
            ids=ids,
            prompt_columns=None if generation is None else generation.prompt_columns,
            memory=None if generation is None else generation.memory,
        )
        if generation is not None and generation.prompt_columns is None:
            generation.prompt_columns = call.offset + call.columns
        self._local.call = call
        self._local.end = call.offset + call.columns

    def _leave_decoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._local.call = None

    def _is_encoder_decoder(self) -> bool:
        model = self._model()
        return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _two_dimensional(mask: Any) -> torch.Tensor | None:
    return mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None


def _cached_columns(kwargs: dict[str, Any]) -> int | None:
    """Columns of the sequence that the cache of this call holds; None for a recurrent state that does not count.

    Such a state is taken to continue the call before.
    """
    cache_position = kwargs.get("cache_position")
    if isinstance(cache_position, torch.Tensor) and cache_position.numel() > 0:
        return int(cache_position.reshape(-1)[0])
    cache = next((kwargs[name] for name in _CACHE_NAMES if kwargs.get(name) is not None), None)
    if cache is None:
        return 0
    for name in ("get_seq_length", "get_start_idx"):
        try:
            length = getattr(cache, name, lambda: None)()
        except ValueError:  # transformers' way of saying that all layers are recurrent
            return None if cache.has_previous_state() else 0
        if length is not None:
            return int(length)
    return getattr(cache, "seqlen_offset", None)


def _begin(generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Generation:
    """A generation as far as the arguments of `generate` tell; its first forward call tells the rest."""
    model = getattr(generate, "__self__", None)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return _Generation()
    try:
        given = inspect.signature(generate).bind_partial(*args, **kwargs).arguments
    except TypeError:  # generate itself will say what is wrong
        return _Generation()
    given |= given.pop("kwargs", given.pop("model_kwargs", {}))
    ids = next((given[name] for name in ("inputs", "input_ids") if given.get(name) is not None), None)
    ids = ids if isinstance(ids, torch.Tensor) and ids.dim() == 2 and ids.shape[1] > 0 else None
    mask, embeddings = _two_dimensional(given.get("attention_mask")), given.get("inputs_embeds")
    tokens = ids if embeddings is None else embeddings
    columns: int | None = None
    if mask is not None:
        columns = mask.shape[1]
    elif tokens is not None:
        columns = tokens.shape[1] + (_cached_columns(given) or 0)
    return _Generation(prompt_columns=columns, ids=None if embeddings is not None else ids)
