import math
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rotalabs_steer.engines.vllm import SteeringRequest
from rotalabs_steer.errors import OptionError

parse = SteeringRequest.parse


def test_the_long_and_the_short_form():
    long = parse({"behaviors": {"humor": -0.5, "formality": 0.8}, "scope": "all"})
    assert long == SteeringRequest((("formality", 0.8), ("humor", -0.5)))
    assert parse({"humor": -0.5, "formality": 0.8}) == long
    assert hash(parse({"formality": 0.8, "humor": -0.5})) == hash(long)


def test_words_of_the_long_form_can_name_behaviours_in_the_short_one():
    assert parse({"scope": 1, "behaviors": 2}).behaviors == (("behaviors", 2.0), ("scope", 1.0))


def test_layers_for_all_behaviours_or_for_some():
    behaviors = {"a": 1, "b": 1}
    assert parse({"behaviors": behaviors, "layers": [14, 3]}).layers == (("a", (3, 14)), ("b", (3, 14)))
    assert parse({"behaviors": behaviors, "layers": {"b": 5}}).layers == (("b", (5,)),)


def test_a_strength_of_zero_is_left_out():
    assert parse({"a": 0, "b": 1.5}).behaviors == (("b", 1.5),)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "steering is None; it must be an object"),
        ([1], "it must be an object"),
        ("x" * 500, r"steering is 'x{76}\.\.\.; it must"),
        ({}, "names 0 behaviours"),
        ({"behaviors": {}}, "names 0 behaviours"),
        ({str(n): 1 for n in range(65)}, "names 65 behaviours; it must name 1 to 64"),
        ({"a": "1"}, "The strength of 'a' is '1'; it must be a number"),
        ({"a": True}, "The strength of 'a' is True; it must be a number"),
        ({"behaviour": {"a": 1}}, "The strength of 'behaviour' is {'a': 1}; it must be a number"),
        ({"a": math.nan}, "The strength of 'a' is nan; it must be a number from -10 to 10"),
        ({"a": -math.inf}, "The strength of 'a' is -inf; it must be a number from -10 to 10"),
        ({"a": 10.5}, "The strength of 'a' is 10.5; it must be a number from -10 to 10"),
        ({"a": 10**5000}, "is an enormous number; it must be a number from -10 to 10"),
        ({1: 1.0}, "names a behaviour by 1; it must be a string"),
        ({"behaviors": {"a": 1}, "vector": [1, 2]}, "steering has no 'vector'; it has behaviors, scope, layers"),
        ({"behaviors": {"a": 1}, "scope": "everywhere"}, "scope 'everywhere'; use one of: all, first, last, prompt"),
        ({"behaviors": {"a": 1}, "scope": ["all"]}, "scope"),
        ({"behaviors": {"a": 1}, "layers": [-1]}, r"layers \[-1\]; give 0-based decoder layers"),
        ({"behaviors": {"a": 1}, "layers": []}, "give 0-based decoder layers"),
        ({"behaviors": {"a": 1}, "layers": "12"}, "give 0-based decoder layers"),
        ({"behaviors": {"a": 1}, "layers": [2, 2]}, "name a layer twice"),
        ({"behaviors": {"a": 1}, "layers": {"b": [1]}}, "gives layers for 'b', which is not among its behaviours"),
    ],
)
def test_what_cannot_be_meant_is_refused(value, message):
    with pytest.raises(OptionError, match=message):
        parse(value)


def test_the_largest_strength_can_be_set():
    assert parse({"a": 3.0}, max_strength=3).behaviors == (("a", 3.0),)
    with pytest.raises(OptionError, match="it must be a number from -3 to 3"):
        parse({"a": 3.01}, max_strength=3)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(json_values | st.fixed_dictionaries({"behaviors": json_values, "scope": json_values, "layers": json_values}))
def test_whatever_is_sent_is_read_or_refused(value):
    with suppress(OptionError):
        request = parse(value)
        assert all(math.isfinite(strength) and 0 < abs(strength) <= 10 for _, strength in request.behaviors)
