"""Plans on a live model: one hook per steered layer, put on all or nothing and taken off without a trace."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rotalabs_steer.decoder import decoder_layers, find_decoder, first_tensor, transformers_model, with_first_tensor
from rotalabs_steer.errors import CompiledModelError, SteeringConflictError
from rotalabs_steer.forward_calls import CallTracker
from rotalabs_steer.plans import Plan, Steps, steps_by_layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.utils.hooks import RemovableHandle

_STEERED_MODELS: weakref.WeakKeyDictionary[nn.Module, SteeredModel] = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()
_SCOPED: contextvars.ContextVar[tuple[Attachment, ...]] = contextvars.ContextVar("rotalabs_steer_scoped", default=())


@dataclass(eq=False)
class Attachment:
    """A plan in force on a model. Assigning `plan` changes what is done from the next layer call on."""

    model: SteeredModel
    plan: Plan
    layers: tuple[int, ...]
    owner: _Owner = field(default_factory=lambda: _Owner.current())  # noqa: PLW0108  # defined below

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
        self._model_wide: tuple[Attachment, ...] = ()
        self._hooks: dict[int, RemovableHandle] = {}
        self._hook_users: dict[int, int] = {}
        self._resolved: tuple[tuple[Plan, ...], Steps] = ((), {})

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
            attachment = Attachment(self, plan, _layers(plan))
            for other in self._model_wide:
                if other.owner.conflicts_with(attachment.owner):
                    raise SteeringConflictError(
                        f"{other.owner.thread.name!r} is steering this model already; steering it model-wide from "
                        f"{attachment.owner.thread.name!r} too would mix both. Use `with injector.scoped():` in each."
                    )
            self._hook(attachment.layers)
            self._model_wide = (*self._model_wide, attachment)
            return attachment

    def attach_scoped(self, plan: Plan) -> Attachment:
        """Puts a plan in force for calls from the current thread or asyncio task only."""
        with _LOCK:
            attachment = Attachment(self, plan, _layers(plan))
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
        attachments = self._model_wide
        if scoped := _SCOPED.get():
            attachments += tuple(attachment for attachment in scoped if attachment.model is self)
        plans = tuple([attachment.plan for attachment in attachments])
        resolved = self._resolved
        if len(plans) != len(resolved[0]) or any(a is not b for a, b in zip(plans, resolved[0], strict=True)):
            resolved = (plans, steps_by_layer(item for plan in plans for item in plan))
            self._resolved = resolved
        return resolved[1]

    def _remove(self, attachment: Attachment) -> None:
        with _LOCK:
            if attachment in self._model_wide:
                self._model_wide = tuple(other for other in self._model_wide if other is not attachment)
                self._unhook(attachment.layers)

    def _hook(self, layers: tuple[int, ...]) -> None:
        model = self._model()
        assert model is not None
        check_not_compiled(model)
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
        def steer(module: nn.Module, inputs: Any, output: Any) -> Any:
            steps = self.steps().get(layer)
            if steps is None:
                return None
            call = self._tracker.current()
            before = hidden = first_tensor(output)
            for step in steps:
                selection = call.select(step.scope)
                if selection is not False:
                    hidden = step.apply(hidden, selection)
            return None if hidden is before else with_first_tensor(output, hidden)

        return steer


def check_not_compiled(model: nn.Module) -> None:
    """Refuses a model whose compiled code would not run hooks that are added now."""
    decoder, layers = find_decoder(model)
    for module in (model, decoder, *layers):
        if getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod"):
            raise CompiledModelError(
                f"{type(module).__name__} was compiled before steering was attached, so it would run unsteered. "
                "Attach first and compile afterwards, or attach to a model that was not compiled."
            )


def _layers(plan: Plan) -> tuple[int, ...]:
    return tuple(sorted({item.layer_index for item in plan}))
