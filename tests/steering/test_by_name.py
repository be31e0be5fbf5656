import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import rotalabs_steer as rs
from made_up_tuning import tuned_steering
from rotalabs_steer import ActivationInjector, MultiVectorInjector, SteeringVectorSet
from rotalabs_steer.errors import LayerError, ModelMismatchError, OptionError, VectorError
from tiny import count_hooks, make_vector

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(autouse=True)
def folder(llama, tmp_path, monkeypatch):
    """A folder with the sets `tuned/calm` and `tuned/humor` of a tiny model."""
    monkeypatch.chdir(tmp_path)
    calm_set(llama).save("tuned/calm")
    SteeringVectorSet("humor", [make_vector(llama, 2, seed=7, behavior="humor")]).save("tuned/humor")
    return tmp_path


def calm_set(model):
    return SteeringVectorSet("calm", [make_vector(model, layer, seed=layer, behavior="calm") for layer in (1, 2)])


def logits(model, injector):
    with injector:
        return model(IDS).logits


def acting(injector):
    return {name: [vector.layer_index for vector in vectors] for name, vectors in injector.vectors.items()}


@pytest.mark.parametrize("what", [
    lambda m: "tuned/calm=0.5", lambda m: {"tuned/calm": 0.5}, lambda m: [("tuned/calm", 0.5)],
    lambda m: {Path("tuned/calm"): np.float64(0.5)}, lambda m: [(calm_set(m), 0.5)], lambda m: ["tuned/calm=0.5"],
    lambda m: {calm_set(m).get_best(): 0.5}, lambda m: ((calm_set(m), torch.tensor(0.5)),),
])  # fmt: skip
def test_a_set_steers_at_its_strength_wherever_it_is(llama, what):
    injector = rs.steer(llama, what(llama))
    assert isinstance(injector, MultiVectorInjector)
    assert injector.strengths == {"calm": 0.5}
    expected = logits(llama, ActivationInjector(llama, calm_set(llama), 0.5))
    assert torch.equal(logits(llama, injector), expected)
    assert not torch.equal(expected, llama(IDS).logits)


@pytest.mark.parametrize("what", [
    lambda m: "tuned/calm", lambda m: Path("tuned/calm"), calm_set, lambda m: [calm_set(m)],
    lambda m: calm_set(m).get_best(),
])  # fmt: skip
def test_a_set_without_a_strength_steers_at_one(llama, what):
    injector = rs.steer(llama, what(llama))
    assert injector.strengths == {"calm": 1.0}
    assert torch.equal(logits(llama, injector), logits(llama, ActivationInjector(llama, calm_set(llama))))


def test_the_result_of_tuning_steers_by_its_vectors(llama):
    tuned = tuned_steering()
    injector = rs.steer(llama, {tuned: 0.5}, check_model=False)
    assert injector.vector_sets == {tuned.behavior: tuned.vectors}
    assert injector.strengths == {tuned.behavior: 0.5}


def test_a_set_that_was_found_not_to_steer_gives_a_warning_where_it_is_used(llama):
    vectors = calm_set(llama)
    vectors.metadata["steers"] = False
    with pytest.warns(rs.NotSteeringWarning, match="Tuning found that the vectors of 'calm' do not steer") as caught:
        rs.steer(llama, vectors)
    assert caught[0].filename == __file__
    vectors.metadata["steers"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rs.steer(llama, vectors)


def test_several_sets_act_together_and_their_strengths_change_by_name(llama):
    both = rs.steer(llama, "tuned/calm=0.5,tuned/humor=-1")
    assert both.strengths == {"calm": 0.5, "humor": -1.0}
    with both as s:
        together = llama(IDS).logits
        s["humor"] = 0.0
        assert s["humor"] == 0.0
        alone = llama(IDS).logits
    assert torch.equal(alone, logits(llama, rs.steer(llama, "tuned/calm=0.5")))
    assert not torch.equal(together, alone)
    assert rs.steer(llama, ["tuned/calm", ("tuned/humor", 2)]).strengths == {"calm": 1.0, "humor": 2.0}


@pytest.mark.parametrize("what", ["tuned/calm:2=0.5", {"tuned/calm:2": 0.5}, [("tuned/calm:2", 0.5)]])
def test_a_text_may_name_the_layers_that_act(llama, what):
    injector = rs.steer(llama, what)
    assert (acting(injector), injector.strengths) == ({"calm": [2]}, {"calm": 0.5})
    assert acting(rs.steer(llama, "tuned/calm:1-2")) == {"calm": [1, 2]}
    with pytest.raises(LayerError, match=r"The set of 'calm' has no vector at layer 3; it has \[1, 2\]"):
        rs.steer(llama, "tuned/calm:3")


def test_options_are_those_of_the_injector(llama):
    vector = make_vector(llama, behavior="calm")
    options = {"scope": "first", "intervention": lambda v: rs.Clamp(v, value=2.0), "schedule": rs.StopAfter(3)}
    expected = ActivationInjector(llama, vector, injection_mode="first", intervention=options["intervention"])
    assert rs.steer(llama, vector, **options).scope == "first"
    assert torch.equal(logits(llama, rs.steer(llama, vector, **options)), logits(llama, expected))


def test_strengths_can_be_given_by_row(llama):
    two = IDS.repeat(2, 1)
    with rs.steer(llama, {"tuned/calm": [1.0, 0.0]}):
        rows = llama(two).logits
    assert torch.allclose(rows[0], logits(llama, rs.steer(llama, "tuned/calm"))[0], atol=1e-5)
    assert torch.allclose(rows[1], llama(IDS).logits[0], atol=1e-5)


def test_a_revision_of_a_repository_is_named_with_its_strength(hub, llama):
    old = calm_set(llama)
    old.push_to_hub("me/calm")
    first = hub.repos["me/calm"]["branches"]["main"]
    old.scale(2.0).push_to_hub("me/calm")
    injector = rs.steer(llama, f"me/calm@{first}=0.5")
    assert (injector.vector_sets, injector.strengths) == ({"calm": old}, {"calm": 0.5})
    assert rs.steer(llama, "me/calm").vector_sets == {"calm": old.scale(2.0)}


@pytest.mark.parametrize(("what", "error", "message"), [
    ("tuned/calm=much", OptionError, "is not of the form VECTORS=STRENGTH"),
    ("nowhere=1", FileNotFoundError, "There are no steering vectors at nowhere:"),
    ("tuned", VectorError, r"tuned is a folder of vector sets, not a set.*tuned/calm, tuned/humor"),
    ("tuned/calm,tuned/calm=0.5", OptionError, "names tuned/calm twice"),
    ({"tuned/calm": float("nan")}, OptionError, "not a finite number"),
    ({"tuned/calm": "0.5"}, OptionError, "The strength of 'tuned/calm' is a str, not a number"),
    ({"tuned/calm=1": 0.5}, OptionError, "'tuned/calm=1' has a strength beside it"),
    ({"tuned/calm,tuned/humor": 0.5}, OptionError, "must name one vector set without a strength"),
    ({}, OptionError, "No vectors given"), ([], OptionError, "No vectors given"),
    (None, OptionError, "not by a NoneType"), (5, OptionError, "not by a int"),
    (torch.ones(16), OptionError, "not by a Tensor"), ([np.ones(16)], OptionError, "not by a ndarray"),
    (["tuned/calm", 0.5, "tuned/humor"], OptionError, "0.5 stands alone in the list"),
])  # fmt: skip
def test_what_cannot_steer_is_an_error_and_leaves_the_model_alone(llama, what, error, message):
    hooks = count_hooks(llama)
    with pytest.raises(error, match=message):
        rs.steer(llama, what)
    assert count_hooks(llama) == hooks


def test_two_sets_of_one_behaviour_are_an_error(llama):
    one, other = (make_vector(llama, layer, behavior="calm") for layer in (1, 2))
    for what in ([one, other], {one: 0.5, "tuned/calm": 1.0}):
        with pytest.raises(OptionError, match="Two of the vector sets are of 'calm'"):
            rs.steer(llama, what)


def test_vector_sets_by_behaviour_are_told_from_strengths(llama):
    for vectors in (calm_set(llama), make_vector(llama), tuned_steering()):
        with pytest.raises(OptionError, match=r"The strength of 'calm' is a .*, not a number\. Give vectors and their"):
            rs.steer(llama, {"calm": vectors})


def test_options_and_models_that_do_not_fit_are_errors(llama):
    with pytest.raises(OptionError, match="Unknown scope 'middle'"):
        rs.steer(llama, "nowhere", scope="middle")
    other = rs.SteeringVector("calm", 1, torch.ones(16), "Qwen/Qwen3-8B")
    with pytest.raises(ModelMismatchError, match="made from 'Qwen/Qwen3-8B'"):
        rs.steer(llama, other)
    assert rs.steer(llama, other, check_model=False).strengths == {"calm": 1.0}
