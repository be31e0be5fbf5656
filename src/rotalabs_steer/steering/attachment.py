"""Plans on a live model: one hook per steered layer, put on all or nothing and taken off without a trace.

An attachment is in force for every caller of the model, or scoped: for one thread, task or generator. When a block of
steering ends, it is compared with what the model did meanwhile: a model that ran while its steered layers did not is an
error, never a silently unsteered model.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import itertools
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.errors import ArchitectureError, SteeringConflictError
from rotalabs_steer.model.decoder import check_layer_indices, decoder_layers, find_decoder
from rotalabs_steer.model.forward_calls import CallTracker
from rotalabs_steer.model.layer_outputs import ResidualLayout, first_tensor, with_first_tensor
from rotalabs_steer.steering.activity import Activity, Counts
from rotalabs_steer.steering.compiled_steering import register_steerer, steer_in_graph
from rotalabs_steer.steering.generator_frames import frames_on_stack, iterated_generator
from rotalabs_steer.steering.layer_hook import LayerHook
from rotalabs_steer.steering.steps import Steps, steps_by_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from torch import nn

    from rotalabs_steer.model.call_arguments import CallArguments
    from rotalabs_steer.model.positions import ForwardCall
    from rotalabs_steer.steering.plans import Plan
    from rotalabs_steer.steering.steps import Step

_DECODERS: weakref.WeakKeyDictionary[nn.Module, SteeredDecoder] = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()
_NUMBERS = itertools.count()
_RESOLVED_PLANS = 64
"""Combinations of plans whose steps are kept, for threads that steer one model differently at the same time."""
_SCOPED: contextvars.ContextVar[tuple[Attachment | PlainBlock, ...]] = contextvars.ContextVar(
    "rotalabs_steer_scoped", default=()
)


@dataclass(eq=False)
class Attachment:
    """A plan in force on a model.

    Attributes:
        model: the model that was attached to, or a part of it.
        names: the behaviour of each item of the plan, for people.
        number: larger for what was attached later.
        frame: the generator whose body a scope belongs to, where it is opened in one; see `SteeredDecoder.open_scope`.
        acted: layers at which a scope has acted.
    """

    steered: SteeredDecoder
    model: weakref.ref[nn.Module]
    plan: Plan
    names: tuple[str, ...]
    owner: _Owner
    start: Counts
    scoped: bool = False
    frame: FrameType | None = None
    number: int = field(default_factory=_NUMBERS.__next__)
    acted: set[int] = field(default_factory=set)
    removed: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return not self.removed

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers at which something is done or looked at, ascending."""
        return tuple(sorted({layer for item in self.plan for layer in item.layers}))

    def replace_plan(self, plan: Plan) -> None:
        """Changes what is done from the next layer call on. The layers stay."""
        with _LOCK:
            self.plan = plan
            self.steered._forget_steps()

    def remove(self) -> None:
        """Ends it. Ending it twice is ending it once."""
        self.steered._remove(self)

    def check_acted(self) -> None:
        """Compares the block that has ended with what the model did meanwhile.

        Raises:
            NotSteeredError: the model ran, and layers that were to be steered did not.
            PositionError: a worker thread, which reports to nobody, met one.
        """
        acted = self.acted if self.scoped else None
        self.steered.activity.check_acted(self.start, self.layers, acted)


@dataclass(frozen=True, eq=False)
class PlainBlock:
    """A block that wants the plain model: only what its own thread or task attaches inside it acts there."""

    steered: SteeredDecoder
    owner: _Owner
    frame: FrameType | None
    number: int = field(default_factory=_NUMBERS.__next__)
    is_open = True

    def hides(self, attachment: Attachment) -> bool:
        """Whether an attachment does not act in this block."""
        if attachment.steered is not self.steered:
            return False
        return attachment.number < self.number or not attachment.owner.is_same(self.owner)


@dataclass(frozen=True, eq=False)
class _Owner:
    """The thread, and asyncio task if any, that attached something."""

    thread: threading.Thread
    task: asyncio.Task[Any] | None

    @classmethod
    def current(cls) -> _Owner:
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        return cls(threading.current_thread(), task)

    def is_same(self, other: _Owner) -> bool:
        """Whether both are the same thread and task."""
        return self.thread is other.thread and self.task is other.task

    def conflicts_with(self, other: _Owner) -> bool:
        if self.thread is not other.thread:
            return self.thread.is_alive()
        return self.task is not None and other.task is not None and self.task is not other.task and not self.task.done()


class SteeredDecoder:
    """What is attached to the layers of one decoder, through whichever model around it.

    Get it with `SteeredDecoder.of(model)`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tracker = CallTracker.of(model)
        self.activity = Activity(self._tracker)
        self._layout = ResidualLayout.of(model)
        self._number = register_steerer(self)
        self._model_wide: tuple[Attachment, ...] = ()
        self._scopes: tuple[Attachment, ...] = ()
        self._plain_generators: tuple[PlainBlock, ...] = ()
        self._hooks: dict[int, LayerHook] = {}
        self._hook_users: dict[int, int] = {}
        self._usual_steps: Steps | None = None
        self._resolved: OrderedDict[tuple[int, ...], tuple[tuple[Plan, ...], Steps]] = OrderedDict()

    @classmethod
    def of(cls, model: nn.Module) -> SteeredDecoder:
        """The one record of what is attached to this model's decoder."""
        decoder = find_decoder(model)[0]
        with _LOCK:
            if decoder not in _DECODERS:
                _DECODERS[decoder] = cls(model)
            return _DECODERS[decoder]

    def attach(self, model: nn.Module, plan: Plan, names: tuple[str, ...]) -> Attachment:
        """Puts a plan in force for every call of the model, in whatever thread.

        Raises:
            SteeringConflictError: another live thread or task holds a model-wide attachment.
            LayerError, ArchitectureError: the model lacks a layer, or has one module at several places.
        """
        with _LOCK:
            attachment = self._begin(model, plan, names, self.check_free())
            self._model_wide = (*self._model_wide, attachment)
            self._forget_steps()
            return attachment

    def check_free(self) -> _Owner:
        """Refuses to steer model-wide what another live thread or task steers model-wide: both would mix."""
        owner = _Owner.current()
        for other in self._model_wide:
            if other.owner.conflicts_with(owner):
                raise SteeringConflictError(
                    f"{other.owner.thread.name!r} is steering this model already; steering it model-wide from "
                    f"{owner.thread.name!r} too would mix both. Use `with injector.scoped():` in each."
                )
        return owner

    def open_scope(
        self, model: nn.Module, plan: Plan, names: tuple[str, ...], opened_in: FrameType | None
    ) -> Attachment:
        """Puts a plan in force for calls from the current thread or asyncio task only.

        Args:
            opened_in: the frame of the code that opens the scope. The body of a generator runs a piece at a time, in
                the context, and even the thread, of whoever asks for the next piece. So where this is a generator that
                is iterated, the scope holds for the calls made from its body, wherever that runs. The body of an
                asynchronous one may also hand the call to a thread, which inherits the context.
        """
        frame, flags = iterated_generator(opened_in)
        with _LOCK:
            attachment = self._begin(model, plan, names, _Owner.current(), scoped=True, frame=frame)
            self._scopes = (*self._scopes, attachment)
            self._forget_steps()
        if flags != inspect.CO_GENERATOR:
            _SCOPED.set((*_SCOPED.get(), attachment))
        return attachment

    def open_plain(self, opened_in: FrameType | None) -> PlainBlock:
        """Begins a block that wants the plain model, in the same places as a scope would act."""
        frame, flags = iterated_generator(opened_in)
        plain = PlainBlock(self, _Owner.current(), frame)
        with _LOCK:
            if frame is not None:
                self._plain_generators = (*self._plain_generators, plain)
                self._forget_steps()
        if flags != inspect.CO_GENERATOR:
            _SCOPED.set((*_SCOPED.get(), plain))
        return plain

    def close_plain(self, plain: PlainBlock) -> None:
        """Ends what `open_plain` began."""
        with _LOCK:
            self._plain_generators = tuple(one for one in self._plain_generators if one is not plain)
            self._forget_steps()
        _SCOPED.set(tuple(one for one in _SCOPED.get() if one is not plain))

    def in_force(self) -> tuple[Attachment, ...]:
        """What acts on calls from here: model-wide attachments, and the scopes of this thread, task or generator.

        Raises:
            SteeringConflictError: several asynchronous generators have scopes open in this task, and the call comes
                from the body of none of them.
        """
        inherited: list[Attachment | PlainBlock] = [one for one in _SCOPED.get() if one.steered is self and one.is_open]
        blocks: tuple[Attachment | PlainBlock, ...] = (*self._scopes, *self._plain_generators)
        in_generators = [one for one in blocks if one.frame is not None]
        if in_generators:
            frames = frames_on_stack()
            running = [one for one in in_generators if one.frame in frames]
            suspended = {one.frame for one in inherited if one.frame is not None and one.frame not in frames}
            if len(suspended) > 1 and not running:
                raise SteeringConflictError(
                    "Several asynchronous generators of this task steer the model, each in a scope of its own, and it "
                    "is unknown which of them this call belongs to. Run each generator in a task of its own."
                )
            ours = [one for one in inherited if one.frame is None or (one.frame in suspended and not running)]
            inherited = sorted({*ours, *running}, key=lambda one: one.number)
        plain = [one for one in inherited if isinstance(one, PlainBlock)]
        found = (*self._model_wide, *(one for one in inherited if isinstance(one, Attachment)))
        return tuple(one for one in found if not any(block.hides(one) for block in plain))

    def attachments(self) -> tuple[Attachment, ...]:
        """Everything that is attached, for whichever thread."""
        return (*self._model_wide, *self._scopes)

    def steps(self) -> Steps:
        """The steps in force for the calling thread, by layer."""
        if _SCOPED.get() or self._scopes or self._plain_generators or not self._model_wide:
            return self._resolve(self.in_force())
        steps = self._usual_steps
        if steps is None:
            with _LOCK:  # else a plan replaced meanwhile could be forgotten before these steps are kept
                steps = self._usual_steps = self._resolve(self._model_wide)
        return steps

    def steps_at(self, layer: int) -> Sequence[Step] | None:
        """The steps in force at a layer for the calling thread, which runs the layer now."""
        self.activity.layer_calls[layer][0] += 1
        if not self._scopes and not _SCOPED.get():
            return self.steps().get(layer)
        in_force = self.in_force()
        for attachment in in_force:
            attachment.acted.add(layer)
        if not any(attachment.scoped for attachment in in_force) and not _SCOPED.get():
            self.activity.unscoped_calls += 1  # a scope that is open elsewhere may have meant this call
        return self._resolve(in_force).get(layer)

    def steer_compiled(self, hidden: torch.Tensor, layer: int, arguments: CallArguments | None) -> torch.Tensor:
        """What the hook does, from inside compiled code."""
        steps = self.steps_at(layer)
        if steps is None:
            return hidden
        call = self._tracker.current() if arguments is None else self._tracker.describe_compiled(arguments, layer)
        return self._apply(steps, hidden, call)

    def _begin(self, model: nn.Module, plan: Plan, names: tuple[str, ...], owner: _Owner, **more: Any) -> Attachment:
        start = self.activity.counts(scoped=more.get("scoped", False))
        attachment = Attachment(self, weakref.ref(model), plan, names, owner, start, **more)
        self._hook(model, attachment.layers)
        return attachment

    def _resolve(self, attachments: tuple[Attachment, ...]) -> Steps:
        plans = tuple([attachment.plan for attachment in attachments])
        key = tuple(map(id, plans))
        resolved = self._resolved.get(key)  # it holds the plans, so no other plan can have their ids
        if resolved is None:
            with _LOCK:
                resolved = (plans, steps_by_layer(item for plan in plans for item in plan))
                self._resolved[key] = resolved
                if len(self._resolved) > _RESOLVED_PLANS:
                    self._resolved.popitem(last=False)
        return resolved[1]

    def _forget_steps(self) -> None:
        """Makes the next layer ask what is in force; until then the usual steps are those of model-wide attachments."""
        self._usual_steps = None

    def _remove(self, attachment: Attachment) -> None:
        with _LOCK:
            if attachment.removed:
                return
            attachment.removed = True
            self._model_wide = tuple(other for other in self._model_wide if other is not attachment)
            self._scopes = tuple(other for other in self._scopes if other is not attachment)
            self._forget_steps()
            self._unhook(attachment.model(), attachment.layers)
        if attachment.scoped:
            _SCOPED.set(tuple(other for other in _SCOPED.get() if other is not attachment))

    def _hook(self, model: nn.Module, layers: tuple[int, ...]) -> None:
        check_layer_indices(model, layers)
        modules = decoder_layers(model)
        for layer in layers:
            if sum(module is modules[layer] for module in modules) > 1:
                raise ArchitectureError(
                    f"Layer {layer} of {type(model).__name__} is one module with another layer, so both would be "
                    "steered. Give each layer a module of its own (copy.deepcopy)."
                )
        for layer in layers:
            if layer not in self._hooks:
                self._hooks[layer] = LayerHook(modules[layer], self._hook_function(layer, modules[layer]))
            self._hook_users[layer] = self._hook_users.get(layer, 0) + 1
        self._tracker.acquire(model)

    def _unhook(self, model: nn.Module | None, layers: tuple[int, ...]) -> None:
        for layer in layers:
            self._hook_users[layer] -= 1
            if self._hook_users[layer] == 0:
                self._hooks.pop(layer).remove()
        if model is not None:
            self._tracker.release(model)

    def _hook_function(self, layer: int, own: nn.Module) -> Callable[[nn.Module, Any, Any], Any]:
        tracker, local, scoped = self._tracker, self._tracker.local, _SCOPED.get
        width, count = self._layout.plain_width, self.activity.count_of(layer)
        is_tracing = torch.compiler.is_dynamo_compiling

        def steer(module: nn.Module, inputs: Any, output: Any) -> Any:
            if module is not own:  # a copy of the layer, which nobody has attached to
                return None
            if is_tracing():
                hidden = steer_in_graph(first_tensor(output), layer, self._number, local.arguments)
                return with_first_tensor(output, hidden)
            by_layer = self._usual_steps
            if by_layer is None or scoped():
                steps = self.steps_at(layer)
            else:  # what `steps_at` does in the usual case, without its calls: this runs for every token
                count[0] += 1
                steps = by_layer.get(layer)
            if steps is None:
                return None
            call = local.call or tracker.current()
            if type(output) is torch.Tensor and output.shape == (call.batch_size, call.columns, width):
                for step in steps:
                    output = step.apply(output, call)
                return output
            return with_first_tensor(output, self._apply(steps, first_tensor(output), call))

        return steer

    def _apply(self, steps: Sequence[Step], hidden: torch.Tensor, call: ForwardCall) -> torch.Tensor:
        """What a layer put out, after the steps, whatever its layout."""
        if hidden.shape == (call.batch_size, call.columns, self._layout.plain_width):
            for step in steps:
                hidden = step.apply(hidden, call)
            return hidden
        streams = self._layout.streams(hidden, call.batch_size, call.columns)
        call = call.last_columns(streams.shape[2])
        steered = []
        for stream in streams:
            for step in steps:
                stream = step.apply(stream, call)  # noqa: PLW2901
            steered.append(stream)
        return self._layout.replace(hidden, torch.stack(steered))
