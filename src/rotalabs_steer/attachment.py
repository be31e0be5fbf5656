"""Plans on a live model: one hook per steered layer, put on all or nothing and taken off without a trace."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.decoder import decoder_layers, find_decoder, transformers_model
from rotalabs_steer.errors import CompiledModelError, SteeringConflictError
from rotalabs_steer.forward_calls import CallTracker
from rotalabs_steer.layer_outputs import ResidualLayout, first_tensor, with_first_tensor
from rotalabs_steer.plans import Plan, Steps, steps_by_layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.utils.hooks import RemovableHandle


_STEERED_MODELS: weakref.WeakKeyDictionary[nn.Module, SteeredModel] = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()
_COMPILE_LATER = "Attach first and compile afterwards, and stay attached: strength 0 is the unsteered model."
_RESOLVED_PLANS = 64
"""Combinations of plans whose steps are kept, for threads that steer one model differently at the same time."""
_SCOPED: contextvars.ContextVar[tuple[Attachment, ...]] = contextvars.ContextVar("rotalabs_steer_scoped", default=())


@dataclass(eq=False)
class Attachment:
    """A plan in force on a model."""

    model: SteeredModel
    plan: Plan
    layers: tuple[int, ...]
    owner: _Owner

    def replace_plan(self, plan: Plan) -> None:
        """Changes what is done from the next layer call on."""
        with _LOCK:
            self.plan = plan
            self.model._forget_steps()

    def remove(self) -> None:
        """Ends a model-wide attachment."""
        self.model._remove(self)


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

    def conflicts_with(self, other: _Owner) -> bool:
        if self.thread is not other.thread:
            return self.thread.is_alive()
        return self.task is not None and other.task is not None and self.task is not other.task and not self.task.done()


class SteeredModel:
    """What is attached to one model. Get it with `SteeredModel.of(model)`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(transformers_model(model))
        self._tracker = CallTracker.of(model)
        self._layout = ResidualLayout.of(model)
        self._model_wide: tuple[Attachment, ...] = ()
        self._hooks: dict[int, RemovableHandle] = {}
        self._hook_users: dict[int, int] = {}
        self._model_wide_steps: Steps | None = None
        self._resolved: OrderedDict[tuple[int, ...], tuple[tuple[Plan, ...], Steps]] = OrderedDict()

    @classmethod
    def of(cls, model: nn.Module) -> SteeredModel:
        """The one record of what is attached to this model."""
        inner = transformers_model(model)
        with _LOCK:
            if inner not in _STEERED_MODELS:
                _STEERED_MODELS[inner] = cls(model)
            return _STEERED_MODELS[inner]

    def attach(self, plan: Plan) -> Attachment:
        """Puts a plan in force for every call of the model, in whatever thread.

        Raises:
            SteeringConflictError: another live thread or task holds a model-wide attachment.
            CompiledModelError: the model was compiled before.
        """
        with _LOCK:
            attachment = Attachment(self, plan, _layers(plan), _Owner.current())
            for other in self._model_wide:
                if other.owner.conflicts_with(attachment.owner):
                    raise SteeringConflictError(
                        f"{other.owner.thread.name!r} is steering this model already; steering it model-wide from "
                        f"{attachment.owner.thread.name!r} too would mix both. Use `with injector.scoped():` in each."
                    )
            self._hook(attachment.layers)
            self._model_wide = (*self._model_wide, attachment)
            self._forget_steps()
            return attachment

    def attach_scoped(self, plan: Plan) -> Attachment:
        """Puts a plan in force for calls from the current thread or asyncio task only."""
        with _LOCK:
            attachment = Attachment(self, plan, _layers(plan), _Owner.current())
            self._hook(attachment.layers)
        _SCOPED.set((*_SCOPED.get(), attachment))
        return attachment

    def leave_scoped(self, attachment: Attachment) -> None:
        """Ends what `attach_scoped` began, in any order."""
        _SCOPED.set(tuple(other for other in _SCOPED.get() if other is not attachment))
        with _LOCK:
            self._unhook(attachment.layers)

    def steps(self) -> Steps:
        """The steps in force for the calling thread, by layer."""
        if scoped := _SCOPED.get():
            return self._resolve(self._model_wide + tuple(one for one in scoped if one.model is self))
        steps = self._model_wide_steps
        if steps is None:
            with _LOCK:  # else a plan replaced meanwhile could be forgotten before these steps are kept
                steps = self._model_wide_steps = self._resolve(self._model_wide)
        return steps

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
        self._model_wide_steps = None

    def _remove(self, attachment: Attachment) -> None:
        with _LOCK:
            if attachment in self._model_wide:
                self._model_wide = tuple(other for other in self._model_wide if other is not attachment)
                self._forget_steps()
                self._unhook(attachment.layers)

    def _hook(self, layers: tuple[int, ...]) -> None:
        model = self._model()
        assert model is not None
        if any(layer not in self._hooks for layer in layers):
            _check_not_compiled(model)
        modules = decoder_layers(model)
        for layer in layers:
            if layer not in self._hooks:
                self._hooks[layer] = modules[layer].register_forward_hook(self._hook_function(layer), prepend=True)
            self._hook_users[layer] = self._hook_users.get(layer, 0) + 1
        self._tracker.acquire()

    def _unhook(self, layers: tuple[int, ...]) -> None:
        for layer in layers:
            self._hook_users[layer] -= 1
            if self._hook_users[layer] == 0:
                self._hooks.pop(layer).remove()
        self._tracker.release()

    def _hook_function(self, layer: int) -> Callable[[nn.Module, Any, Any], Any]:
        current_call, scoped, layout = self._tracker.current, _SCOPED.get, self._layout
        width = layout.plain_width

        def steer(module: nn.Module, inputs: Any, output: Any) -> Any:
            by_layer = None if scoped() else self._model_wide_steps  # what `steps` gives, without the call
            steps = (self.steps() if by_layer is None else by_layer).get(layer)
            if steps is None:
                return None
            call = current_call()
            before = hidden = output if isinstance(output, torch.Tensor) else first_tensor(output)
            if hidden.shape == (call.batch_size, call.columns, width):
                for step in steps:
                    hidden = step.apply(hidden, call)
                return hidden if before is output else with_first_tensor(output, hidden)
            streams = layout.streams(hidden, call.batch_size, call.columns)
            call = call.last_columns(streams.shape[2])
            steered = []
            for stream in streams:
                for step in steps:
                    stream = step.apply(stream, call)  # noqa: PLW2901
                steered.append(stream)
            return with_first_tensor(output, layout.replace(hidden, torch.stack(steered)))

        return steer


def _check_not_compiled(model: nn.Module) -> None:
    """Refuses a model whose compiled code would not run hooks that are added now."""
    decoder, layers = find_decoder(model)
    for module in (model, decoder, *layers):
        in_place = getattr(module, "_compiled_call_impl", None) or module.__dict__.get("_compiled_call")
        if in_place is not None:
            raise CompiledModelError(
                f"{type(module).__name__} was compiled before steering was attached, so it would run unsteered. "
                + _COMPILE_LATER
            )
    if _code_was_compiled() and any(_compiled_wrappers(module) for module in (model, decoder)):
        raise CompiledModelError(
            f"A torch.compile({type(model).__name__}) exists and has run, so it would ignore hooks attached now. "
            + _COMPILE_LATER
        )


def _code_was_compiled() -> bool:
    """Whether dynamo has compiled anything in this process: a cheap look before the dear one."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and dynamo.utils.counters["frames"].get("total", 0) > 0


def _compiled_wrappers(module: nn.Module) -> list[dict[str, Any]]:
    """The `_modules` of wrappers that torch.compile made around a module. The module itself knows nothing of them."""
    return [r for r in gc.get_referrers(module) if isinstance(r, dict) and r.get("_orig_mod") is module]


def _layers(plan: Plan) -> tuple[int, ...]:
    return tuple(sorted({layer for item in plan for layer in item.layers}))
