"""The layers and what is written for them, on a plain torch model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engines.vllm.steered_sets import TINY, random_set, save_sets
from rotalabs_steer.engines.vllm.catalogue import Catalogue
from rotalabs_steer.engines.vllm.layers import local_decoder_layers, steer_layers
from rotalabs_steer.engines.vllm.requests import SteeringRequest
from rotalabs_steer.engines.vllm.steering import Steering
from rotalabs_steer.engines.vllm.step import Span, StepWriter
from rotalabs_steer.errors import ArchitectureError, VectorError
from rotalabs_steer.model.positions import forward_call
from rotalabs_steer.steering.scopes import SCOPES, select

ROWS = 4


class Layer(nn.Module):
    def forward(self, hidden, residual):
        return hidden + 1.0, residual


class Single(nn.Module):
    def forward(self, hidden):
        return hidden * 2.0


class PPMissingLayer(nn.Identity):
    pass


class Model(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)


@pytest.fixture
def catalogue(tmp_path):
    save_sets(tmp_path, hidden=8)
    return Catalogue.load(tmp_path, TINY, 10.0)


@pytest.fixture
def model():
    return Model([Layer() for _ in range(30)])


@pytest.fixture
def buffers(model, catalogue):
    return steered(model, catalogue)


@pytest.fixture
def writer(catalogue, buffers):
    return StepWriter(catalogue, buffers)


def steered(model, catalogue):
    layers = local_decoder_layers(model, 30)
    sizes = {"rows": ROWS, "tokens": 16, "hidden": 8, "dtype": torch.float32, "device": torch.device("cpu")}
    return steer_layers(layers, catalogue.layers, **sizes)


def ask(catalogue, value):
    return catalogue.resolve(SteeringRequest.parse(value))


def added(model, layer, tokens):
    zeros = torch.zeros(tokens, 8)
    hidden, residual = model.layers[layer](zeros, zeros)
    assert torch.equal(residual, zeros)
    return hidden - 1.0


@settings(deadline=None)
@given(st.sampled_from(SCOPES), st.integers(1, 40), st.integers(0, 60), st.integers(1, 60))
def test_scopes_are_those_of_transformers(scope, prompt, start, count):
    call = forward_call(1, prompt + 120, offset=0, prompt_columns=prompt)
    chosen = select(call, scope)
    everywhere = torch.full((prompt + 120,), chosen) if isinstance(chosen, bool) else chosen[0]
    first, last = Steering((), scope).covered(prompt, start, start + count)
    expected = everywhere[start : start + count].nonzero().flatten() + start
    assert list(range(first, last)) == expected.tolist()


def test_each_token_gets_what_its_request_asks_for(model, catalogue, writer):
    one, two = ask(catalogue, {"warm": 1.0}), ask(catalogue, {"behaviors": {"cool": -2.0}, "scope": "generated"})
    writer.write([Span(one, 3, 0, 3), Span(None, 0, 5, 1), Span(two, 4, 2, 4)])
    found = added(model, 15, 8)
    warm, cool = catalogue.deltas(one)[15], catalogue.deltas(two)[15]
    nothing = torch.zeros(8)
    expected = torch.stack([warm, warm, warm, nothing, nothing, cool, cool, cool])
    torch.testing.assert_close(found, expected)
    assert not added(model, 10, 8).any()


def test_behaviours_of_one_request_add_up_over_layers(model, catalogue, writer):
    value = {"behaviors": {"warm": 1.0, "cool": 0.5, "calm": 2.0}, "layers": {"warm": [10, 15]}}
    steering = ask(catalogue, value)
    writer.write([Span(steering, 1, 0, 1)])
    assert sorted(catalogue.deltas(steering)) == [10, 15, 20]
    for layer, delta in catalogue.deltas(steering).items():
        torch.testing.assert_close(added(model, layer, 1)[0], delta)


def test_a_step_leaves_nothing_to_the_next(model, catalogue, writer, buffers):
    writer.write([Span(ask(catalogue, {"warm": 1.0}), 8, 0, 8)])
    assert added(model, 15, 8).any()
    writer.write([Span(None, 0, 8, 8)])
    assert not buffers.slots.any()


def test_rows_are_used_again(model, catalogue, writer):
    for number in range(1, 20):
        name, layer = (("warm", 15), ("calm", 20))[number % 2]
        steering = ask(catalogue, {name: number / 4})
        batch = [Span(steering, 1, 0, 1), Span(ask(catalogue, {"cool": 1.0}), 1, 0, 1), Span(None, 0, 3, 1)]
        writer.write(batch)
        torch.testing.assert_close(added(model, layer, 3)[0], catalogue.deltas(steering)[layer])
        assert not added(model, 35 - layer, 1).any()


def test_as_many_steerings_at_once_as_rows(model, catalogue, writer):
    steerings = [ask(catalogue, {"warm": 1.0 + number}) for number in range(ROWS - 1)]
    for batch in (steerings, steerings[::-1]):
        writer.write([Span(steering, 1, 0, 1) for steering in batch])
        expected = torch.stack([catalogue.deltas(steering)[15] for steering in batch])
        torch.testing.assert_close(added(model, 15, ROWS - 1), expected)


def test_a_vector_that_a_worker_does_not_have_is_an_error_each_time_and_never_zeros(tmp_path, writer, catalogue):
    known = ask(catalogue, {"cool": 1.0})
    random_set("warm", (10, 15, 20), 9, hidden=8).save(tmp_path / "warm")
    unknown = ask(Catalogue.load(tmp_path, TINY, 10.0), {"behaviors": {"warm": 1.0}, "layers": [15]})
    for _ in range(2 * ROWS):
        with pytest.raises(VectorError, match="this worker does not have"):
            writer.write([Span(unknown, 4, 0, 4)])
    writer.write([Span(known, 1, 0, 1), Span(ask(catalogue, {"calm": 1.0}), 1, 0, 1)])


def test_layers_that_return_one_tensor(catalogue):
    model = Model([Single() for _ in range(30)])
    writer = StepWriter(catalogue, steered(model, catalogue))
    steering = ask(catalogue, {"calm": 1.0})
    writer.write([Span(steering, 2, 0, 2)])
    expected = (2.0 + catalogue.deltas(steering)[20]).expand(2, 8)
    torch.testing.assert_close(model.layers[20](torch.ones(2, 8)), expected)
    torch.testing.assert_close(model.layers[20](torch.ones(1, 2, 8))[0], expected)


def test_layers_keep_their_class_to_others(model, buffers):
    assert isinstance(model.layers[15], Layer)
    assert type(model.layers[15]).__name__ == "Layer"
    assert type(model.layers[14]) is Layer
    assert "layers.15.steering_table" not in model.state_dict()


def test_a_pipeline_stage_steers_its_own_layers(catalogue):
    stage = [Layer() if 12 <= number < 16 else PPMissingLayer() for number in range(30)]
    buffers = steered(Model(stage), catalogue)
    assert sorted(buffers.tables) == [12, 15]
    outside = steered(Model([PPMissingLayer() for _ in range(30)]), catalogue)
    StepWriter(catalogue, outside).write([Span(ask(catalogue, {"warm": 1.0}), 1, 0, 1)])


def test_a_model_whose_layers_cannot_be_told():
    with pytest.raises(ArchitectureError, match="Model has 0 lists of 30 modules"):
        local_decoder_layers(Model([Layer()]), 30)
