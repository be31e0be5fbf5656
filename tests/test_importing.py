"""Vectors of other tools. Files of steering-vectors are written by stand-ins of its class under its own module name."""

import dataclasses
import sys
import types

import numpy as np
import pytest
import torch

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.errors import FileFormatError, OptionError, VectorError
from rotalabs_steer.files.gguf import ControlVector as FileControlVector
from rotalabs_steer.files.gguf import write_control_vector
from rotalabs_steer.importing import import_vectors


def numbers(seed, size=8):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


TENSORS = {3: numbers(3), 12: numbers(12)}


def same(vectors, expected=TENSORS):
    assert vectors.layers == list(expected)
    assert all(torch.equal(vectors[layer].vector, tensor) for layer, tensor in expected.items())
    return True


@pytest.fixture
def peer_class(monkeypatch):
    """`steering_vectors.steering_vector.SteeringVector` as that package defines it: a dataclass of these two fields."""

    @dataclasses.dataclass
    class SteeringVector:
        layer_activations: dict
        layer_type: str = "decoder_block"

    name = "steering_vectors.steering_vector"
    SteeringVector.__module__, SteeringVector.__qualname__ = name, "SteeringVector"
    module = types.ModuleType(name)
    module.SteeringVector = SteeringVector
    monkeypatch.setitem(sys.modules, "steering_vectors", types.ModuleType("steering_vectors"))
    monkeypatch.setitem(sys.modules, name, module)
    return SteeringVector


@dataclasses.dataclass
class ControlVector:
    """Fields of repeng's class."""

    model_type: str
    directions: dict


@dataclasses.dataclass
class StatisticalControlVector:
    """Fields of EasySteer's class."""

    method: str
    directions: dict
    metadata: dict | None = None
    model_type: str = "unknown"
    component: str | None = None


def test_steering_vectors_objects_and_files(peer_class, tmp_path, monkeypatch):
    theirs = peer_class(TENSORS)
    assert same(import_vectors(theirs, behavior="calm", model_name="org/model"))
    torch.save(theirs, tmp_path / "calm.pt")
    monkeypatch.delitem(sys.modules, "steering_vectors.steering_vector")
    vectors = import_vectors(tmp_path / "calm.pt")
    assert same(vectors)
    assert vectors.behavior == "calm"
    assert vectors[3].extraction_method == "steering-vectors"
    assert vectors[3].metadata["imported_from"] == "calm.pt"
    with pytest.raises(VectorError, match=r"These vectors were read at 'mlp'. Only those of a decoder layer's output"):
        import_vectors(peer_class(TENSORS, "mlp"))


def test_repeng_and_easysteer_objects():
    arrays = {layer: tensor.numpy() for layer, tensor in TENSORS.items()}
    vectors = import_vectors(ControlVector("llama", arrays), behavior="calm")
    assert same(vectors)
    assert (vectors.model_name, vectors[3].extraction_method) == ("llama", "repeng")
    vectors = import_vectors(StatisticalControlVector("diffmean", arrays, component="hidden_states"))
    assert same(vectors)
    assert vectors[3].extraction_method == "diffmean"
    with pytest.raises(VectorError, match="read at 'attention_heads'"):
        import_vectors(StatisticalControlVector("diffmean", arrays, component="attention_heads"))


def test_plain_tensors_and_arrays():
    assert same(import_vectors(TENSORS))
    assert same(import_vectors({layer: tensor.tolist() for layer, tensor in TENSORS.items()}))
    assert same(import_vectors({layer: tensor[None, None] for layer, tensor in TENSORS.items()}))
    assert same(import_vectors(torch.stack(list(TENSORS.values())), layers=[3, 12]))
    assert same(import_vectors(np.stack([tensor.numpy() for tensor in TENSORS.values()]), layers=[3, 12]))
    assert same(import_vectors(TENSORS[3], layers=[3]), {3: TENSORS[3]})
    one = SteeringVector("calm", 3, TENSORS[3], "m")
    assert import_vectors(one) == SteeringVectorSet("calm", [one])


def test_files_of_tensors_and_arrays(tmp_path):
    torch.save(TENSORS, tmp_path / "dict.pt")
    torch.save({f"layer_{layer}": tensor for layer, tensor in TENSORS.items()}, tmp_path / "named.bin")
    np.savez(tmp_path / "arrays.npz", **{f"blocks.{layer}": tensor.numpy() for layer, tensor in TENSORS.items()})
    for name in ("dict.pt", "named.bin", "arrays.npz"):
        assert same(import_vectors(tmp_path / name))
    torch.save(torch.stack(list(TENSORS.values())), tmp_path / "table.pt")
    np.save(tmp_path / "table.npy", torch.stack(list(TENSORS.values())).numpy())
    for name in ("table.pt", "table.npy"):
        vectors = import_vectors(tmp_path / name, layers=[3, 12])
        assert same(vectors)
        assert {vector.vector.untyped_storage().nbytes() for vector in vectors} == {8 * 4}, "a row without its table"
    torch.save([TENSORS[3], TENSORS[12]], tmp_path / "list.pt")
    assert import_vectors(tmp_path / "list.pt").layers == [0, 1]


def test_foreign_safetensors_and_our_own_formats(tmp_path):
    from safetensors.torch import save_file

    save_file({f"layers.{layer}.vector": tensor for layer, tensor in TENSORS.items()}, tmp_path / "x.safetensors")
    assert same(import_vectors(tmp_path / "x.safetensors"))
    mine = import_vectors(TENSORS, behavior="calm", model_name="m")
    mine.save(tmp_path / "native")
    mine.save(tmp_path / "one.safetensors")
    mine[3].save(tmp_path / "single")
    assert import_vectors(tmp_path / "native") == mine
    assert import_vectors(tmp_path / "one.safetensors") == mine
    assert import_vectors(tmp_path / "single.json") == import_vectors(tmp_path / "single.pt")
    assert import_vectors(tmp_path / "single.json")[3] == mine[3]


def test_an_index_into_hidden_states_becomes_the_block_before(llama, tmp_path):
    """Checked on a model: what `hidden_states[i]` shows is what a vector of layer i − 1 is added to."""
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    states = llama(**inputs, output_hidden_states=True).hidden_states
    vectors = import_vectors({2: states[2][0, -1]}, layer_offset=-1, behavior="x", model_name="tiny")
    from rotalabs_steer import extract_activations

    ours = extract_activations(llama, inputs, [1], token_position="last")
    assert vectors.layers == [1]
    assert torch.allclose(vectors[1].vector, ours[1].reshape(-1))


def test_our_own_sets_can_be_renamed_and_moved(tmp_path):
    tuned = SteeringVectorSet("calm", list(import_vectors(TENSORS, behavior="calm")), {"chosen_layer": 12})
    moved = import_vectors(tuned, behavior="quiet", model_name="org/new", layer_offset=-1)
    assert (moved.behavior, moved.model_name, moved.layers, moved.chosen_layer) == ("quiet", "org/new", [2, 11], 11)


def test_the_layers_that_a_tool_applies_together_act_together(peer_class, tmp_path):
    arrays = {layer: tensor.numpy() for layer, tensor in TENSORS.items()}
    torch.save(peer_class(TENSORS), tmp_path / "theirs.pt")
    write_control_vector(tmp_path / "theirs.gguf", FileControlVector(TENSORS))
    together = [
        peer_class(TENSORS), tmp_path / "theirs.pt", tmp_path / "theirs.gguf", ControlVector("llama", arrays),
        StatisticalControlVector("diffmean", arrays),
    ]  # fmt: skip
    for source in together:
        assert import_vectors(source).acting_layers == [3, 12]
        assert import_vectors(source, layer_offset=-1).acting_layers == [2, 11]
    for source in (TENSORS, torch.stack(list(TENSORS.values()))):
        layers = None if source is TENSORS else [3, 12]
        assert len(import_vectors(source, layers=layers).acting_layers) == 1


def test_acting_layers_of_our_own_sets_move_with_their_vectors():
    spread = import_vectors(TENSORS).with_acting_layers([12])
    assert import_vectors(spread).acting_layers == [12]
    assert import_vectors(spread, behavior="calm", layer_offset=-2).acting_layers == [10]


class Opener:
    """What a pickle that runs code looks like."""

    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(("content", "message"), [
    (Opener(), "is not a plain PyTorch tensor file"),
    ({3: "text"}, "expected tensors: one, or one a layer"),
    ({}, "expected tensors: one, or one a layer"),
    ({"layer_3": torch.ones(2), "also_3": torch.ones(2)}, "does not name one layer of its own"),
    ({"norm": torch.ones(2)}, "does not name one layer of its own"),
    ({3: torch.ones(1).expand(2**40)}, "expected a contiguous one"),
    ({3: torch.empty(2**40, device="meta")}, "more than plain tensors"),
    ([torch.zeros(500)] * 9, "claims more numbers than its"),
    ({3: torch.ones(2, dtype=torch.int64)}, "torch.int64, expected floating-point numbers"),
], ids=range(9))  # fmt: skip
def test_strangers_torch_files(tmp_path, capsys, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(FileFormatError, match=message):
        import_vectors(tmp_path / "x.pt")
    assert "executed" not in capsys.readouterr().out


def npy(header, data=b"", version=b"\1\0"):
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(("content", "message"), [
    (b"hello", "not a vector file that can be read safely"),
    (b"\x80\x04N.", "not a vector file that can be read safely.*reading such a file runs code"),
    (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627775,)}"), "it claims shape"),
    (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\x80\x04N."), r"it holds '\|O'"),
    (npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1,)}", bytes(8)), "it holds '<i8'"),
    (npy("__import__('os').system('echo executed')"), "is not an array of numbers"),
    (npy("(" * 5000), "is not an array of numbers"),
    (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1)}", bytes(4)), "expected real numbers"),
], ids=range(8))  # fmt: skip
def test_strangers_other_files(tmp_path, capfd, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        import_vectors(tmp_path / "x", layers=[1])
    assert "executed" not in capfd.readouterr().out


def test_compressed_archives_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", layer_1=np.zeros(10_000, np.float32))
    with pytest.raises(FileFormatError, match=r"compressed archive. Write it with torch.save or numpy.savez"):
        import_vectors(tmp_path / "x.npz")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"source": torch.ones(3, 8)}, "has 3 rows and does not say which layers they belong to: pass layers=, 3 numbers"),
    ({"source": torch.ones(3, 8), "layers": [1]}, "pass layers=, 3 numbers, not 1"),
    ({"source": {"3": torch.ones(8)}}, "'3' is not a layer number"),
    ({"source": {True: torch.ones(8)}}, "True is not a layer number"),
    ({"source": torch.ones(2, 2, 8), "layers": [1, 2]}, r"shape \[hidden\] or \[layers, hidden\]"),
    ({"source": {3: torch.ones(2, 8)}}, r"shape \[hidden\], got \[2, 8\]"),
    ({"source": {3: torch.ones(8), 4: torch.ones(1)}}, "A vector of 1 numbers does not go with one of 8"),
    ({"source": {}}, "There are no vectors in it"),
    ({"source": object()}, "A object is not a vector"),
])  # fmt: skip
def test_sources_that_do_not_say_enough(arguments, message):
    with pytest.raises((OptionError, VectorError), match=message):
        import_vectors(**arguments)


@pytest.mark.parametrize("stored", [list, torch.Tensor, dict])
def test_the_row_of_the_embedding_is_left_out(tmp_path, stored):
    hidden_states = torch.arange(1.0, 6.0).repeat_interleave(8).reshape(5, 8)
    source = {list: list(hidden_states), torch.Tensor: hidden_states, dict: dict(enumerate(hidden_states))}[stored]
    torch.save(source, tmp_path / "evil.pt")
    layers = range(5) if stored is torch.Tensor else None
    found = import_vectors(tmp_path / "evil.pt", layers=layers, layer_offset=-1)
    assert found.layers == [0, 1, 2, 3]
    assert [float(vector.vector[0]) for vector in found] == [2.0, 3.0, 4.0, 5.0]


def test_the_embedding_is_left_out_of_a_set_that_is_moved():
    own = SteeringVectorSet("calm", [SteeringVector("calm", n, torch.ones(8), "m") for n in (0, 1)])
    assert import_vectors(own, layer_offset=-1).layers == [0]
    with pytest.raises(OptionError, match="Layer 0 of the source with layer_offset -2 is before the first"):
        import_vectors(own, layer_offset=-2)
    with pytest.raises(VectorError, match="There are no vectors in it"):
        import_vectors({0: torch.ones(8)}, layer_offset=-1)
    with pytest.raises(OptionError, match=r"layer_offset is '-1'; it must be an integer"):
        import_vectors(own, layer_offset="-1")


def test_rows_of_output_hidden_states_of_a_known_model_are_noticed(tmp_path):
    rows = torch.ones(31, 8)
    with pytest.raises(OptionError, match=r"layer 30, but HuggingFaceTB/SmolLM2-135M.* has 30 layers.*layer_offset=-1"):
        import_vectors(rows, layers=range(31), model_name="HuggingFaceTB/SmolLM2-135M-Instruct")
    found = import_vectors(rows, layers=range(31), model_name="HuggingFaceTB/SmolLM2-135M-Instruct", layer_offset=-1)
    assert found.layers == list(range(30))


@pytest.mark.parametrize(("name", "layer"), [
    ("3", 3), ("layer_3", 3), ("layer3", 3), ("layers.3", 3), ("model.layers.3", 3), ("layers.3.vector", 3),
    ("transformer.h.3", 3), ("blocks.3", 3), ("blocks.3.hook_resid_post", 3), ("blocks.3.hook_resid_pre", 2),
])  # fmt: skip
def test_names_of_layers_are_understood(tmp_path, name, layer):
    torch.save({name: TENSORS[3]}, tmp_path / "x.pt")
    assert same(import_vectors(tmp_path / "x.pt"), {layer: TENSORS[3]})


@pytest.mark.parametrize("name", [
    "blocks.2.hook_mlp_out", "model.layers.2.mlp", "layer_2_attn", "layers.2.self_attn.o_proj",
    "blocks.2.hook_resid_mid", "mlp.2", "layers.2.input_layernorm",
])  # fmt: skip
def test_parts_of_a_layer_are_refused(tmp_path, name):
    torch.save({name: TENSORS[3]}, tmp_path / "x.pt")
    with pytest.raises(VectorError, match=f"read at '{name}'. Only those of a decoder layer's output can be added"):
        import_vectors(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["qwen2_vector", "v1", "llama3", "qwen2", "gpt2.vector", "blocks.0.hook_resid_pre",
                                  "layer_2.epoch_3", "step_2"])  # fmt: skip
def test_numbers_that_may_not_be_layers_are_refused(tmp_path, name):
    torch.save({name: TENSORS[3]}, tmp_path / "x.pt")
    with pytest.raises(FileFormatError, match="does not name one layer of its own, as layer_14"):
        import_vectors(tmp_path / "x.pt")


def test_other_layers_than_the_source_says_are_an_error(peer_class, tmp_path):
    torch.save(TENSORS, tmp_path / "x.pt")
    own = import_vectors(TENSORS)
    own.save(tmp_path / "own")
    for source in (TENSORS, tmp_path / "x.pt", own, own[3], tmp_path / "own", peer_class(TENSORS)):
        with pytest.raises(OptionError, match=r"layers is \[1, 2\], but the source says itself which layers"):
            import_vectors(source, layers=[1, 2])


def test_vectors_of_zeros_are_not_imported(tmp_path):
    torch.save({3: torch.zeros(8)}, tmp_path / "x.pt")
    own = SteeringVectorSet("calm", [SteeringVector("calm", 3, torch.zeros(8), "m")])
    for source in ({3: torch.zeros(8)}, {2: torch.ones(8), 3: torch.zeros(8)}, tmp_path / "x.pt", own):
        with pytest.raises(VectorError, match="The vector of layer 3 is zero, so it would do nothing"):
            import_vectors(source)


def test_a_layer_that_acts_cannot_become_the_embedding():
    vectors = [SteeringVector("calm", layer, torch.ones(8), "m") for layer in (0, 1)]
    with pytest.raises(OptionError, match="Layer 0 is the chosen layer of the set, and with layer_offset -1"):
        import_vectors(SteeringVectorSet("calm", vectors, {"chosen_layer": 0}), layer_offset=-1)
    for acting in ([0], [0, 1]):
        with pytest.raises(OptionError, match="Layer 0 is an acting layer of the set, and with layer_offset -1"):
            import_vectors(SteeringVectorSet("calm", vectors, acting_layers=acting), layer_offset=-1)
