"""Sets in one safetensors file, and what strangers may have put into such a file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.errors import FileFormatError, LayerError, OptionError
from rotalabs_steer.files.safetensors_file import parse_safetensors, parse_safetensors_set
from rotalabs_steer.files.schema import STEERING


def calm(value=1.0, dtype=torch.float32):
    vectors = [SteeringVector("calm", n, torch.full((8,), value, dtype=dtype), "some/model") for n in (1, 12)]
    return SteeringVectorSet("calm", vectors, {"chosen_layer": 12, "note": "é"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_set_survives_in_one_file(tmp_path, dtype):
    saved = calm(dtype=dtype)
    saved.save(tmp_path / "deep" / "calm.safetensors")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["calm.safetensors"]
    assert SteeringVectorSet.load(tmp_path / "deep" / "calm.safetensors") == saved
    saved.save(tmp_path / "named", format="safetensors")
    assert SteeringVectorSet.load(str(tmp_path / "named")) == saved


def test_the_library_reads_the_file_too(tmp_path):
    calm().save(tmp_path / "calm.safetensors")
    tensors = load_file(tmp_path / "calm.safetensors")
    assert set(tensors) == {"layer_1", "layer_12"}
    assert torch.equal(tensors["layer_12"], torch.ones(8))


@pytest.mark.parametrize("form", ["native", "safetensors", "pretrained"])
def test_every_format_keeps_the_layers_that_act_together(tmp_path, form):
    saved = calm().with_acting_layers([1, 12])
    saved.save(tmp_path / "calm", form)
    loaded = SteeringVectorSet.load(tmp_path / "calm")
    assert loaded == saved
    assert loaded.acting_layers == [1, 12]


@pytest.mark.parametrize(("named", "message"), [
    ([1, 5], "The set of 'calm' has no vector at layer 5; it has [1, 12]"),
    ([], "give a list of different layers"),
    ([1, 1], "give a list of different layers"),
    ("all", "acting_layers of the set of 'calm' is 'all'"),
    (True, "acting_layers of the set of 'calm' is True"),
    ([1.5], "give a list of different layers"),
    ({"1": 2}, "give a list of different layers"),
])  # fmt: skip
def test_a_file_that_names_acting_layers_it_does_not_have_is_refused(tmp_path, named, message):
    calm().save(tmp_path / "calm")
    path = tmp_path / "calm" / "metadata.json"
    document = json.loads(path.read_text("utf-8"))
    document["metadata"]["acting_layers"] = named
    path.write_text(json.dumps(document))
    with pytest.raises(FileFormatError) as refused:
        SteeringVectorSet.load(tmp_path / "calm")
    assert str(tmp_path / "calm") in str(refused.value)
    assert message in str(refused.value)


def test_a_set_whose_acting_layers_were_spoilt_is_not_written(tmp_path):
    spoilt = calm()
    spoilt.metadata["acting_layers"] = [1, 5]
    for form in ("native", "safetensors", "pretrained"):
        with pytest.raises(LayerError, match="no vector at layer 5"):
            spoilt.save(tmp_path / "calm", form)
    assert list(tmp_path.iterdir()) == []


def test_every_format_states_how_vectors_are_applied(tmp_path):
    calm().save(tmp_path / "calm")
    document = json.loads((tmp_path / "calm" / "layer_1.json").read_text("utf-8"))
    assert document["steering"] == STEERING
    assert (document["dtype"], document["vector_shape"]) == ("float32", [8])
    assert document["norm"] == pytest.approx(8**0.5)


@pytest.mark.parametrize(("changes", "message"), [
    ({"norm": 7.0}, r"says norm 7.0, the tensor has another: 2.8"),
    ({"norm": "much"}, "says norm much"),
    ({"dtype": "bfloat16"}, "says dtype bfloat16, the tensor has another: float32"),
    ({"steering": STEERING | {"operator": "project"}}, "which this release does not do: it adds vectors to the output"),
    ({"steering": None}, "says steering None"),
])  # fmt: skip
def test_vectors_that_are_meant_otherwise_are_refused(tmp_path, changes, message):
    calm()[1].save(tmp_path / "one")
    document = json.loads((tmp_path / "one.json").read_text("utf-8"))
    (tmp_path / "one.json").write_text(json.dumps(document | changes))
    with pytest.raises(FileFormatError, match=message):
        SteeringVector.load(tmp_path / "one")


def test_formats_that_are_none(tmp_path):
    with pytest.raises(OptionError, match=r"Unknown format 'pickle'. Use one of native, pretrained, safetensors"):
        calm().save(tmp_path / "x", format="pickle")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileFormatError, match="is a file; a native set is a folder"):
        calm().save(tmp_path / "file")
    with pytest.raises(FileFormatError, match=r"is not a vector set of this package \(native, pretrained, safetensors"):
        SteeringVectorSet.load(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        SteeringVectorSet.load(tmp_path / "nothing")
    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(FileFormatError, match="is not a vector set of this package"):
        SteeringVectorSet.load(tmp_path / "foreign.safetensors")


def whole(header, data=bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


NAN = torch.tensor([1.0, float("nan"), 0.0, 0.0]).numpy().tobytes()


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is not a safetensors file: 0 bytes"),
    ((2**40).to_bytes(8, "little") + b"{", "a header of 1099511627776 claimed"),
    (whole(b" " * (5 * 2**20)), "has a header of 5,242,880 bytes"),
    (whole({f"t{n}": 0 for n in range(300_000)}, b""), "has a header of|JSON items, more than"),
    (whole({f"t{n}": 0 for n in range(5000)}), "holds 5,000 tensors, expected 1 to 4,096"),
    (whole({}), "holds 0 tensors"),
    (whole({"a": 5}), "the header does not say what it holds: 5"),
    (whole({"a": entry(shape=(2**40,))}), "claims 1099511627776 numbers in 16 bytes"),
    (whole({"a": entry(offsets=(0, 2**40))}), "claims 4 numbers in 1099511627776 bytes"),
    (whole({"a": entry(offsets=(16, 0))}), "claims 4 numbers in -16 bytes"),
    (whole({"a": entry(offsets=(0, 16)), "b": entry(offsets=(0, 16))}), "do not fill the 16 bytes"),
    (whole({"a": entry()}, bytes(32)), "do not fill the 32 bytes"),
    (whole({"a": entry(dtype="I64", shape=(2,))}), "holds 'I64', expected one of F64, F32, F16, BF16"),
    (whole({"a": entry(dtype=["F32"])}), "expected one of"),
    (whole({"a": entry(shape=(2, 2))}), r"holds a tensor of shape \[2, 2\], expected \[hidden\]"),
    (whole({"a": entry(shape=(), offsets=(0, 4))}, bytes(4)), r"shape \[\]"),
    (whole({"a": entry(shape=(0,), offsets=(0, 0))}, b""), r"shape \[0\]"),
    (whole({"a": entry(shape=(True,))}), "does not say what it holds"),
    (whole({"a": entry()}, NAN), "NaN or infinite"),
    (whole({"a": entry(), "__metadata__": {"x": 5}}), "metadata of a safetensors header is text by name"),
    (whole(b'{"a":' * 50_000), "not valid JSON"),
    (whole(b'{"a": ' + b"9" * 100_000 + b"}"), "an integer of 100,000 digits"),
    (whole(b"[1]"), "JSON list, expected an object"),
], ids=range(23))  # fmt: skip
def test_headers_are_checked_before_anything_is_allocated(tmp_path, content, message):
    with pytest.raises(FileFormatError, match=message):
        parse_safetensors(bytearray(content), tmp_path / "x")


@pytest.mark.parametrize(("document", "message"), [
    (b"{}", "does not describe the tensors it holds"),
    (b'{"vectors": {"0": {}, "7": {}}}', "does not describe the tensors it holds"),
    (b'{"vectors": {"0": 5}}', "describes layer '0' by 5"),
    (b'{"schema_version": "9"}', "schema version '9'"),
    (b"[", "not valid JSON"),
])  # fmt: skip
def test_documents_that_do_not_fit_the_tensors_are_refused(tmp_path, document, message):
    header = {"__metadata__": {"rotalabs_steer": document.decode()}, "layer_0": entry()}
    with pytest.raises(FileFormatError, match=message):
        parse_safetensors_set(bytearray(whole(header)), tmp_path / "x")


def test_a_layer_cannot_be_named_twice(tmp_path):
    header = {"__metadata__": {"rotalabs_steer": '{"vectors": {"01": {}}}'}, "layer_01": entry()}
    with pytest.raises(FileFormatError, match="describes layer '01'"):
        parse_safetensors_set(bytearray(whole(header)), tmp_path / "x")
