"""What a running model is doing right now: the forward call under way, and the positions of its tokens.

Decoder layers are told little about positions: masks arrive fused, and only `generate` knows where the prompt ends. So
while somebody needs positions, a tracker wraps the forward methods of the model and of its decoder, and listens to what
`generate` prepares (`generations.py`). The last release removes all wrappers.

Nothing is guessed. Where the arguments of a call contradict each other or do not say enough, `ForwardCall.unknown`
holds the reason, and whoever asks for a position gets it as a `PositionError`.
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
from rotalabs_steer.model.generations import Announcement, Generation, Generations, inside_generate
from rotalabs_steer.model.patched_methods import PatchedMethod
from rotalabs_steer.model.positions import ForwardCall, forward_call

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

_TRACKERS: weakref.WeakKeyDictionary[nn.Module, CallTracker] = weakref.WeakKeyDictionary()
_TRACKERS_LOCK = threading.RLock()

_COUNTLESS = (
    "The cache of this call does not say how many tokens it holds. Use model.generate, pass an attention_mask that "
    "covers the whole sequence, or use the scope 'all'."
)
_ELSEWHERE = (
    "The model was called inside `generate`, but not by the generation loop of the model that was attached to, so the "
    "end of the prompt is unknown. Attach to the whole model that generates, prepare each call with "
    "model.prepare_inputs_for_generation, or use the scope 'all'."
)


class _Local(threading.local):
    """The calls that one thread is in.

    Attributes:
        announcement: what `generate` said about the call under way, where the call is a generation's own.
        model_call: the whole model's arguments, while its decoder runs, and whether it has an encoder.
        arguments: the decoder's arguments, while its code is being compiled.
        call: the decoder's call under way, in code that is not compiled.
        calls: number of finished calls of the decoder.
    """

    def __init__(self) -> None:
        self.announcement: Announcement | None = None
        self.model_call: tuple[dict[str, Any], bool] | None = None
        self.arguments: CallArguments | None = None
        self.call: ForwardCall | None = None
        self.calls = 0


class CallTracker:
    """Knows the forward call that a decoder is in, per thread. Get one with `CallTracker.of(model)`.

    A decoder has one tracker, whichever of the models around it somebody attaches to.

    Attributes:
        local: the calls that this thread is in.
        calls: number of finished calls of the decoder, in all threads.
        refusal: a copy of the last `PositionError` of a call, and the thread in which it was raised.
    """

    def __init__(self, decoder: nn.Module) -> None:
        self._decoder = weakref.ref(decoder)
        self._generations = Generations()
        self._users: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
        # Patches are kept after they are removed, because compiled code knows them by their identity.
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
        """Starts listening to the calls of a model, unless it listens already for another user."""
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
        if call is not None:
            return call
        if arguments is None:
            raise PositionError(
                "A decoder layer ran outside the decoder's forward call (called directly, or recomputed by gradient "
                "checkpointing), so the positions of its tokens are unknown. Call the whole model, with gradient "
                "checkpointing off."
            )
        # The compiler has left this layer out of the decoder's code, so it runs while the decoder's arguments stand.
        return self.describe(arguments, self._generations.announced(arguments.tokens))

    def describe(self, arguments: CallArguments, announcement: Announcement | None) -> ForwardCall:
        """The forward call with these arguments, and what `generate` announced about it where it is its own."""
        columns = arguments.tokens.shape[1]
        mask, end, unknown = _known_extent(arguments, announcement)
        # After its first call, `generate` itself keeps mask and cache in step. Before, either may come from the user.
        is_checked = announcement is None or announcement.is_first
        if is_checked and end is not None and arguments.cached is not None and end != arguments.cached + columns:
            unknown = (
                f"The mask or sequence that is known covers {end} columns, but the cache holds {arguments.cached} and "
                f"the call has {columns}, so positions are unknown. Pass a mask that covers the cache and the call "
                "together."
            )
        if end is None and arguments.cached is not None:
            end = arguments.cached + columns
        if end is None:
            end, unknown = columns, unknown or _COUNTLESS
        if announcement is None:
            generation = Generation()
            ids = arguments.tokens if arguments.tokens.dim() == 2 and end == columns else None
        else:
            generation = announcement.generation
            if generation.prompt_columns is None:
                generation.prompt_columns = end
            ids = announcement.ids_up_to(end, arguments.rows)
        return forward_call(
            arguments.rows,
            columns,
            offset=end - columns,
            mask=mask,
            ids=ids if ids is not None and ids.shape[0] == arguments.rows else None,
            prompt_columns=generation.prompt_columns,
            memory=generation.memory,
            position_ids=arguments.position_ids,
            prompts=generation.prompts,
            is_doubled=announcement is not None and announcement.is_doubled,
            unknown=unknown,
        )

    def describe_compiled(self, arguments: CallArguments, layer: int) -> ForwardCall:
        """The forward call with these arguments, where compiled code asks for it at a layer."""
        return self.describe(arguments, self._generations.announced_shape(arguments.tokens, layer))

    def _make_patches(self, module: nn.Module, decoder: nn.Module) -> list[PatchedMethod]:
        """Patches for the forward method of the decoder or of a model around it, and for what `generate` calls."""
        encoder_decoder = bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))
        if module is decoder:
            around = functools.partial(self._around_decoder, weakref.ref(decoder), encoder_decoder)
        else:
            around = functools.partial(self._around_model, encoder_decoder)
        patches = [PatchedMethod(module, "forward", around)]
        begin = functools.partial(self._generations.begin, encoder_decoder)
        announce = functools.partial(self._generations.announce, encoder_decoder)
        for part in _modules_around(decoder, module):  # in some models, a part has the `generate` that is called
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
        local.model_call = (kwargs, encoder_decoder)
        local.announcement = self._generations.announced(*kwargs.values())
        try:
            return forward(**kwargs)
        finally:
            local.model_call = local.announcement = None

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
            local.announcement = self._generations.announced(*kwargs.values())
        local.call = self.describe(arguments, local.announcement)
        try:
            output = forward(**kwargs)
        except PositionError as error:  # raised in a worker thread, it may reach nobody
            self.refusal = (threading.current_thread(), PositionError(*error.args))
            raise
        finally:
            if local.announcement is not None:
                self._generations.end_call()
            local.call = None
        self.calls += 1
        local.calls += 1
        return output


def _known_extent(
    arguments: CallArguments, announcement: Announcement | None
) -> tuple[torch.Tensor | None, int | None, str | None]:
    """The mask of a call, the columns of the sequence up to its end, and why its positions are unknown.

    Each is None where it does not exist; the number of columns also where neither a mask nor `generate` says it.
    """
    mask, unknown = arguments.mask, arguments.unknown
    if announcement is None:
        if unknown is None and inside_generate():
            unknown = _ELSEWHERE
        return mask, None if mask is None else mask.shape[1], unknown
    if unknown == FUSED_MASK:  # `generate` fuses masks itself for static caches, and has announced the mask before
        unknown = None
    if mask is None:
        mask = announcement.mask
    end = announcement.columns_so_far() if mask is None else mask.shape[1]
    if end is not None and end < arguments.tokens.shape[1]:  # XLNet and XLM append a token that is to be predicted
        return None, None, unknown
    return mask, end, unknown


def _modules_around(decoder: nn.Module, model: nn.Module) -> list[nn.Module]:
    """The model, the decoder, and every module on the way from one to the other."""
    path = next(name for name, module in model.named_modules() if module is decoder)
    names = path.split(".") if path else []
    return [model.get_submodule(".".join(names[:depth])) for depth in range(len(names) + 1)]
