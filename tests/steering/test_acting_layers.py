"""What is given to an injector: vectors, sets, and things that are taken for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from made_up_tuning import tuned_steering
from rotalabs_steer import ActivationInjector, MultiVectorInjector, SteeringVector, SteeringVectorSet
from rotalabs_steer.errors import OptionError, VectorError
from rotalabs_steer.steering.acting_layers import acting_vectors, sets_by_behavior
from rotalabs_steer.steering.conditions import Condition, FittedCondition
from tiny import make_vector


def some_set(layers=(1, 2), **metadata):
    return SteeringVectorSet("calm", [SteeringVector("calm", n, torch.ones(16), "tiny") for n in layers], metadata)


def test_vectors_and_sets_give_the_vectors_that_act():
    spread = some_set(acting_layers=[1, 2])
    one = spread[1]
    assert acting_vectors(one) == [one]
    assert acting_vectors(vector for vector in spread) == list(spread)
    assert acting_vectors(spread) == list(spread)
    assert acting_vectors([one, some_set(chosen_layer=2)]) == [one, spread[2]]


def test_a_vector_where_a_set_is_wanted_is_a_set_of_one(llama):
    vector = make_vector(llama)
    injector = MultiVectorInjector(llama, {"test": vector})
    assert injector.vector_sets["test"].layers == [1]
    assert injector.vector_sets["test"][1] is vector


@pytest.mark.parametrize(("given", "message"), [
    ("tuned/calm", r"'tuned/calm' is neither .* Load the vectors first: SteeringVectorSet.load\('tuned/calm'\)"),
    (Path("calm"), r"Load the vectors first: SteeringVectorSet.load\('calm'\)"),
    (["calm"], r"Load the vectors first: SteeringVectorSet.load\('calm'\)"),
    ([torch.ones(16)], r"A Tensor is neither .* SteeringVector\(behavior, layer_index, tensor"),
    (torch.ones(2, 16), "A Tensor is neither"),
    ({"calm": some_set()}, "A dict is neither .* by behaviour are for MultiVectorInjector"),
    ([tuned_steering()], "Give its vectors: tuned.vectors"),
    (None, "None is neither a SteeringVector nor a SteeringVectorSet. Give SteeringVectors"),
    (7, "7 is neither"),
    ([], "No vector given"),
    ((vector for vector in ()), "No vector given"),
    (SteeringVectorSet("calm"), "set of 'calm' is empty"),
])  # fmt: skip
def test_what_is_not_a_vector_is_refused_with_the_way_to_one(llama, given, message):
    with pytest.raises(VectorError, match=message):
        ActivationInjector(llama, given)


@pytest.mark.parametrize(("given", "message"), [
    (some_set(), r"The vectors of 'calm' were given without a name. .* \{'calm': vectors\}"),
    ([some_set()], "Vector sets are given by behaviour, as in .*, got A list"),
    ({"calm": "tuned/calm"}, "Load the vectors first"),
    ({"calm": [some_set()[1]]}, "A list is neither"),
    ({"calm": None}, "None is neither"),
    (None, "got None"),
    ({}, "No vector sets given"),
])  # fmt: skip
def test_what_is_not_sets_by_behaviour_is_refused_with_the_way_to_them(given, message):
    with pytest.raises(VectorError, match=message):
        sets_by_behavior(given)


@pytest.mark.parametrize("strengths", [0.5, [0.5], "calm:0.5"])
def test_strengths_of_several_behaviours_are_named(llama, strengths):
    with pytest.raises(OptionError, match=r"Strengths are given by behaviour, as in \{'calm': 0.5\}, got"):
        MultiVectorInjector(llama, {"calm": some_set()}, strengths)


def test_a_condition_or_schedule_of_another_kind_is_refused(llama):
    fitted = FittedCondition(Condition(torch.ones(16), 0, 0.5), 1.0)
    with pytest.raises(OptionError, match=r"condition is a FittedCondition, not a Condition.*give .condition"):
        ActivationInjector(llama, some_set(), condition=fitted)
    with pytest.raises(OptionError, match="schedule is 3; it must be a schedule"):
        ActivationInjector(llama, some_set(), schedule=3)
