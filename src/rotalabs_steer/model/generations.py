"""What `generate` says of itself: where its prompt ends, and which forward calls are its own.

Two methods of a model that generates are listened at:

- `_prepare_model_inputs`, which `generate` calls once, tells the length of the prompt;
- `prepare_inputs_for_generation`, which it calls before each forward call, announces that call: the very tensor of
  tokens that the call will be given, the 2-D mask, and the whole sequence so far.

A forward call with the announced tensor is the generation's own. Any other call is not, also where a logits processor
makes it in the middle of a generation. It does not matter how `generate` was reached: these methods are found on the
model itself, whoever holds `generate` and since when.
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
"""What `generate` lets look at each step, and what may call the model on a sequence of its own."""


@dataclass
class Generation:
    """One `generate` call: its prompt, and what was found out about its rows.

    Attributes:
        prompt_columns: length of the prompt; None until its first forward call tells.
        prompts: how many prompts there are; beams and several sequences a prompt make more rows of them.
        prompt_ids: the prompt's ids `[rows, columns]`, where it was given as ids.
        embedded: columns of the sequence that `generate` was given as embeddings, until its first call tells how many
            of them have no ids.
        begun: whether its first forward call has been announced.
        memory: what was found out about the rows, such as which of them meet a condition.
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


class Generations(threading.local):
    """The generations of one model under way in this thread."""

    def __init__(self) -> None:
        self._by_frame: dict[int | None, Generation] = {}
        self._announced: Announcement | None = None

    def begin(self, encoder_decoder: bool, original: Callable[..., Any], /, **given: Any) -> Any:
        """Stands before `_prepare_model_inputs`."""
        more = given.get("model_kwargs") or {}
        generation = Generation()
        if not encoder_decoder:  # else these are the inputs of the encoder
            embeddings, mask = more.get("inputs_embeds"), two_dimensional(more.get("attention_mask"))
            ids = given.get("inputs") if more.get("input_ids") is None else more["input_ids"]
            generation.prompt_ids = two_dimensional(ids)
            generation.embedded = 0 if embeddings is None else embeddings.shape[1]
            said = (tokens.shape[1] for tokens in (mask, embeddings, ids) if tokens is not None)
            generation.prompt_columns = next(said, None)
        inputs = given.get("inputs") if more.get("inputs_embeds") is None else more["inputs_embeds"]
        generation.prompts = inputs.shape[0] if isinstance(inputs, torch.Tensor) else None
        frames = list(_generate_frames())
        if len(frames) <= 1:  # no generation is under way around this one
            self._by_frame.clear()
        self._by_frame[frames[0] if frames else None] = generation
        return original(**given)

    def announce(self, encoder_decoder: bool, original: Callable[..., Any], /, **kwargs: Any) -> Any:
        """Stands before `prepare_inputs_for_generation`."""
        inputs = original(**kwargs)
        generation = self._by_frame.get(next(_generate_frames(), None))
        names = ("decoder_input_ids",) if encoder_decoder else TOKEN_ARGUMENTS
        tokens = next((inputs[name] for name in names if inputs.get(name) is not None), None)
        if generation is None or tokens is None:
            return inputs
        given = two_dimensional(kwargs.get("decoder_input_ids" if "decoder_input_ids" in kwargs else "input_ids"))
        sequence = None if encoder_decoder else given
        mask = None if encoder_decoder else two_dimensional(kwargs.get("attention_mask"))
        is_first, generation.begun = not generation.begun, True
        if is_first and sequence is not None:  # ids may be given beside embeddings, of the same tokens
            generation.embedded = max(generation.embedded - sequence.shape[1], 0)
        is_doubled = given is not None and tokens.shape[0] == 2 * given.shape[0]
        self._announced = Announcement(generation, tokens, mask, sequence, is_first, is_doubled)
        return inputs

    def announced(self, *values: Any) -> Announcement | None:
        """The announcement of a call with these arguments: it has the very tensor that a generation has prepared."""
        announced = self._announced
        return announced if announced is not None and any(announced.tokens is value for value in values) else None

    def announced_shape(self, tokens: torch.Tensor, layer: int) -> Announcement | None:
        """The announcement of the call that compiled code is in when it comes to a layer.

        Compiled code copies tensors, so the call is known by the shape of its tokens, and each layer sees it once.
        """
        announced = self._announced
        if announced is None or announced.tokens.shape[:2] != tokens.shape[:2] or layer in announced.layers_seen:
            return None
        announced.layers_seen.add(layer)
        return announced

    def end_call(self) -> None:
        """Forgets the announcement of a call that has been made."""
        self._announced = None


def inside_generate() -> bool:
    """Whether a generation loop runs this code, and not what it lets look at each step, such as a logits processor."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _generate_code():
        if frame.f_globals.get("__name__") in _CALLBACK_MODULES:
            return False
        frame = frame.f_back
    return frame is not None


def two_dimensional(tensor: Any) -> torch.Tensor | None:
    """The tensor itself where it has two dimensions, else None."""
    return tensor if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 else None


def _generate_frames() -> Iterator[int]:
    """The identities of the `generate` calls on the stack, innermost first.

    An identity may be used again once its call has ended. This does no harm: each generation begins by replacing what
    an earlier one has left under its own.
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
