"""Injectors entered, left, changed and interrupted at random: the model is always what its plan says."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rotalabs_steer import ActivationInjector
from rotalabs_steer.errors import LayerError, OptionError
from tiny import count_hooks, make_vector, tiny_llama

IDS = torch.tensor([[5, 6, 7]])
LAYERS = (0, 1, 2)
strengths = st.sampled_from([0.0, 0.5, 1.0, -2.0])


class Steering(RuleBasedStateMachine):
    """Keeps its own list of what should act, and computes the residual stream from that."""

    model = tiny_llama()
    plain = None

    def __init__(self):
        super().__init__()
        self.entered = []
        if Steering.plain is None:
            Steering.plain = self.run()
            Steering.logits = self.model(IDS).logits

    def run(self):
        hidden = []
        handles = [
            self.model.model.layers[layer].register_forward_hook(lambda _, __, output: hidden.append(output))
            for layer in LAYERS
        ]
        with torch.no_grad():
            self.model(IDS)
        for handle in handles:
            handle.remove()
        return hidden

    @rule(layer=st.sampled_from(LAYERS), seed=st.integers(0, 2), strength=strengths, scoped=st.booleans())
    def enter(self, layer, seed, strength, scoped):
        injector = ActivationInjector(self.model, [make_vector(self.model, layer, seed=seed)], strength)
        context = injector.scoped() if scoped else injector
        context.__enter__()
        self.entered.append((injector, context))

    @precondition(lambda self: self.entered)
    @rule(data=st.data(), raising=st.booleans())
    def leave(self, data, raising):
        _, context = self.entered.pop(data.draw(st.integers(0, len(self.entered) - 1)))
        if not raising:
            context.__exit__(None, None, None)
            return
        error = ZeroDivisionError()
        try:
            swallowed = context.__exit__(ZeroDivisionError, error, None)
        except ZeroDivisionError:
            swallowed = False
        assert not swallowed

    @precondition(lambda self: self.entered)
    @rule(data=st.data(), strength=strengths)
    def change(self, data, strength):
        injector, _ = data.draw(st.sampled_from(self.entered))
        injector.strength = strength

    @rule()
    def fail_to_enter(self):
        hooks = count_hooks(self.model)
        with pytest.raises(LayerError):
            ActivationInjector(self.model, [make_vector(self.model, 99)]).attach()
        with pytest.raises(OptionError):
            ActivationInjector(self.model, [make_vector(self.model)], float("inf")).attach()
        assert count_hooks(self.model) == hooks

    @rule()
    def fail_to_run(self):
        with pytest.raises(IndexError):
            self.model(torch.tensor([[10_000]]))

    @invariant()
    def the_model_is_what_the_plan_says(self):
        if not self.entered:
            assert count_hooks(self.model) == 0
            assert torch.equal(self.model(IDS).logits, self.logits)
            return
        hidden = self.run()
        first = {injector.vectors[0].layer_index for injector, _ in self.entered if injector.strength}
        layer = min(first, default=2)  # up to the first steered layer the change is exactly the sum of vectors
        moved = sum(
            injector.strength * injector.vectors[0].vector
            for injector, _ in self.entered
            if injector.vectors[0].layer_index == layer
        )
        expected = self.plain[layer] + moved
        torch.testing.assert_close(hidden[LAYERS.index(layer)], expected, atol=1e-4, rtol=1e-4)

    def teardown(self):
        while self.entered:
            self.entered.pop()[1].__exit__(None, None, None)
        assert count_hooks(self.model) == 0
        assert torch.equal(self.model(IDS).logits, self.logits)


TestSteering = Steering.TestCase
TestSteering.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)
