import dataclasses
import json

import numpy as np
import pytest
import torch

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.errors import FileFormatError, LayerError, OptionError, VectorError


def vector(layer=3, values=(3.0, 4.0), behavior="calm", **metadata):
    return SteeringVector(behavior, layer, torch.tensor(values), "some-model", metadata=metadata)


def test_norm_dim_and_metadata():
    one = vector()
    assert (one.norm, one.dim) == (5.0, 2)
    assert "created_at" in one.metadata
    assert one.extraction_method == "caa"


def test_arithmetic_returns_new_vectors_that_say_what_was_done():
    one = vector()
    assert one.normalize().norm == pytest.approx(1.0)
    assert one.normalize().metadata["normalized"] is True
    assert one.scale(2).scale(3).metadata["scale_factor"] == 6
    assert torch.equal(one.scale(2).scale(3).vector, one.vector * 6)
    assert "scale_factor" not in one.metadata
    moved = one.to("cpu")
    assert moved == one
    assert moved.metadata is not one.metadata
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.behavior = "other"


def test_the_callers_metadata_is_not_shared():
    mine = {"tags": ["a"]}
    one = SteeringVector("calm", 1, torch.ones(2), "m", metadata=mine)
    mine["tags"].append("b")
    assert one.metadata["tags"] == ["a"]
    assert "created_at" not in mine


def test_equality_and_hash():
    one = vector(created_at="now")
    assert one == vector(created_at="now")
    assert one != vector(values=(3.0, 5.0), created_at="now")
    assert one != "something else"
    assert len({one, vector(created_at="now")}) == 1


@pytest.mark.parametrize(("values", "message"), [
    (torch.ones(1, 2), r"shape \[hidden\], got \[1, 2\]"),
    (torch.ones(0), r"got \[0\]"),
    (torch.ones(2, dtype=torch.int64), r"floats of 16 bits or more, got torch.int64"),
    (torch.ones(2).to(torch.float8_e4m3fn), r"got torch.float8_e4m3fn. Use vector.float\(\)"),
    (torch.ones(2).to_sparse(), "dense tensor with data, got torch.sparse_coo"),
    (torch.ones(2, device="meta"), "dense tensor with data, got torch.strided on meta"),
    (torch.tensor([1.0, float("nan")]), "NaN or infinite"),
    ([1.0, 2.0], "is a torch tensor of shape"),
])  # fmt: skip
def test_tensors_that_cannot_steer_are_refused(values, message):
    with pytest.raises(VectorError, match=message):
        SteeringVector("calm", 0, values, "m")


@pytest.mark.parametrize("layer", [-1, 1.0, True, None])
def test_layer_indices_that_are_none_are_refused(layer):
    with pytest.raises(VectorError, match="layer_index is"):
        SteeringVector("calm", layer, torch.ones(2), "m")


def test_a_zero_vector_has_no_direction():
    with pytest.raises(VectorError, match="is zero: it has no direction"):
        vector(values=(0.0, 0.0)).normalize()


def test_a_set_by_layer():
    calm = SteeringVectorSet("calm", [vector(5), vector(2)])
    assert calm.layers == [2, 5]
    assert [one.layer_index for one in calm] == [2, 5]
    assert len(calm) == 2
    assert calm.get(5).layer_index == calm[5].layer_index == 5
    assert calm.get(4) is None
    assert 5 in calm
    assert calm.model_name == "some-model"
    with pytest.raises(KeyError, match="No vector for layer 4; the set of 'calm' has layers"):
        calm[4]
    with pytest.raises(VectorError, match="A vector of 'wild' does not belong in a set of 'calm'"):
        calm.add(vector(1, behavior="wild"))
    with pytest.raises(VectorError, match="Two vectors for layer 1"):
        SteeringVectorSet("calm", [vector(1), vector(1)])
    with pytest.raises(VectorError, match="3 numbers does not go with one of 2"):
        calm.add(vector(1, values=(1.0, 2.0, 3.0)))


def test_the_best_vector_is_the_tuned_one_else_the_middle_else_the_largest():
    print_of = {"num_layers": 10}
    deep, middle = vector(9, (30.0, 40.0), fingerprint=print_of), vector(5, fingerprint=print_of)
    assert SteeringVectorSet("calm", [deep, middle]).get_best() == middle
    assert SteeringVectorSet("calm", [deep, middle]).get_best(metric="norm") == deep
    assert SteeringVectorSet("calm", [deep, middle], {"chosen_layer": 9}).get_best() == deep
    assert SteeringVectorSet("calm", [vector(1), vector(2, (9.0, 9.0))]).get_best().layer_index == 2
    with pytest.raises(VectorError, match="set of 'calm' is empty"):
        SteeringVectorSet("calm").get_best()
    with pytest.raises(OptionError, match="Unknown metric 'size'"):
        SteeringVectorSet("calm", [deep]).get_best("size")


def test_sets_scale_and_move_as_a_whole():
    calm = SteeringVectorSet("calm", [vector(5), vector(2)], {"note": 1})
    assert calm.to("cpu") == calm
    assert calm.scale(2)[5].norm == 10.0
    assert calm.scale(2).metadata == {"note": 1}
    assert SteeringVectorSet("calm").model_name is None


def test_the_acting_layers_are_those_that_are_named_else_the_best_one():
    calm = SteeringVectorSet("calm", [vector(2), vector(5), vector(7)], {"chosen_layer": 5})
    assert (calm.acting_layers, calm.acting) == ([5], [calm[5]])
    spread = SteeringVectorSet("calm", list(calm), calm.metadata, acting_layers=[7, 2])
    assert (spread.acting_layers, spread.acting) == ([2, 7], [spread[2], spread[7]])
    assert spread == calm.with_acting_layers([2, 7])
    assert spread == SteeringVectorSet("calm", list(calm), {"chosen_layer": 5, "acting_layers": [7, 2]})
    assert spread.get_best() == spread[5]
    assert (calm.acting_layers, "acting_layers" in calm.metadata) == ([5], False)
    with pytest.raises(VectorError, match="set of 'calm' is empty"):
        SteeringVectorSet("calm").acting_layers  # noqa: B018


def test_acting_layers_stay_when_a_set_changes():
    spread = SteeringVectorSet("calm", [vector(2), vector(5)], acting_layers=[2])
    spread.add(vector(7))
    for other in (spread, spread.scale(2.0), spread.to("cpu")):
        assert other.acting_layers == [2]
    assert spread.with_acting_layers([5, 7]).acting_layers == [5, 7]
    assert spread.acting_layers == [2]


def test_acting_layers_may_be_numbers_of_numpy_and_are_stored_as_plain_ones():
    named = SteeringVectorSet("calm", [vector(2), vector(5)], acting_layers=np.array([5, 2])).metadata["acting_layers"]
    assert named == [2, 5]
    assert {type(layer) for layer in named} == {int}
    chosen = SteeringVectorSet("calm", [vector(2, (9.0, 9.0)), vector(5)], {"chosen_layer": np.int64(5)})
    assert chosen.acting_layers == [5]


@pytest.mark.parametrize(("named", "message"), [
    ([], r"acting_layers of the set of 'calm' is \[\]; give a list of different layers, as in \[2, 5\]"),
    (5, "is 5; give a list"),
    ("25", "is '25'; give a list"),
    ([2, 2], r"is \[2, 2\]; give a list of different layers"),
    ([2.0], r"is \[2.0\]; give a list"),
    ([True, 2], r"is \[True, 2\]; give a list"),
    ([None], r"is \[None\]; give a list"),
    ([2, 3], r"The set of 'calm' has no vector at layer 3; it has \[2, 5\]"),
    ([-1], r"has no vector at layer -1; it has \[2, 5\]"),
])  # fmt: skip
def test_acting_layers_that_a_set_does_not_have_are_refused_when_it_is_made(named, message):
    calm = SteeringVectorSet("calm", [vector(2), vector(5)])
    for make in (
        lambda: SteeringVectorSet("calm", list(calm), acting_layers=named),
        lambda: SteeringVectorSet("calm", list(calm), {"acting_layers": named}),
        lambda: calm.with_acting_layers(named),
    ):
        with pytest.raises(LayerError, match=message):
            make()
    calm.metadata["acting_layers"] = named
    with pytest.raises(LayerError, match=message):
        calm.acting_layers  # noqa: B018


def test_what_a_set_says_of_itself():
    def vectors(layers, name):
        return [SteeringVector("calm", layer, torch.ones(4), name) for layer in layers]

    assert repr(SteeringVectorSet("calm")) == "SteeringVectorSet('calm', empty)"
    found = SteeringVectorSet("calm", vectors([1, 3, 4, 5], "org/model"), {"chosen_layer": 4})
    assert repr(found) == "SteeringVectorSet('calm', layers 1, 3–5, chosen 4, 'model')"
    spread = "SteeringVectorSet('calm', layers 1, 3–5, acting 3–4, 'model')"
    assert repr(found.with_acting_layers([3, 4])) == spread
    assert repr(found[3]) == "SteeringVector('calm', layer 3, dim 4, norm 2, 'model')"
    assert "secret" not in repr(vectors([1], "/home/secret/model")) + repr(vectors([1], "C:\\secret\\model"))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"behavior": None}, "behavior is None; it must be a string"),
    ({"model_name": 7}, "model_name is 7; it must be a string"),
    ({"extraction_method": None}, "extraction_method is None; it must be a string"),
    ({"metadata": "tuned"}, "metadata is 'tuned'; it must be a dictionary"),
])  # fmt: skip
def test_facts_of_another_kind_are_refused(arguments, message):
    facts = {"behavior": "calm", "layer_index": 0, "vector": torch.ones(2), "model_name": "m"}
    with pytest.raises(VectorError, match=message):
        SteeringVector(**{**facts, **arguments})


@pytest.mark.parametrize(("arguments", "message"), [
    ({"behavior": None}, "behavior is None; it must be a string"),
    ({"metadata": "tuned"}, "metadata is 'tuned'; it must be a dictionary"),
    ({"vectors": vector()}, "made of a list of vectors, got a SteeringVector"),
    ({"vectors": {3: vector()}}, "made of a list of vectors, got a dict"),
    ({"vectors": "calm"}, "made of a list of vectors, got a str"),
    ({"vectors": [SteeringVectorSet("calm")]}, "made of SteeringVectors, got a SteeringVectorSet"),
    ({"vectors": [torch.ones(2)]}, "made of SteeringVectors, got a Tensor"),
])  # fmt: skip
def test_a_set_is_made_of_vectors(arguments, message):
    with pytest.raises(VectorError, match=message):
        SteeringVectorSet(**{"behavior": "calm", **arguments})


def test_a_fingerprint_that_is_no_table_is_none():
    assert vector(fingerprint="llama").fingerprint is None
    assert vector(fingerprint={"num_layers": 3}).fingerprint == {"num_layers": 3}
    assert SteeringVectorSet("calm", [vector(fingerprint=[1])]).get_best() == vector(fingerprint=[1])


@pytest.mark.parametrize("chosen", [9, "2", 1.5, True, -1, [1]])
def test_a_chosen_layer_is_one_of_the_set(tmp_path, chosen):
    vectors = [SteeringVector("calm", layer, torch.ones(8), "m") for layer in (1, 2)]
    with pytest.raises(LayerError, match=r"chosen_layer of the set of 'calm' is .*one of its layers, \[1, 2\]"):
        SteeringVectorSet("calm", vectors, {"chosen_layer": chosen})
    SteeringVectorSet("calm", vectors, {"chosen_layer": 1}).save(tmp_path)
    document = json.loads((tmp_path / "metadata.json").read_text())
    document["metadata"]["chosen_layer"] = chosen
    (tmp_path / "metadata.json").write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match="chosen_layer of the set of 'calm'"):
        SteeringVectorSet.load(tmp_path)


def test_a_set_is_of_one_model(tmp_path):
    mine, other = (SteeringVector("calm", layer, torch.ones(8), name) for layer, name in ((1, "m"), (2, "other")))
    with pytest.raises(VectorError, match="A vector of 'other' does not belong in a set of 'm'"):
        SteeringVectorSet("calm", [mine, other])
    same = dataclasses.replace(other, model_name="m")
    SteeringVectorSet("calm", [mine, same]).save(tmp_path)
    document = json.loads((tmp_path / "metadata.json").read_text())
    document["vectors"]["2"]["model_name"] = "other"
    (tmp_path / "metadata.json").write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match="does not belong in a set of"):
        SteeringVectorSet.load(tmp_path)


@pytest.mark.parametrize(("metadata", "expected"), [
    ({}, None), ({"calibration": "yes"}, None), ({"calibration": {}}, (-1.0, 1.0)),
    ({"calibration": {"safe_range": [-1.6, 1]}}, (-1.6, 1.0)), ({"calibration": {"safe_range": "wide"}}, (-1.0, 1.0)),
    ({"calibration": {"safe_range": [None, 1.2]}}, (-1.0, 1.2)),
])  # fmt: skip
def test_the_safe_range_of_a_set(metadata, expected):
    vectors = SteeringVectorSet("calm", [SteeringVector("calm", 1, torch.ones(4), "m")], metadata)
    assert vectors.safe_range == expected
