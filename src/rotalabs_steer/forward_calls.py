"""What a running model is doing right now: the forward call under way, and the tokens that it holds.

Decoder layers are told little about positions: masks arrive fused, and only `generate` knows where the prompt ends. So
while somebody needs positions, a tracker stands around the forward methods of the model and of its decoder, and listens
to what `generate` prepares (`generations.py`). The last release takes all of it off.

Nothing is guessed. Where the arguments of a call disagree, or do not tell, `ForwardCall.unknown` holds the reason, and
whoever asks for a position gets it as a `PositionError`.
"""

from __future__ import annotations

import functools
import threading
import weakref
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.call_arguments import FUSED_MASK, CallArguments, read_arguments
from rotalabs_steer.decoder import find_decoder, transformers_model
from rotalabs_steer.errors import PositionError
from rotalabs_steer.generations import Announcement, Generations, inside_generate
from rotalabs_steer.positions import ForwardCall, forward_call

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

_TRACKERS: weakref.WeakKeyDictionary[nn.Module, CallTracker] = weakref.WeakKeyDictionary()
_TRACKERS_LOCK = threading.RLock()

_COUNTLESS = (
    "The cache of this call does not tell how many tokens it holds. Use model.generate, pass an attention_mask that "
    "covers the whole sequence, or use the scope 'all'."
)
_ELSEWHERE = (
    "The model was called inside `generate`, but not by the generation loop of the model that was attached to, so the "
    "end of the prompt is unknown. Attach to the whole model that generates, prepare each call with "
    "model.prepare_inputs_for_generation, or use the scope 'all'."
)


class _Local(threading.local):
    """What one thread is in.

    Attributes:
        own: the announcement of the call under way, where it is a generation's own.
        model_kwargs: what the whole model was given, while its decoder runs.
        arguments: what the decoder was given, in code that is being compiled.
        call: the decoder's call under way, in code that is not.
        calls: finished calls of the decoder.
    """

    def __init__(self) -> None:
        self.own: Announcement | None = None
        self.model_kwargs: dict[str, Any] | None = None
        self.arguments: CallArguments | None = None
        self.call: ForwardCall | None = None
        self.calls = 0


class CallTracker:
    """Knows the forward call that a model is in, per thread. Get one with `CallTracker.of(model)`.

    Attributes:
        local: what this thread is in.
        calls: finished calls of the decoder, in all threads.
        refusal: the last `PositionError` of a call, and the thread that met it.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = transformers_model(model)
        encoder_decoder = bool(getattr(inner.config, "is_encoder_decoder", False))
        self._model = weakref.ref(inner)
        self._decoder = weakref.ref(find_decoder(model)[0])
        self._mask_name = "decoder_attention_mask" if encoder_decoder else "attention_mask"
        self._generations = Generations(encoder_decoder=encoder_decoder)
        self._users = 0
        self._patched: list[tuple[nn.Module, str, Any]] = []
        self.local = _Local()
        self.calls = 0
        self.refusal: tuple[threading.Thread, PositionError] | None = None

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
            return self.describe(arguments, self._generations.announced(arguments.tokens))
        if call is None:
            raise PositionError(
                "A decoder layer ran outside the decoder's forward call (called directly, or recomputed by gradient "
                "checkpointing), so the positions of its tokens are unknown. Call the whole model, with gradient "
                "checkpointing off."
            )
        return call

    def describe(self, arguments: CallArguments, announcement: Announcement | None) -> ForwardCall:
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
            if unknown is None and inside_generate():
                unknown = _ELSEWHERE
        else:
            mask = announcement.mask if mask is None else mask
            unknown = None if unknown == FUSED_MASK else unknown  # `generate` fuses masks for static caches itself
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
        """The forward call of these arguments, which compiled code is in when it comes to a layer."""
        return self.describe(arguments, self._generations.announced_shape(arguments.tokens, layer))

    def _listen(self) -> None:
        model, decoder = self._model(), self._decoder()
        assert model is not None
        assert decoder is not None
        if decoder is not model:
            self._patch(model, "forward", self._around_model)
        self._patch(decoder, "forward", functools.partial(self._around_decoder, decoder))
        for module in _modules_around(decoder, model):  # some models leave generating to a part of theirs
            self._patch(module, "_prepare_model_inputs", self._generations.begin)
            self._patch(module, "prepare_inputs_for_generation", self._generations.announce)

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

    def _around_model(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        local = self.local
        if torch.compiler.is_dynamo_compiling():
            local.model_kwargs = kwargs
            output = forward(*args, **kwargs)
            local.model_kwargs = None
            return output
        local.model_kwargs, local.own = kwargs, self._generations.announced(*args, *kwargs.values())
        try:
            return forward(*args, **kwargs)
        finally:
            local.model_kwargs = local.own = None

    def _around_decoder(self, decoder: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        local = self.local
        arguments = read_arguments(decoder, args, kwargs, local.model_kwargs, self._mask_name)
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
        if local.model_kwargs is None:
            local.own = self._generations.announced(*args, *kwargs.values())
        local.call = self.describe(arguments, local.own)
        try:
            output = forward(*args, **kwargs)
        except PositionError as error:  # a worker thread may tell nobody of it
            self.refusal = (threading.current_thread(), error)
            raise
        finally:
            if local.own is not None:
                self._generations.end_call()
            local.call = None
        self.calls += 1
        local.calls += 1
        return output


def _modules_around(decoder: nn.Module, model: nn.Module) -> list[nn.Module]:
    """The model, the decoder, and every module on the way from one to the other."""
    path = next(name for name, module in model.named_modules() if module is decoder)
    names = path.split(".") if path else []
    return [model.get_submodule(".".join(names[:depth])) for depth in range(len(names) + 1)]
