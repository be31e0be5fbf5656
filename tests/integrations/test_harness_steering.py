import pytest
import torch
from safetensors.torch import save_file

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.errors import LayerError, OptionError, VectorError
from rotalabs_steer.files.hub import find_vectors, split_revision
from rotalabs_steer.integrations.harness_steering import steer_model, strength_by_behavior
from rotalabs_steer.steering.acting_layers import NotSteeringWarning, at_layer
from rotalabs_steer.vector_sources import load_vector_sets, load_vectors, set_places
from tiny import make_vector


def test_a_set_a_vector_or_a_folder_of_sets(vector_folder, llama, tmp_path):
    formality = SteeringVectorSet.load(vector_folder / "formality")
    assert load_vectors(vector_folder / "formality") == load_vectors(formality) == formality
    assert load_vector_sets(vector_folder / "formality") == {"formality": formality}
    assert list(load_vector_sets(vector_folder)) == ["formality", "refusal"]
    vector = make_vector(llama, behavior="humor")
    vector.save(tmp_path / "humor.v1")
    for path in ("humor.v1", "humor.v1.json", "humor.v1.pt"):
        assert list(load_vectors(tmp_path / path)) == [vector]
    assert isinstance(load_vectors(vector), SteeringVectorSet)
    assert list(load_vector_sets(tmp_path / "humor.v1")) == ["humor"]


def test_paths_without_vectors(vector_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There are no steering vectors at .*nowhere: neither a folder"):
        load_vectors(tmp_path / "nowhere")
    with pytest.raises(VectorError, match="is a folder without vector sets"):
        load_vector_sets(tmp_path)
    for name in ("a", "b"):
        SteeringVectorSet.load(vector_folder / "refusal").save(tmp_path / name)
    with pytest.raises(VectorError, match="holds two sets of 'refusal'"):
        load_vector_sets(tmp_path)


def test_vectors_of_a_repository(hub, vector_folder, llama, tmp_path):
    old = SteeringVectorSet.load(vector_folder / "formality")
    old.push_to_hub("me/formality")
    first = hub.repos["me/formality"]["branches"]["main"]
    old.scale(2.0).push_to_hub("me/formality")
    assert load_vectors("me/formality") == old.scale(2.0)
    assert load_vectors(f"me/formality@{first}") == old
    injector = steer_model(llama, "me/formality")
    injector.detach()
    assert injector.behaviors == ["formality"]
    with pytest.raises(VectorError, match="is a folder without vector sets"):
        load_vector_sets(tmp_path)


def test_a_folder_of_sets_in_all_formats(vector_folder, tmp_path):
    formality, refusal = (SteeringVectorSet.load(vector_folder / name) for name in ("formality", "refusal"))
    humor = SteeringVectorSet("humor", [SteeringVector("humor", 1, torch.ones(16), "tiny")])
    formality.save_pretrained(tmp_path / "a")
    refusal.save(tmp_path / "b.safetensors")
    humor.save(tmp_path / "c")
    humor.save(tmp_path / ".hidden")
    (tmp_path / "notes.txt").write_text("mine")
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    assert load_vector_sets(tmp_path) == {"formality": formality, "refusal": refusal, "humor": humor}
    assert SteeringVectorSet.load(tmp_path / "a") == formality
    assert set_places(tmp_path / "a") == [tmp_path / "a"]


def test_a_mistyped_path_is_not_asked_for_and_a_mistyped_id_once(hub, tmp_path, monkeypatch):
    (tmp_path / "tuned").mkdir()
    monkeypatch.chdir(tmp_path)
    for path, reason in {
        "tuned/humour": "tuned is a folder here, so it is not taken for the id",
        "me/humor.safetensors": "it has the name of a file",
        "./humor": "it is not the id of a repository",
        "a/b/humor": "it is not the id of a repository",
        "/tuned/humor": "it is not the id of a repository",
        "humor": "it is not the id of a repository",
        "me/hum or": "it is not the id of a repository",
    }.items():
        with pytest.raises(FileNotFoundError, match=f"There are no steering vectors at {path}: .*{reason}"):
            load_vectors(path)
    assert hub.requests == []
    with pytest.raises(FileNotFoundError, match=r"no steering vectors at me/nothing: .*\(there is no such repository"):
        load_vectors("me/nothing")
    assert hub.requests == ["HEAD /me/nothing/resolve/main/steering_config.json"]
    hub.create("me/empty")
    with pytest.raises(FileNotFoundError, match=r"me/empty has no steering_config\.json"):
        load_vectors("me/empty")


def test_one_layer_of_a_set(vector_folder):
    formality = load_vectors(vector_folder / "formality")
    assert at_layer(formality, None) is formality
    assert at_layer(formality, 2).acting == [formality[2]]
    with pytest.raises(LayerError, match=r"'formality' has no vector at layer 7; it has \[1, 2\]"):
        at_layer(formality, 7)


def test_strengths(vector_folder):
    sets = load_vector_sets(vector_folder)
    assert strength_by_behavior(sets, "1.5") == {"formality": 1.5, "refusal": 1.5}
    assert strength_by_behavior(sets, "formality:1; refusal:-0.5") == {"formality": 1.0, "refusal": -0.5}
    assert strength_by_behavior(sets, {"refusal": 2.0}) == {"refusal": 2.0}
    with pytest.raises(OptionError, match=r"strength is 'much'; give a number, or .*'formality:1.0;refusal:1.0'"):
        strength_by_behavior(sets, "much")


def test_a_model_steered_from_then_on(llama, vector_folder):
    injector = steer_model(llama, vector_folder, "refusal:-1.0", layer=2)
    assert injector.attached
    assert injector.strengths == {"formality": 1.0, "refusal": -1.0}
    assert [vector.layer_index for vectors in injector.vectors.values() for vector in vectors] == [2, 2]
    injector.detach()
    with pytest.raises(OptionError, match="Strength for 'wit'"):
        steer_model(llama, vector_folder, {"wit": 1.0})


def test_a_set_that_does_not_steer_is_said_to_be_one(llama, tmp_path):
    SteeringVectorSet("humor", [make_vector(llama, behavior="humor")], {"steers": False}).save(tmp_path / "humor")
    with pytest.warns(NotSteeringWarning, match="Tuning found that the vectors of 'humor' do not steer tiny"):
        steer_model(llama, tmp_path).detach()


@pytest.mark.parametrize("source", [None, 7, [1], {"a": 1}, "", " "])
def test_what_does_not_name_vectors_is_an_option_error(source):
    with pytest.raises(OptionError, match=r"Vectors are named by a path|No vectors are named"):
        load_vectors(source)


def test_revisions_have_slashes_and_must_be_said_once(hub, vector_folder):
    formality = SteeringVectorSet.load(vector_folder / "formality")
    formality.push_to_hub("me/formality@v1")
    assert SteeringVectorSet.from_pretrained("me/formality@v1") == formality
    assert find_vectors("me/formality", revision="v1") == find_vectors("me/formality@v1", revision="v1")
    assert split_revision("me/x@refs/pr/1") == ("me/x", "refs/pr/1")
    with pytest.raises(OptionError, match="me/x@ has no revision behind the @"):
        load_vectors("me/x@")
    with pytest.raises(OptionError, match="names the revision 'v1', and 'v2' is given, too"):
        find_vectors("me/x@v1", revision="v2")
    with pytest.raises(OptionError, match="is a local path and has no revision 'v1'"):
        find_vectors(vector_folder, revision="v1")
    with pytest.raises(FileNotFoundError, match="has no folder nothing"):
        find_vectors(vector_folder, subfolder="nothing")
    with pytest.raises(OptionError, match=r"cannot be the id of a repository. Give OWNER/NAME"):
        formality.push_to_hub("me/../x")
