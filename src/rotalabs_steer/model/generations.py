"""What `generate` reveals: where its prompt ends, and which forward calls are its own.

Two methods of a model that generates are wrapped:

- `_prepare_model_inputs`, which `generate` calls once, shows the length of the prompt;
- `prepare_inputs_for_generation`, which it calls before each forward call, announces that call: the very tensor of
  tokens that the call will be given, the 2-D mask, and the whole sequence so far.

A forward call with the announced tensor is the generation's own. Any other call is not, even where a logits processor
makes it in the middle of a generation. It does not matter how `generate` was reached, because the wrappers are on the
model itself: somebody may have kept a reference to `generate` from before.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.model.decoder import TOKEN_ARGUMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

_CALLBACK_MODULES = ("transformers.generation.logits_process", "transformers.generation.stopping_criteria")
"""`generate` calls these at each step, and they may call the model on a sequence of their own."""


@dataclass
class Generation:
    """One `generate` call.

    Attributes:
        prompt_columns: length of the prompt; None until the first forward call shows it.
        prompts: number of prompts; with beams or several sequences a prompt, the calls have more rows than that.
        prompt_ids: the prompt's ids `[rows, columns]`, where it was given as ids.
        embedded: columns of the sequence that were given as embeddings. The first call shows how many of them have no
            ids.
        begun: whether its first forward call has been announced.
        memory: results about the rows that its calls share, such as which rows meet a condition.
    """

    prompt_columns: int | None = None
    prompts: int | None = None
    prompt_ids: torch.Tensor | None = None
    embedded: int = 0
    begun: bool = False
    memory: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Announcement:
    """The forward call that a generation is about to make.

    Attributes:
        tokens: the tensor that the call will be given.
        mask: `[rows, length]` over the whole sequence, or None.
        sequence: ids of the whole sequence so far `[rows, length]`, or None.
        is_first: whether it is the generation's first call.
        is_doubled: whether the rows come twice, with and without the prompt (classifier-free guidance of music models).
        layers_seen: layers of compiled code that have run in this call.
    """

    generation: Generation
    tokens: torch.Tensor
    mask: torch.Tensor | None
    sequence: torch.Tensor | None
    is_first: bool = False
    is_doubled: bool = False
    layers_seen: set[int] = field(default_factory=set)

    def ids_up_to(self, columns: int, rows: int) -> torch.Tensor | None:
        """Ids of the sequence up to a column. In chunked prefill, only the whole prompt reaches so far."""
        if self.generation.embedded:
            return None
        for ids in (self.sequence, self.generation.prompt_ids):
            if ids is not None and ids.shape[1] >= columns:
                return ids[:, :columns].repeat_interleave(max(rows // ids.shape[0], 1), dim=0)
        return None

    def columns_so_far(self) -> int | None:
        """Length of the sequence including this call, where no mask shows it; None for a chunk of a prompt."""
        if self.sequence is None:
            return None
        columns = self.generation.embedded + self.sequence.shape[1]
        return columns if columns >= (self.generation.prompt_columns or 0) else None


class Generations(threading.local):
    """The generations of one model that are under way in this thread."""

    def __init__(self) -> None:
        # By the frame of `generate`, because a generation may call `generate` again, as one with a draft model does.
        self._by_frame: dict[int | None, Generation] = {}
        self._announced: Announcement | None = None

    def begin(self, encoder_decoder: bool, original: Callable[..., Any], /, **given: Any) -> Any:
        """Wraps `_prepare_model_inputs`."""
        generation = Generation()
        model_kwargs = given.get("model_kwargs") or {}
        embeddings = model_kwargs.get("inputs_embeds")
        ids = given.get("inputs") if model_kwargs.get("input_ids") is None else model_kwargs["input_ids"]
        prompts = ids if embeddings is None else embeddings
        generation.prompts = prompts.shape[0] if isinstance(prompts, torch.Tensor) else None
        if not encoder_decoder:  # else these are the inputs of the encoder
            generation.prompt_ids = two_dimensional(ids)
            generation.embedded = 0 if embeddings is None else embeddings.shape[1]
            # The mask goes first, because it covers a cache that was given, too.
            covering = (two_dimensional(model_kwargs.get("attention_mask")), embeddings, ids)
            generation.prompt_columns = next((tokens.shape[1] for tokens in covering if tokens is not None), None)
        frames = list(_generate_frames())
        if len(frames) <= 1:  # no generation is under way around this one, so all others have ended
            self._by_frame.clear()
        self._by_frame[frames[0] if frames else None] = generation
        return original(**given)

    def announce(self, encoder_decoder: bool, original: Callable[..., Any], /, **kwargs: Any) -> Any:
        """Wraps `prepare_inputs_for_generation`."""
        inputs = original(**kwargs)
        generation = self._by_frame.get(next(_generate_frames(), None))
        names = ("decoder_input_ids",) if encoder_decoder else TOKEN_ARGUMENTS
        tokens = next((inputs[name] for name in names if inputs.get(name) is not None), None)
        if generation is None or tokens is None:
            return inputs
        given = two_dimensional(kwargs.get("decoder_input_ids" if "decoder_input_ids" in kwargs else "input_ids"))
        # An encoder-decoder's mask is that of its encoder, and its first `decoder_input_ids` are not a prompt.
        mask = None if encoder_decoder else two_dimensional(kwargs.get("attention_mask"))
        sequence = None if encoder_decoder else given
        is_first, generation.begun = not generation.begun, True
        if is_first and sequence is not None:
            # Ids may be given beside embeddings of the same tokens. What they do not cover has embeddings only.
            generation.embedded = max(generation.embedded - sequence.shape[1], 0)
        is_doubled = given is not None and tokens.shape[0] == 2 * given.shape[0]
        self._announced = Announcement(generation, tokens, mask, sequence, is_first, is_doubled)
        return inputs

    def announced(self, *values: Any) -> Announcement | None:
        """The announcement of a call, if one of its arguments is the very tensor that a generation has prepared."""
        announced = self._announced
        return announced if announced is not None and any(announced.tokens is value for value in values) else None

    def announced_shape(self, tokens: torch.Tensor, layer: int) -> Announcement | None:
        """The announcement of a call in compiled code, which asks for it at each of its layers.

        Compiled code copies tensors, so the call is recognised by the shape of its tokens. Each layer gets it once,
        because the next call with this shape may not be a generation's own.
        """
        announced = self._announced
        if announced is None or announced.tokens.shape[:2] != tokens.shape[:2] or layer in announced.layers_seen:
            return None
        announced.layers_seen.add(layer)
        return announced

    def end_call(self) -> None:
        """Forgets the announcement of a call that has ended."""
        self._announced = None


def inside_generate() -> bool:
    """Whether a generation loop runs this code, but not through a callback such as a logits processor."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _generate_code():
        if frame.f_globals.get("__name__") in _CALLBACK_MODULES:
            return False
        frame = frame.f_back
    return frame is not None


def two_dimensional(tensor: Any) -> torch.Tensor | None:
    """The tensor where it has two dimensions, else None."""
    return tensor if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 else None


def _generate_frames() -> Iterator[int]:
    """The identities of the `generate` calls on the stack, innermost first.

    Python may use an identity again once its call has ended. This does no harm, because each generation begins by
    replacing the record under its identity.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _generate_code():
            yield id(frame)
        frame = frame.f_back


@functools.cache
def _generate_code() -> CodeType:
    from transformers import GenerationMixin

    code: CodeType = inspect.unwrap(GenerationMixin.generate).__code__
    return code
