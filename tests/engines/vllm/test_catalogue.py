import json
from dataclasses import replace

import pytest
import torch

from engines.vllm.steered_sets import FINGERPRINT, TINY, random_set, save_sets
from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.engines.vllm.catalogue import Catalogue
from rotalabs_steer.engines.vllm.requests import SteeringRequest
from rotalabs_steer.engines.vllm.steering import Steering
from rotalabs_steer.errors import FileFormatError, LayerError, ModelMismatchError, OptionError, VectorError


def load(folder, **options):
    return Catalogue.load(folder, TINY, 10.0, **options)


def ask(catalogue, value):
    return catalogue.resolve(SteeringRequest.parse(value))


@pytest.fixture
def sets(tmp_path):
    return save_sets(tmp_path, hidden=8)


@pytest.fixture
def catalogue(tmp_path, sets):
    return load(tmp_path)


def test_a_folder_of_sets_or_one_set(tmp_path, sets, catalogue):
    assert set(catalogue.sets) == {"warm", "cool", "calm"}
    assert catalogue.layers == (10, 12, 15, 20)
    assert set(load(tmp_path / "warm").sets) == {"warm"}


def test_sets_of_every_format(tmp_path, sets):
    folder = tmp_path / "mixed"
    sets["warm"].save(folder / "warm.safetensors")
    sets["cool"].save_pretrained(folder / "cool")
    sets["calm"].save(folder / "calm")
    assert load(folder).sets == sets
    assert load(folder / "warm.safetensors").sets == {"warm": sets["warm"]}


def test_the_layer_that_tuning_chose_acts(sets, catalogue):
    steering = ask(catalogue, {"warm": 0.5, "calm": 1})
    assert [(a.layer, a.behavior, a.strength) for a in steering.additions] == [(15, "warm", 0.5), (20, "calm", 1.0)]
    deltas = catalogue.deltas(steering)
    assert torch.equal(deltas[15], sets["warm"][15].vector * 0.5)
    assert torch.equal(deltas[20], sets["calm"][20].vector)


def test_all_acting_layers_act_at_one_strength(tmp_path):
    spread = random_set("spread", (3, 9, 20), 5, hidden=8, acting_layers=[3, 20])
    spread.save(tmp_path / "spread")
    catalogue = load(tmp_path)
    deltas = catalogue.deltas(ask(catalogue, {"spread": -0.5}))
    assert sorted(deltas) == [3, 20]
    assert all(torch.equal(delta, spread[layer].vector * -0.5) for layer, delta in deltas.items())
    named = ask(catalogue, {"behaviors": {"spread": 1.0}, "layers": [9]})
    assert sorted(catalogue.deltas(named)) == [9]
    assert catalogue.describe()[0]["acting_layers"] == [3, 20]


def test_every_acting_layer_must_be_prepared(tmp_path):
    random_set("spread", (3, 9, 20), 5, hidden=8, acting_layers=[3, 20]).save(tmp_path / "spread")
    assert load(tmp_path, layers=[3, 20]).layers == (3, 20)
    with pytest.raises(LayerError, match=r"'spread' acts at layer 20, but only layers \[3\] are prepared"):
        load(tmp_path, layers=[3])
    started = load(tmp_path, layers=[3, 20])
    random_set("spread", (3, 9, 20), 5, hidden=8, acting_layers=[3, 9]).save(tmp_path / "spread")
    with pytest.raises(LayerError, match="'spread' acts at layer 9, but the engine was started with layers"):
        load(tmp_path).with_older(started)


def test_a_request_can_name_layers(sets, catalogue):
    steering = ask(catalogue, {"behaviors": {"warm": 2.0, "cool": -1.0}, "layers": {"warm": [10, 15]}})
    deltas = catalogue.deltas(steering)
    assert torch.equal(deltas[10], sets["warm"][10].vector * 2)
    torch.testing.assert_close(deltas[15], sets["warm"][15].vector * 2 - sets["cool"][15].vector)


def test_it_travels_as_plain_data(catalogue):
    steering = ask(catalogue, {"behaviors": {"warm": 0.1, "cool": 1e-17}, "scope": "last"})
    there = Steering.from_document(json.loads(json.dumps(steering.document())))
    assert there == steering
    assert there.key == steering.key


def test_the_key_tells_steerings_apart_but_not_their_scopes(catalogue):
    values = [{"warm": 1}, {"warm": 1.0000001}, {"cool": 1}, {"warm": 1, "cool": 1}]
    values.append({"behaviors": {"warm": 1}, "layers": [10]})
    assert len({ask(catalogue, value).key for value in values}) == len(values)
    assert ask(catalogue, {"behaviors": {"warm": 1}, "scope": "last"}).key == ask(catalogue, {"warm": 1}).key


def test_strengths_of_zero_are_no_steering(catalogue):
    assert ask(catalogue, {"warm": 0.0}) is None


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"wram": 1.0}, OptionError, "Unknown behaviour 'wram'. This server has: calm, cool, warm"),
        ({"x" * 500: 1.0}, OptionError, r"Unknown behaviour 'x{79}\. This server has"),
        ({"behaviors": {"warm": 1}, "layers": [11]}, LayerError, r"no vector at layer 11; it has \[10, 15, 20\]"),
    ],
)
def test_what_there_is_not(catalogue, value, error, message):
    with pytest.raises(error, match=message):
        ask(catalogue, value)


def test_only_some_layers_can_be_prepared(tmp_path, sets):
    catalogue = load(tmp_path, layers=[15, 20])
    assert catalogue.layers == (15, 20)
    with pytest.raises(LayerError, match=r"Layer 10 is not prepared for steering on this server; \[15, 20\] are"):
        ask(catalogue, {"behaviors": {"warm": 1}, "layers": [10]})
    with pytest.raises(LayerError, match=r"'calm' acts at layer 20, but only layers \[15\] are prepared"):
        load(tmp_path, layers=[15])
    with pytest.raises(LayerError, match="Layer 30 cannot be prepared: a/model has 30 layers"):
        load(tmp_path, layers=[15, 20, 30])


def test_a_strength_beyond_the_dtype_is_refused(tmp_path):
    SteeringVectorSet("huge", [SteeringVector("huge", 3, torch.full((8,), 3e4), "m")]).save(tmp_path / "huge")
    half = Catalogue.load(tmp_path, replace(TINY, dtype=torch.float16), 10.0)
    with pytest.raises(OptionError, match=r"'huge' at strength 3 has numbers up to 9e\+04, more than torch.float16"):
        ask(half, {"huge": 3})
    (addition,) = ask(half, {"huge": 2}).additions
    assert (addition.layer, addition.behavior, addition.strength) == (3, "huge", 2.0)


def test_a_folder_without_sets(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no vector sets. Save some there"):
        load(tmp_path)


def test_two_sets_for_one_behaviour(tmp_path, sets):
    sets["warm"].save(tmp_path / "again")
    with pytest.raises(VectorError, match="two sets for 'warm'"):
        load(tmp_path)


def test_vectors_that_do_not_fit_the_model(tmp_path):
    random_set("wide", (1,), 0, hidden=16).save(tmp_path / "wide")
    with pytest.raises(VectorError, match="has 16 numbers; a/model has hidden size 8"):
        load(tmp_path)
    random_set("wide", (30,), 0, hidden=8).save(tmp_path / "wide")
    with pytest.raises(LayerError, match="a vector for layer 30; a/model has 30 layers"):
        load(tmp_path)
    SteeringVectorSet("wide").save(tmp_path / "wide")
    with pytest.raises(VectorError, match="The vector set of 'wide' is empty"):
        load(tmp_path)


def test_vectors_of_another_model(tmp_path):
    other = FINGERPRINT | {"model_type": "qwen"}
    vector = SteeringVector("x", 1, torch.ones(8), "Qwen", metadata={"fingerprint": other})
    SteeringVectorSet("x", [vector]).save(tmp_path / "x")
    with pytest.raises(ModelMismatchError, match=r"made from 'Qwen', this model is 'a/model'.* pass check_model=False"):
        load(tmp_path)
    assert load(tmp_path, check_model=False).layers == (1,)


def test_a_damaged_set_is_refused(tmp_path, sets):
    (tmp_path / "warm" / "layer_10.pt").write_bytes(b"not a tensor")
    with pytest.raises(FileFormatError):
        load(tmp_path)


def test_vectors_read_again_leave_running_requests_alone(tmp_path, sets, catalogue):
    before = ask(catalogue, {"warm": 1})
    sets["warm"].scale(2.0).save(tmp_path / "warm")
    fresh = load(tmp_path).with_older(catalogue)
    assert torch.equal(fresh.deltas(before)[15], sets["warm"][15].vector)
    after = ask(fresh, {"warm": 1})
    assert torch.equal(fresh.deltas(after)[15], sets["warm"][15].vector * 2)
    assert after.key != before.key


def test_vectors_that_no_request_uses_are_dropped_when_vectors_are_read_again(tmp_path, sets, catalogue):
    first = ask(catalogue, {"warm": 1})
    (used,) = {addition.digest for addition in first.additions}
    present = catalogue
    for scale in range(2, 6):
        sets["warm"].scale(scale).save(tmp_path / "warm")
        present = load(tmp_path).with_older(present, used=[used])
        assert len(present._vectors) == len(present.digests) + 1
    assert torch.equal(present.deltas(first)[15], sets["warm"][15].vector)
    present = load(tmp_path).with_older(present, used=[])
    assert set(present._vectors) == present.digests
    with pytest.raises(VectorError, match=r"a vector of 'warm' at layer 15 that this worker does not have.* start the"):
        present.deltas(first)


def test_a_new_set_must_act_at_a_prepared_layer(tmp_path, sets, catalogue):
    random_set("new", (5,), 0, hidden=8).save(tmp_path / "new")
    with pytest.raises(LayerError, match="'new' acts at layer 5, but the engine was started with layers"):
        load(tmp_path).with_older(catalogue)


def test_what_is_listed(catalogue):
    calm, cool, _ = catalogue.describe()
    assert calm == {
        "name": "calm", "acting_layers": [20], "layers": [20], "dim": 8, "model": "random",
        "safe_range": [-1.0, 1.0], "steers": None,
    }  # fmt: skip
    assert (cool["acting_layers"], cool["layers"], cool["safe_range"]) == ([15], [12, 15], None)
