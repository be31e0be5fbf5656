"""What users pass: numbers of numpy and torch count as numbers, and a single string is not a list of strings."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from rotalabs_steer import (
    ActivationHook,
    ActivationInjector,
    MultiVectorInjector,
    SteeringVector,
    SteeringVectorSet,
    extract_activations,
)
from rotalabs_steer.arguments import as_integer, as_real, json_value, list_of, plain_value
from rotalabs_steer.datasets import ContrastPair, ContrastPairDataset, load_pairs, save_jsonl
from rotalabs_steer.engines.vllm import SteeringRequest
from rotalabs_steer.errors import LayerError, OptionError, VectorError
from rotalabs_steer.evaluation import analyze_tradeoffs, evaluate_refusal, strength_sweep
from rotalabs_steer.evaluation.strength_measurement import list_of_strengths
from rotalabs_steer.extraction.extract import extract_vectors
from rotalabs_steer.generation.answers import Sampling
from rotalabs_steer.generation.continuation import generate_texts
from rotalabs_steer.importing import import_vectors
from rotalabs_steer.integrations.harness_steering import strength_by_behavior
from rotalabs_steer.steering.conditions import Condition, fit_condition
from rotalabs_steer.steering.schedules import LinearDecay, StopAfter
from rotalabs_steer.steering.scopes import AfterMarker, TokenRange
from rotalabs_steer.steering.strengths import check_strength
from rotalabs_steer.tuning.options import TuningOptions
from tiny import make_vector

IDS = torch.tensor([[1, 5, 6]])
THREES = [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)]
HALVES = [0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5),
          torch.tensor(0.5, dtype=torch.bfloat16), torch.tensor(0.5, requires_grad=True)]  # fmt: skip
NO_INTEGERS = [True, np.bool_(True), torch.tensor(True), 3.0, np.float32(3.0), "3", None, [3], np.array([3]), 3 + 0j]
NO_REALS = [True, np.bool_(True), "0.5", None, [0.5], 1j, float("nan"), np.float32("inf"), torch.tensor(float("nan")),
            10**400]  # fmt: skip


@pytest.mark.parametrize("three", THREES, ids=repr)
def test_integers_of_every_library_are_integers(three):
    assert as_integer(three) == 3
    assert type(as_integer(three)) is int


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
def test_what_is_not_an_integer_is_none(value):
    assert as_integer(value) is None


@pytest.mark.parametrize("half", HALVES, ids=repr)
def test_real_numbers_of_every_library_are_floats(half):
    assert as_real(half) == 0.5
    assert type(as_real(half)) is float


@pytest.mark.parametrize("value", NO_REALS, ids=lambda value: repr(value)[:20])
def test_what_is_not_a_finite_real_number_is_none(value):
    assert as_real(value) is None


def test_arrays_become_lists_and_everything_else_stays():
    assert plain_value(np.arange(3)) == [0, 1, 2]
    assert plain_value(torch.ones(2)) == [1.0, 1.0]
    assert plain_value("text") == "text"
    with pytest.raises(TypeError, match="type object is not a JSON value"):
        json_value(object())


@pytest.mark.parametrize("layer", THREES, ids=repr)
def test_a_layer_may_be_of_any_library(llama, layer):
    vector = SteeringVector("test", layer, torch.ones(16), "tiny")
    assert type(vector.layer_index) is int
    vectors = SteeringVectorSet("test", [vector], {"chosen_layer": layer})
    assert vectors[layer] is vector
    assert vectors.get(layer) is vector
    assert layer in vectors
    assert vectors.chosen_layer == 3
    assert MultiVectorInjector(llama, {"test": vectors}, default_layer=layer).vectors["test"] == [vector]
    assert ActivationHook(llama, [layer]).layer_indices == [3]
    assert ActivationHook(llama, layer).layer_indices == [3]
    assert Condition(torch.ones(16), layer, np.float32(0.5)).layer_index == 3
    assert import_vectors({as_integer(layer): torch.ones(16)}, layer_offset=np.int64(-1)).layers == [2]
    assert import_vectors(torch.ones(16), layers=[layer]).layers == [3]


@pytest.mark.parametrize("layer", [True, torch.tensor(True), 1.5, "1", None, [1]], ids=repr)
def test_what_is_not_a_layer_finds_no_vector(layer):
    vectors = SteeringVectorSet("test", [SteeringVector("test", 1, torch.ones(16), "tiny")])
    assert vectors.get(layer) is None
    assert layer not in vectors
    with pytest.raises(KeyError, match="No vector for layer"):
        vectors[layer]
    with pytest.raises(VectorError, match=r"layer_index is .*; it must be a 0-based decoder layer"):
        SteeringVector("test", layer, torch.ones(16), "tiny")


@pytest.mark.parametrize(
    "layers",
    [np.arange(1, 3), torch.arange(1, 3), range(1, 3), iter((1, 2))],
    ids=["array", "tensor", "range", "iterator"],
)
def test_layers_may_be_any_kind_of_list(llama, layers):
    assert list(extract_activations(llama, {"input_ids": IDS}, layers)) == [1, 2]


@pytest.mark.parametrize(("layers", "message"), [
    ("12", "Layer '12' does not exist"), (None, "Layer None does not exist"), (1.0, "Layer 1.0 does not exist"),
    (True, "Layer True does not exist"), (np.array([1.5]), "Layer 1.5 does not exist"), ([], "No layer index given"),
    (np.int64(4), "Layer 4 does not exist|Layer np.int64"), ([1, np.int64(1)], "name a layer twice"),
])  # fmt: skip
def test_what_is_not_a_list_of_layers_is_a_layer_error(llama, layers, message):
    with pytest.raises(LayerError, match=message):
        ActivationHook(llama, layers)


@pytest.mark.parametrize("half", HALVES, ids=repr)
def test_a_strength_may_be_of_any_library_and_steers_as_the_float_does(llama, half):
    vector = make_vector(llama)
    with torch.no_grad(), ActivationInjector(llama, [vector], 0.5):
        expected = llama(IDS).logits
    injector = ActivationInjector(llama, [vector], half)
    assert type(injector.strength) is float
    with torch.no_grad(), injector:
        assert torch.equal(llama(IDS).logits, expected)


@pytest.mark.parametrize("rows", [[0.5, 1], (np.float32(0.5), torch.tensor(1)), np.array([0.5, 1.0]),
                                  torch.tensor([0.5, 1.0])], ids=repr)  # fmt: skip
def test_strengths_of_rows_may_be_an_array(rows):
    assert check_strength(rows) == (0.5, 1.0)
    assert list_of_strengths(rows) == [0.5, 1.0]


def test_one_strength_to_measure_at_is_a_list_of_one():
    assert list_of_strengths(np.float32(0.5)) == [0.5]
    assert list_of_strengths([]) == []


@pytest.mark.parametrize("value", [*NO_REALS[:4], np.ones((2, 2)), [0.5, "1"], {0.5}, {"a": 1}, np.array([True])],
                         ids=lambda value: repr(value)[:20])  # fmt: skip
def test_what_is_not_a_strength_is_refused_by_what_it_is(value):
    with pytest.raises(OptionError, match=r"Strength .* is not a finite number"):
        check_strength(value)


def test_counts_and_ids_may_be_of_any_library():
    assert StopAfter(np.int64(3)) == StopAfter(3)
    assert LinearDecay(torch.tensor(3)) == LinearDecay(3)
    assert TokenRange(np.int64(1), torch.tensor(3)) == TokenRange(1, 3)
    assert AfterMarker(np.array([4, 5])) == AfterMarker([np.int64(4), 5]) == AfterMarker((4, 5))
    assert TuningOptions(candidates=np.int64(3), budget=np.float64(0.2)) == TuningOptions()
    assert repr(TuningOptions(candidates=np.int64(3)).to_record()) == repr(TuningOptions().to_record())


@pytest.mark.parametrize("make", [
    lambda: StopAfter(2.5), lambda: StopAfter("3"), lambda: TokenRange("1", 3), lambda: TokenRange(0, 2.5),
    lambda: AfterMarker("###"), lambda: AfterMarker([1, 2.5]), lambda: AfterMarker(None), lambda: AfterMarker(5),
    lambda: TuningOptions(budget="0.2"), lambda: TuningOptions(candidates=2.5), lambda: TuningOptions(prompts=None),
    lambda: Condition(torch.ones(4), -1, 0.5), lambda: Condition(torch.ones(4), 1, "0.5"),
    lambda: make_vector_of_four().scale("2"), lambda: make_vector_of_four().scale(torch.ones(4)),
])  # fmt: skip
def test_counts_that_are_none_are_option_errors(make):
    with pytest.raises(OptionError):
        make()


def make_vector_of_four(**metadata):
    return SteeringVector("calm", 1, torch.ones(4), "m", metadata=metadata)


def test_a_request_to_a_server_made_with_numpy_reads_as_one_without():
    plain = SteeringRequest.parse({"behaviors": {"calm": 0.5}, "layers": [1, 2]})
    assert SteeringRequest.parse({"behaviors": {"calm": np.float32(0.5)}, "layers": np.array([1, 2])}) == plain


def test_a_factor_of_numpy_is_recorded_as_a_number():
    scaled = make_vector_of_four().scale(np.float32(0.5))
    assert type(scaled.metadata["scale_factor"]) is float
    assert scaled.vector.dtype is torch.float32


@pytest.mark.parametrize("ending", ["", ".safetensors"])
def test_numbers_of_numpy_and_torch_in_metadata_are_saved_as_numbers(tmp_path, ending):
    facts = {"seed": np.int64(7), "score": np.float32(0.5), "rates": np.array([0.5, 1.0]), "at": torch.tensor(2)}
    vectors = SteeringVectorSet("calm", [make_vector_of_four(**facts)], {"chosen_layer": np.int64(1), **facts})
    path = tmp_path / f"calm{ending}"
    vectors.save(path)
    loaded = SteeringVectorSet.load(path)
    plain = {"seed": 7, "score": 0.5, "rates": [0.5, 1.0], "at": 2}
    assert loaded.metadata == {"chosen_layer": 1, **plain}
    assert loaded[1].metadata.items() >= plain.items()


@pytest.mark.parametrize("norm", [2, 2.0])
def test_a_norm_written_as_an_integer_is_a_norm(tmp_path, norm):
    make_vector_of_four().save(tmp_path / "calm")
    document = json.loads((tmp_path / "calm.json").read_text("utf-8"))
    (tmp_path / "calm.json").write_text(json.dumps(document | {"norm": norm}), "utf-8")
    assert SteeringVector.load(tmp_path / "calm").norm == 2.0


def test_numbers_of_numpy_in_the_metadata_of_pairs_are_saved_as_numbers(tmp_path):
    pairs = ContrastPairDataset("calm", [ContrastPair("yes", "no", {"id": np.int64(7)})])
    pairs.save(tmp_path / "calm.json")
    save_jsonl(pairs, tmp_path / "calm.jsonl")
    for name in ("calm.json", "calm.jsonl"):
        assert load_pairs(tmp_path / name)[0].metadata == {"id": 7}


def test_lists_generators_and_arrays_are_lists():
    assert list_of("texts", ["a", "b"]) == list_of("texts", (t for t in "ab")) == list_of("texts", np.array(["a", "b"]))


@pytest.mark.parametrize(("given", "message"), [
    ("ab", "texts is one string; give a list of strings"), ({"a": 1}, "texts is a dict; give a list"),
    (None, "texts is a NoneType; give a list"), (5, "texts is a int"),
])  # fmt: skip
def test_what_is_not_a_list_is_an_error(given, message):
    with pytest.raises(OptionError, match=message):
        list_of("texts", given)


class Letters:
    """A tokenizer of one token per letter; the calls fail before they use it."""

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
    with pytest.raises(OptionError, match=r"function that detects the behavior is .*; it must be a function of a text"):
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
