"""Plans on a live model: every hook of a plan is put on or none is, and removing them leaves no trace.

An attachment is in force for every caller of the model, or scoped: for one thread, task or generator. When a block of
steering ends, it is compared with what the model did meanwhile: a model that ran while its steered layers did not is an
error, never a silently unsteered model.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
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
from rotalabs_steer.steering.compiled_steering import register_steered, steer_in_graph
from rotalabs_steer.steering.generator_frames import frames_on_stack, iterated_generator
from rotalabs_steer.steering.layer_hook import LayerHook
from rotalabs_steer.steering.steps import Steps, steps_by_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
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
_CONTEXT: contextvars.ContextVar[tuple[Attachment | PlainBlock, ...]] = contextvars.ContextVar(
    "rotalabs_steer_blocks", default=()
)
"""The scopes and plain blocks, of any model, that this thread or task has opened or inherited."""


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
        """Whether this owner may still run the model, interleaved with the other one."""
        if self.thread is not other.thread:
            return self.thread.is_alive()
        return self.task is not None and other.task is not None and self.task is not other.task and not self.task.done()


@dataclass(eq=False)
class Attachment:
    """A plan in force on a model.

    Attributes:
        model: the model that was attached to, or a part of it.
        scoped: whether it acts only on calls of the thread, task or generator that opened it.
        frame: the frame of the generator in whose body a scope was opened, if any; see `SteeredDecoder.open_scope`.
        number: larger for what was attached later.
        acted: layers at which a scope has acted.
    """

    steered: SteeredDecoder
    model: weakref.ref[nn.Module]
    plan: Plan
    owner: _Owner
    start: Counts
    scoped: bool = False
    frame: FrameType | None = None
    number: int = field(default_factory=_NUMBERS.__next__)
    acted: set[int] = field(default_factory=set)
    is_open: bool = True

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers at which something is done or looked at, ascending."""
        return tuple(sorted({layer for item in self.plan for layer in item.layers}))

    def replace_plan(self, plan: Plan) -> None:
        """Changes what is done from the next layer call on. The layers must stay the same."""
        with _LOCK:
            self.plan = plan
            self.steered._forget_steps()

    def remove(self, *, check: bool = False) -> None:
        """Takes it off the model; does nothing if that has been done before.

        Args:
            check: compare the block that ends with what the model did meanwhile.

        Raises:
            NotSteeredError: the model ran, and layers that were to be steered did not.
            PositionError: one was raised in a worker thread, where nobody may have seen it.
        """
        if self.steered._close(self) and check:
            self.steered.activity.check_acted(self.start, self.layers, self.acted if self.scoped else None)


@dataclass(eq=False)
class PlainBlock:
    """A block that wants the plain model: only what its own thread or task attaches inside it acts there."""

    steered: SteeredDecoder
    owner: _Owner
    frame: FrameType | None
    number: int = field(default_factory=_NUMBERS.__next__)
    is_open: bool = True

    def hides(self, attachment: Attachment) -> bool:
        """Whether an attachment to the same decoder does not act in this block."""
        return attachment.number < self.number or not attachment.owner.is_same(self.owner)


class SteeredDecoder:
    """Everything that is attached to the layers of one decoder, through whichever model around it.

    Get it with `SteeredDecoder.of(model)`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tracker = CallTracker.of(model)
        self.activity = Activity(self._tracker)
        self._layout = ResidualLayout.of(model)
        self._number_in_graphs = register_steered(self)
        self._model_wide: tuple[Attachment, ...] = ()
        self._blocks: tuple[Attachment | PlainBlock, ...] = ()
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

    def attach(self, model: nn.Module, plan: Plan) -> Attachment:
        """Puts a plan in force for every call of the model, in whatever thread.

        Raises:
            SteeringConflictError: another live thread or task holds a model-wide attachment.
            LayerError, ArchitectureError: the model lacks a layer, or has one module at several places.
        """
        with _LOCK:
            start = self.activity.counts(scoped=False)
            attachment = Attachment(self, weakref.ref(model), plan, self.check_free(), start)
            self._hook(model, attachment.layers)
            self._model_wide = (*self._model_wide, attachment)
            self._forget_steps()
        return attachment

    def check_free(self) -> _Owner:
        """The calling thread and task, unless another live one steers model-wide, because both would mix."""
        owner = _Owner.current()
        for other in self._model_wide:
            if other.owner.conflicts_with(owner):
                raise SteeringConflictError(
                    f"{other.owner.thread.name!r} is steering this model already; steering it model-wide from "
                    f"{owner.thread.name!r} too would mix both. Use `with injector.scoped():` in each."
                )
        return owner

    def open_scope(self, model: nn.Module, plan: Plan, opened_in: FrameType | None) -> Attachment:
        """Puts a plan in force for calls from the current thread or asyncio task only.

        Args:
            opened_in: the frame of the code that opens the scope. The body of a generator runs a piece at a time, in
                the context, and even the thread, of whoever asks for the next piece. So where this is a generator that
                is iterated, the scope holds for the calls made from its body, wherever that runs. The body of an
                asynchronous one may also hand the call to a thread, which inherits the context.
        """
        frame, kind = iterated_generator(opened_in)
        with _LOCK:
            start = self.activity.counts(scoped=True)
            scope = Attachment(self, weakref.ref(model), plan, _Owner.current(), start, scoped=True, frame=frame)
            self._hook(model, scope.layers)
            self._open(scope, kind)
        return scope

    def open_plain(self, opened_in: FrameType | None) -> PlainBlock:
        """Begins a block that wants the plain model, in the same places as a scope would act."""
        frame, kind = iterated_generator(opened_in)
        plain = PlainBlock(self, _Owner.current(), frame)
        with _LOCK:
            self._open(plain, kind)
        return plain

    def close_plain(self, plain: PlainBlock) -> None:
        """Ends what `open_plain` began."""
        self._close(plain)

    @contextlib.contextmanager
    def continue_plain(self, plain: PlainBlock) -> Iterator[None]:
        """Continues a plain block in another thread, even if the block itself ends meanwhile."""
        continued = dataclasses.replace(plain, frame=None, is_open=True)  # hides the same attachments
        with _LOCK:
            self._open(continued, kind=0)
        try:
            yield
        finally:
            self._close(continued)

    def in_force(self) -> tuple[Attachment, ...]:
        """What acts on calls from here: model-wide attachments, and the scopes of this thread, task or generator.

        Raises:
            SteeringConflictError: as in `blocks_here`.
        """
        blocks = self.blocks_here()
        plain = [block for block in blocks if isinstance(block, PlainBlock)]
        found = (*self._model_wide, *(block for block in blocks if isinstance(block, Attachment)))
        return tuple(one for one in found if not any(block.hides(one) for block in plain))

    def blocks_here(self) -> list[Attachment | PlainBlock]:
        """The scopes and plain blocks of this decoder that the calling code is in, in the order they were opened.

        Raises:
            SteeringConflictError: several asynchronous generators have blocks open in this task, and the call comes
                from the body of none of them.
        """
        # A context that was copied inside a block, as for a new task, may outlive the block.
        inherited = [block for block in _CONTEXT.get() if block.steered is self and block.is_open]
        in_generators = [block for block in self._blocks if block.frame is not None]
        if not in_generators:
            return inherited
        # A generator does not have a context of its own, so its blocks hold exactly while its frame is on the stack.
        frames = frames_on_stack()
        running = [block for block in in_generators if block.frame in frames]
        if running:
            ours = {*running, *(block for block in inherited if block.frame is None)}
            return sorted(ours, key=lambda block: block.number)
        # Without a running body, an inherited block is that of an asynchronous generator. It has handed this call to a
        # thread, which has its context but not its stack. The context of two of them does not say which one did.
        if len({block.frame for block in inherited} - {None}) > 1:
            raise SteeringConflictError(
                "Several asynchronous generators of this task steer the model, each in a scope of its own, and it "
                "is unknown which of them this call belongs to. Run each generator in a task of its own."
            )
        return inherited

    def attachments(self) -> tuple[Attachment, ...]:
        """Everything that is attached, for whichever thread."""
        return (*self._model_wide, *(block for block in self._blocks if isinstance(block, Attachment)))

    def steps(self) -> Steps:
        """The steps in force for the calling thread, by layer."""
        if _CONTEXT.get() or self._blocks or not self._model_wide:
            return self._resolve(self.in_force())
        steps = self._usual_steps
        if steps is None:
            with _LOCK:  # else a plan replaced meanwhile could be forgotten before these steps are kept
                steps = self._usual_steps = self._resolve(self._model_wide)
        return steps

    def steps_at(self, layer: int) -> Sequence[Step] | None:
        """The steps in force at a layer for the calling thread, which runs the layer now."""
        self.activity.layer_calls[layer][0] += 1
        if not self._blocks and not _CONTEXT.get():
            return self.steps().get(layer)
        in_force = self.in_force()
        for attachment in in_force:
            attachment.acted.add(layer)
        if not any(attachment.scoped for attachment in in_force) and not _CONTEXT.get():
            self.activity.unscoped_calls += 1  # a scope that is open elsewhere may have meant this call
        return self._resolve(in_force).get(layer)

    def steer_compiled(self, hidden: torch.Tensor, layer: int, arguments: CallArguments | None) -> torch.Tensor:
        """Does what the hook does, from inside compiled code."""
        steps = self.steps_at(layer)
        if steps is None:
            return hidden
        call = self._tracker.current() if arguments is None else self._tracker.describe_compiled(arguments, layer)
        return self._apply(steps, hidden, call)

    def _open(self, block: Attachment | PlainBlock, kind: int) -> None:
        self._blocks = (*self._blocks, block)
        self._forget_steps()
        # The consumer of a generator shares its context, so there only the frame tells whose call it is. An
        # asynchronous generator needs both: the thread that it hands a call to inherits only the context.
        if kind != inspect.CO_GENERATOR:
            _CONTEXT.set((*_CONTEXT.get(), block))

    def _close(self, block: Attachment | PlainBlock) -> bool:
        """Ends an attachment or a plain block; returns whether it was open."""
        with _LOCK:
            was_open, block.is_open = block.is_open, False
            if was_open:
                self._model_wide = tuple(other for other in self._model_wide if other is not block)
                self._blocks = tuple(other for other in self._blocks if other is not block)
                self._forget_steps()
                if isinstance(block, Attachment):
                    self._unhook(block.model(), block.layers)
        _CONTEXT.set(tuple(other for other in _CONTEXT.get() if other is not block))
        return was_open

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
        # This runs for every layer and token, so what it needs is looked up once and kept in local names.
        tracker, local, context = self._tracker, self._tracker.local, _CONTEXT.get
        width, count = self._layout.plain_width, self.activity.count_of(layer)
        is_tracing = torch.compiler.is_dynamo_compiling

        def steer(module: nn.Module, inputs: Any, output: Any) -> Any:
            if module is not own:  # copy.deepcopy copies hooks, too, and nobody has attached to the copy
                return None
            if is_tracing():
                hidden = steer_in_graph(first_tensor(output), layer, self._number_in_graphs, local.arguments)
                return with_first_tensor(output, hidden)
            by_layer = self._usual_steps
            if by_layer is None or context():
                steps = self.steps_at(layer)
            else:  # `steps_at` in the usual case, without the cost of calling it
                count[0] += 1
                steps = by_layer.get(layer)
            if steps is None:
                return None
            call = local.call or tracker.current()
            if type(output) is torch.Tensor and output.shape == (call.batch_size, call.columns, width):
                for step in steps:  # `_apply` in the usual case, as above
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
        # Other layouts hold several residual streams, or only the last columns of the call.
        streams = self._layout.streams(hidden, call.batch_size, call.columns)
        call = call.last_columns(streams.shape[2])
        steered = []
        for stream in streams:
            for step in steps:
                stream = step.apply(stream, call)  # noqa: PLW2901
            steered.append(stream)
        return self._layout.replace(hidden, torch.stack(steered))
