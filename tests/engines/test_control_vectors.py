"""Steering vectors to GGUF control vectors and back."""

import pytest
import torch

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.engines.control_vectors import export_control_vector, import_control_vector
from rotalabs_steer.errors import LayerError, OptionError, VectorError
from rotalabs_steer.files.gguf import ControlVector, read_control_vector, write_control_vector


def vector(layer, behavior="calm", dim=8):
    metadata = {"fingerprint": {"model_type": "llama", "num_layers": 30}}
    return SteeringVector(behavior, layer, torch.randn(dim), "org/model", metadata=metadata)


def test_folded_strength(tmp_path):
    one = vector(3)
    export_control_vector(one, tmp_path / "v.gguf", 2.0)
    stored = read_control_vector(tmp_path / "v.gguf")
    assert torch.equal(stored.directions[3], one.vector * 2.0)
    assert stored.model_hint == "llama"
    assert stored.metadata == {
        "rotalabs_steer.behavior": "calm",
        "rotalabs_steer.model_name": "org/model",
        "rotalabs_steer.strength": 2.0,
        "rotalabs_steer.strength_folded": True,
    }


def test_strength_left_to_llama_cpp(tmp_path):
    one = vector(3)
    export_control_vector(one, tmp_path / "v.gguf", 2.0, fold_strength=False)
    stored = read_control_vector(tmp_path / "v.gguf")
    assert torch.equal(stored.directions[3], one.vector)
    assert stored.metadata["rotalabs_steer.strength"] == 2.0
    assert stored.metadata["rotalabs_steer.strength_folded"] is False


def test_vectors_of_one_layer_add_up(tmp_path):
    given = [vector(3), vector(4), vector(3, "kind")]
    export_control_vector(given, tmp_path / "v.gguf", 0.5)
    stored = read_control_vector(tmp_path / "v.gguf")
    torch.testing.assert_close(stored.directions[3], 0.5 * (given[0].vector + given[2].vector))
    assert torch.equal(stored.directions[4], 0.5 * given[1].vector)
    assert stored.metadata["rotalabs_steer.behavior"] == "calm, kind"


def test_a_set_comes_back(tmp_path):
    vectors = SteeringVectorSet("calm", [vector(3), vector(4)])
    export_control_vector(list(vectors), tmp_path / "v.gguf")
    back = import_control_vector(tmp_path / "v.gguf")
    assert (back.behavior, back.layers, back.model_name) == ("calm", [3, 4], "org/model")
    assert all(torch.equal(back[layer].vector, vectors[layer].vector) for layer in (3, 4))
    assert import_control_vector(tmp_path / "v.gguf", layer_offset=-1, behavior="peace").layers == [2, 3]


def test_a_set_is_written_with_its_acting_layers(tmp_path):
    vectors = SteeringVectorSet("calm", [vector(3), vector(4), vector(7)], acting_layers=[3, 7])
    export_control_vector(vectors, tmp_path / "v.gguf", 2.0)
    stored = read_control_vector(tmp_path / "v.gguf")
    assert list(stored.directions) == [3, 7]
    assert torch.equal(stored.directions[7], 2.0 * vectors[7].vector)
    assert import_control_vector(tmp_path / "v.gguf").acting_layers == [3, 7]
    alternatives = SteeringVectorSet("calm", list(vectors), {"chosen_layer": 4})
    export_control_vector(alternatives, tmp_path / "v.gguf")
    assert list(read_control_vector(tmp_path / "v.gguf").directions) == [4]


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "v.gguf"
    with pytest.raises(LayerError, match="cannot steer layer 0"):
        export_control_vector([vector(0), vector(3)], path)
    with pytest.raises(VectorError, match="No vector given"):
        export_control_vector([], path)
    with pytest.raises(VectorError, match=r"The vectors have \[8, 9\] numbers"):
        export_control_vector([vector(3), vector(4, dim=9)], path)
    with pytest.raises(OptionError, match="With strength 0 folded into it, the file would do nothing"):
        export_control_vector(vector(3), path, 0.0)
    with pytest.raises(OptionError, match="A control vector has one strength for all rows"):
        export_control_vector(vector(3), path, [1.0, 2.0])
    with pytest.raises(OptionError, match="not a finite number"):
        export_control_vector(vector(3), path, float("nan"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("strength", "reason"), [
    (1e39, "they become infinite"), (3e38, "they become infinite"), (1e-46, "so it would do nothing"),
])  # fmt: skip
def test_a_strength_that_floats_cannot_hold_writes_no_file(tmp_path, strength, reason):
    one = SteeringVector("calm", 3, torch.full((8,), 2.0), "org/model")
    with pytest.raises(VectorError, match=f"What the control vector would add at layer 3 .*{reason}"):
        export_control_vector(one, tmp_path / "v.gguf", strength)
    assert not (tmp_path / "v.gguf").exists()


def test_zeros_are_neither_written_nor_read(tmp_path):
    zero = SteeringVector("calm", 3, torch.zeros(8), "org/model")
    opposite = [SteeringVector("calm", 3, sign * torch.ones(8), "org/model") for sign in (1, -1)]
    for vectors in (zero, opposite):
        with pytest.raises(VectorError, match="would add at layer 3 is zero, so it would do nothing"):
            export_control_vector(vectors, tmp_path / "v.gguf")
    assert not (tmp_path / "v.gguf").exists()
    write_control_vector(tmp_path / "v.gguf", ControlVector({3: torch.zeros(8)}))
    with pytest.raises(VectorError, match="The vector of layer 3 is zero"):
        import_control_vector(tmp_path / "v.gguf")
