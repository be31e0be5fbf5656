"""One string where a list of them is wanted: its letters would silently be taken for prompts."""

import numpy as np
import pytest

from rotalabs_steer.errors import OptionError
from rotalabs_steer.evaluation import analyze_tradeoffs, evaluate_refusal, strength_sweep
from rotalabs_steer.extraction.extract import extract_vectors
from rotalabs_steer.generation.answers import Sampling
from rotalabs_steer.generation.continuation import generate_texts
from rotalabs_steer.integrations.vector_sources import strength_by_behavior
from rotalabs_steer.listed import list_of
from rotalabs_steer.steering.conditions import fit_condition
from tiny import make_vector


def test_lists_generators_and_arrays_are_lists():
    assert list_of("texts", ["a", "b"]) == list_of("texts", (t for t in "ab")) == list_of("texts", np.array(["a", "b"]))


@pytest.mark.parametrize(("given", "message"), [
    ("ab", "texts is one string; give a list of strings"), ({"a": 1}, "texts is a dict; give a list"),
    (None, "texts is a NoneType; give a list"), (5, "texts is a int"),
])  # fmt: skip
def test_what_is_no_list_is_an_error(given, message):
    with pytest.raises(OptionError, match=message):
        list_of("texts", given)


class Letters:
    """A tokenizer that nobody comes to ask."""

    chat_template = None

    def __call__(self, text, **options):
        return {"input_ids": [ord(letter) for letter in text]}


PAIRS = [{"positive": "yes", "negative": "no"}, {"positive": "ja", "negative": "nein"}]


@pytest.mark.parametrize(("call", "name"), [
    (lambda m: fit_condition(m, Letters(), "harmful", ["b"], [1]), "positive_prompts"),
    (lambda m: fit_condition(m, Letters(), ["a"], "harmless", [1]), "negative_prompts"),
    (lambda m: evaluate_refusal(m, Letters(), "harmful", ["b"]), "harmful_prompts"),
    (lambda m: evaluate_refusal(m, Letters(), ["a"], "harmless"), "benign_prompts"),
    (lambda m: analyze_tradeoffs(m, Letters(), make_vector(m), "one", ["b"], bool), "target_prompts"),
    (lambda m: analyze_tradeoffs(m, Letters(), make_vector(m), ["a"], "two", bool), "control_prompts"),
    (lambda m: strength_sweep(m, Letters(), make_vector(m), "one", bool), "prompts"),
    (lambda m: generate_texts(m, Letters(), "one"), "prompts"),
    (lambda m: extract_vectors(m, Letters(), PAIRS, [1], neutral_texts="one"), "neutral_texts"),
])  # fmt: skip
def test_every_list_of_texts_is_asked_for(llama, call, name):
    with pytest.raises(OptionError, match=f"{name} is one string; give a list of strings"):
        call(llama)


@pytest.mark.parametrize("call", [
    lambda m: strength_sweep(m, Letters(), make_vector(m), ["a"], None),
    lambda m: analyze_tradeoffs(m, Letters(), make_vector(m), ["a"], ["b"], "yes"),
])  # fmt: skip
def test_a_detector_that_cannot_be_called_is_refused_before_anything_runs(llama, call):
    with pytest.raises(OptionError, match=r"is_target_behavior_fn is .*; it must be a function of a text"):
        call(llama)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "8", True])
def test_a_batch_has_at_least_one_text(llama, batch_size):
    with pytest.raises(OptionError, match=f"batch_size is {batch_size!r}; it must be an integer from 1 on"):
        extract_vectors(llama, Letters(), PAIRS, [1], batch_size=batch_size)


def test_sampling_takes_numbers_and_nothing_else():
    plain = Sampling(5, 0.5)
    assert Sampling(np.int64(5), np.float32(0.5)) == plain
    assert type(Sampling(np.int64(5)).max_new_tokens) is int
    for options in ({"max_new_tokens": "5"}, {"temperature": None}, {"batch_size": 2.5}, {"temperature": float("nan")}):
        with pytest.raises(OptionError, match="max_new_tokens and batch_size must be integers from 1 on"):
            Sampling(**options)


@pytest.mark.parametrize(("strength", "message"), [
    ("a:1;a:2", "names 'a' twice"), (True, "strength is True; give a number"),
    ([1.0], "give a number"), (None, "strength is None"), ("nan", "strength is 'nan'"),
    ("a:x", "'a:x' in 'a:x' is not of the form"),
])  # fmt: skip
def test_strengths_in_text_are_numbers_and_name_a_behaviour_once(strength, message):
    with pytest.raises(OptionError, match=message):
        strength_by_behavior({"a": None}, strength)
