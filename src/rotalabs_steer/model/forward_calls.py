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

from rotalabs_steer.errors import PositionError
from rotalabs_steer.model.call_arguments import FUSED_MASK, CallArguments, read_arguments
from rotalabs_steer.model.decoder import find_decoder, transformers_model
from rotalabs_steer.model.generations import Announcement, Generations, inside_generate
from rotalabs_steer.model.patched_methods import PatchedMethod
from rotalabs_steer.model.positions import ForwardCall, forward_call

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
        model_call: what the whole model was given, while its decoder runs, and whether it has an encoder.
        arguments: what the decoder was given, in code that is being compiled.
        call: the decoder's call under way, in code that is not.
        calls: finished calls of the decoder.
    """

    def __init__(self) -> None:
        self.own: Announcement | None = None
        self.model_call: tuple[dict[str, Any], bool] | None = None
        self.arguments: CallArguments | None = None
        self.call: ForwardCall | None = None
        self.calls = 0


class CallTracker:
    """Knows the forward call that a decoder is in, per thread. Get one with `CallTracker.of(model)`.

    A decoder has one tracker, through whichever of the models around it somebody attaches.

    Attributes:
        local: what this thread is in.
        calls: finished calls of the decoder, in all threads.
        refusal: a copy of the last `PositionError` of a call, and the thread that met it.
    """

    def __init__(self, decoder: nn.Module) -> None:
        self._decoder = weakref.ref(decoder)
        self._generations = Generations()
        self._users: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
        self._patches: weakref.WeakKeyDictionary[nn.Module, list[PatchedMethod]] = weakref.WeakKeyDictionary()
        self.local = _Local()
        self.calls = 0
        self.refusal: tuple[threading.Thread, PositionError] | None = None

    @classmethod
    def of(cls, model: nn.Module) -> CallTracker:
        """The one tracker of this model's decoder."""
        decoder = find_decoder(model)[0]
        with _TRACKERS_LOCK:
            if decoder not in _TRACKERS:
                _TRACKERS[decoder] = cls(decoder)
            return _TRACKERS[decoder]

    def acquire(self, model: nn.Module) -> None:
        """Starts listening to the calls of a model, unless somebody else made it listen already."""
        inner, decoder = transformers_model(model), self._decoder()
        assert decoder is not None
        with _TRACKERS_LOCK:
            for module in {inner, decoder}:
                self._users[module] = self._users.get(module, 0) + 1
                if self._users[module] == 1:
                    if module not in self._patches:
                        self._patches[module] = self._make_patches(module, decoder)
                    for patch in self._patches[module]:
                        patch.put()

    def release(self, model: nn.Module) -> None:
        """Undoes one `acquire`; the last one leaves the model as it was."""
        with _TRACKERS_LOCK:
            for module in {transformers_model(model), self._decoder()}:
                if module is None:
                    continue
                self._users[module] -= 1
                if self._users[module] == 0:
                    for patch in reversed(self._patches[module]):
                        patch.remove()

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
            if unknown is None and inside_generate():
                unknown = _ELSEWHERE
        else:
            mask = announcement.mask if mask is None else mask
            unknown = None if unknown == FUSED_MASK else unknown  # `generate` fuses masks for static caches itself
            end = announcement.columns_so_far() if mask is None else mask.shape[1]
            if end is not None and end < columns:  # XLNet and XLM put a token to predict behind the sequence
                mask, end = None, None
        is_checked = end is not None and (announcement is None or announcement.is_first)
        if is_checked and arguments.cached is not None and end != arguments.cached + columns:
            unknown = (
                f"The mask or sequence that is known covers {end} columns, but the cache holds {arguments.cached} and "
                f"the call has {columns}, so positions are unknown. Pass a mask that covers the cache and the call "
                "together."
            )
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
            position_ids=arguments.position_ids,
            prompts=None if generation is None else generation.prompts,
            is_doubled=announcement is not None and announcement.is_doubled,
            unknown=unknown,
        )

    def describe_compiled(self, arguments: CallArguments, layer: int) -> ForwardCall:
        """The forward call of these arguments, which compiled code is in when it comes to a layer."""
        return self.describe(arguments, self._generations.announced_shape(arguments.tokens, layer))

    def _make_patches(self, module: nn.Module, decoder: nn.Module) -> list[PatchedMethod]:
        """What stands around the forward method of the decoder, or of a model with it, and what listens to it."""
        encoder_decoder = bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))
        if module is decoder:
            around = functools.partial(self._around_decoder, weakref.ref(decoder), encoder_decoder)
        else:
            around = functools.partial(self._around_model, encoder_decoder)
        patches = [PatchedMethod(module, "forward", around)]
        begin = functools.partial(self._generations.begin, encoder_decoder)
        announce = functools.partial(self._generations.announce, encoder_decoder)
        for part in _modules_around(decoder, module):  # some models leave generating to a part of theirs
            if hasattr(part, "_prepare_model_inputs") and hasattr(part, "prepare_inputs_for_generation"):
                patches.append(PatchedMethod(part, "_prepare_model_inputs", begin))
                patches.append(PatchedMethod(part, "prepare_inputs_for_generation", announce))
        return patches

    def _around_model(self, encoder_decoder: bool, forward: Callable[..., Any], /, **kwargs: Any) -> Any:
        local = self.local
        if torch.compiler.is_dynamo_compiling():
            local.model_call = (kwargs, encoder_decoder)
            output = forward(**kwargs)
            local.model_call = None
            return output
        local.model_call, local.own = (kwargs, encoder_decoder), self._generations.announced(*kwargs.values())
        try:
            return forward(**kwargs)
        finally:
            local.model_call = local.own = None

    def _around_decoder(
        self,
        decoder: weakref.ref[nn.Module],
        encoder_decoder: bool,
        forward: Callable[..., Any],
        /,
        **kwargs: Any,
    ) -> Any:
        local = self.local
        model_kwargs, encoder_decoder = local.model_call or (None, encoder_decoder)
        arguments = read_arguments(decoder(), kwargs, model_kwargs, encoder_decoder=encoder_decoder)
        if torch.compiler.is_dynamo_compiling():
            local.arguments = arguments  # the compiled code hands it to its steering operator
            output = forward(**kwargs)
            local.arguments = None
            return output
        if arguments.tokens.is_cuda and torch.cuda.is_current_stream_capturing():
            raise PositionError(
                "A CUDA graph is being captured by hand, and its replays would not run the steering. Use torch.compile "
                "or an uncaptured model (ContinuousBatchingConfig(use_cuda_graph=False) for generate_batch)."
            )
        if local.model_call is None:
            local.own = self._generations.announced(*kwargs.values())
        local.call = self.describe(arguments, local.own)
        try:
            output = forward(**kwargs)
        except PositionError as error:  # a worker thread may tell nobody of it
            self.refusal = (threading.current_thread(), PositionError(*error.args))
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
