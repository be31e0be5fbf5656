"""GGUF control vectors: ours, a stranger's, and what is none."""

import struct

import gguf
import pytest
import torch

from rotalabs_steer.errors import FileFormatError, LayerError
from rotalabs_steer.files.gguf import ControlVector, read_control_vector, write_control_vector


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def file(tensors, pairs=(), *, architecture="controlvector", version=3, counts=None, data=b"") -> bytes:
    """A GGUF file, byte by byte. Tensors are (name, shape, type, offset); pairs are (key, type, encoded value)."""
    pairs = [("general.architecture", 8, text(architecture)), *pairs]
    content = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(pairs))))
    for key, kind, value in pairs:
        content += text(key) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        content += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", kind, offset)
    return content + b"\0" * (-len(content) % 32) + data


def floats(*numbers) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


GOOD = file([("direction.3", (2,), 0, 0)], data=floats(1, 2))


def test_what_is_written_is_read_back_and_is_what_gguf_reads(tmp_path):
    path = tmp_path / "v.gguf"
    directions = {5: torch.randn(64), 1: torch.randn(64, dtype=torch.float64), 17: torch.zeros(64)}
    metadata = {"mine.text": "tägliche", "mine.number": 7, "mine.strength": 1.5, "mine.flag": True}
    write_control_vector(path, ControlVector(directions, "llama", metadata))
    read = read_control_vector(path)
    assert list(read.directions) == [1, 5, 17]
    assert read.model_hint == "llama"
    assert read.metadata == metadata
    for layer, direction in directions.items():
        assert torch.equal(read.directions[layer], direction.float())

    theirs = gguf.GGUFReader(path)
    assert theirs.fields["general.architecture"].contents() == "controlvector"
    assert theirs.fields["controlvector.model_hint"].contents() == "llama"
    assert theirs.fields["controlvector.layer_count"].contents() == 3
    assert {t.name: t.data.tolist() for t in theirs.tensors} == {
        f"direction.{layer}": direction.tolist() for layer, direction in read.directions.items()
    }


def test_a_file_written_as_repeng_writes_it(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", 2)
    for layer in (12, 13):
        writer.add_tensor(f"direction.{layer}", torch.full((8,), float(layer)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = read_control_vector(tmp_path / "v.gguf")
    assert (read.model_hint, list(read.directions)) == ("mistral", [12, 13])
    assert read.directions[12].tolist() == [12.0] * 8


def test_the_generator_of_llama_cpp_numbers_layers_one_higher(tmp_path):
    path = tmp_path / "v.gguf"
    path.write_bytes(file([("direction.1", (2,), 0, 0), ("direction.2", (2,), 0, 32)], data=floats(*range(10))))
    assert list(read_control_vector(path, layer_offset=-1).directions) == [0, 1]
    assert list(read_control_vector(path).directions) == [1, 2]
    with pytest.raises(FileFormatError, match=r"direction\.1 with layer offset -2 is layer -1, which does not exist"):
        read_control_vector(path, layer_offset=-2)


def test_layer_0_is_read_though_llama_cpp_does_not_steer_it(tmp_path):
    """EasySteer's files have it."""
    path = tmp_path / "v.gguf"
    path.write_bytes(file([("direction.0", (2,), 0, 0), ("direction.1", (2,), 0, 32)], data=floats(*range(10))))
    assert read_control_vector(path).directions[0].tolist() == [0.0, 1.0]
    with pytest.raises(FileFormatError, match=r"direction\.0 with layer offset -1 is layer -1, which does not exist"):
        read_control_vector(path, layer_offset=-1)


def test_lists_in_the_header_are_skipped(tmp_path):
    numbers = struct.pack("<IQ", 4, 3) + struct.pack("<3I", 1, 2, 3)
    words = struct.pack("<IQ", 8, 2) + text("a") + text("b")
    (tmp_path / "v.gguf").write_bytes(
        file([("direction.3", (2,), 0, 0)], [("numbers", 9, numbers), ("words", 9, words)], data=floats(1, 2))
    )
    read = read_control_vector(tmp_path / "v.gguf")
    assert (read.directions[3].tolist(), read.metadata) == ([1.0, 2.0], {})


@pytest.mark.parametrize(("layers", "message"), [({0: 1, 3: 1}, "cannot steer layer 0"), ({}, "No layer is steered")])
def test_what_the_format_cannot_express_is_not_written(tmp_path, layers, message):
    with pytest.raises(LayerError, match=message):
        write_control_vector(tmp_path / "v.gguf", ControlVector({layer: torch.ones(4) for layer in layers}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "message"), [
    (b"", "ends in the middle of its header"),
    (b"GGML" + GOOD[4:], "does not begin with GGUF"),
    (file([], version=1), "format version is 1"),
    (GOOD[:4] + b"\0\0\0\3" + GOOD[8:], "format version is 50331648"),
    (file([], architecture="llama"), "a GGUF file of 'llama', expected 'controlvector'"),
    (file([]), "holds no directions"),
    (file([], counts=(2**64 - 1, 1)), "claims 18446744073709551615 tensors, more than 4096"),
    (file([], counts=(0, 2**40)), "claims 1099511627776 header entries"),
    (file([], counts=(4096, 1)), "ends in the middle"),
    (file([], [("a", 8, struct.pack("<Q", 2**63))]), "ends in the middle"),
    (file([], [("a", 8, struct.pack("<Q", 2) + b"\xff\xfe")]), "codec can't decode"),
    (file([], [("a", 9, struct.pack("<IQ", 0, 2**62))]), "ends in the middle"),
    (file([], [("a", 9, struct.pack("<IQ", 8, 2**40))]), "texts in a list"),
    (file([], [("a", 9, struct.pack("<IQ", 9, 2**40))]), "a list has elements of type 9"),
    (file([], [("a", 99, b"")]), "type 99, which does not exist"),
    (file([], [("general.alignment", 4, struct.pack("<I", 0))]), "alignment is 0"),
    (file([("direction.3", (2,) * 5, 0, 0)], data=floats(1, 2)), "claims 5 dimensions"),
    (file([("direction.3", (2,), 0, 0)] * 2, data=floats(1, 2)), "two tensors 'direction.3'"),
    (file([("direction.-1", (2,), 0, 0)], data=floats(1, 2)), "a tensor 'direction.-1', expected only direction.0"),
    (file([("token_embd.weight", (2,), 0, 0)], data=floats(1, 2)), "a tensor 'token_embd.weight'"),
    (file([("direction.3", (2,), 1, 0)], data=floats(1, 2)), "GGUF type 1, expected 32-bit floats"),
    (file([("direction.3", (1, 2), 0, 0)], data=floats(1, 2)), r"shape \[1, 2\], expected \[hidden\]"),
    (file([("direction.3", (0,), 0, 0)], data=floats(1, 2)), r"shape \[0\]"),
    (file([("direction.3", (2**62,), 0, 0)], data=floats(1, 2)), "past the end of the file"),
    (file([("direction.3", (2,), 0, 2**63)], data=floats(1, 2)), "past the end of the file"),
    (file([("direction.3", (2,), 0, 4)], data=floats(1, 2)), "past the end of the file"),
    (file([("direction.3", (2,), 0, 0)], data=floats(1, float("nan"))), "NaN or infinite"),
    (file([("direction.3", (2,), 0, 0)], data=floats(1, float("-inf"))), "NaN or infinite"),
    (file([("direction.3", (2,), 0, 0), ("direction.4", (1,), 0, 0)], data=floats(1, 2)), "of different lengths"),
])  # fmt: skip
def test_what_is_no_control_vector_is_refused(tmp_path, content, message):
    (tmp_path / "v.gguf").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        read_control_vector(tmp_path / "v.gguf")


@pytest.mark.parametrize("end", range(0, len(GOOD), 7))
def test_a_file_that_was_cut_off_is_refused(tmp_path, end):
    (tmp_path / "v.gguf").write_bytes(GOOD[:end])
    with pytest.raises(FileFormatError):
        read_control_vector(tmp_path / "v.gguf")


def test_any_changed_byte_gives_vectors_or_a_clear_error(tmp_path):
    for place in range(len(GOOD)):
        for value in (0, 127, 255):
            (tmp_path / "v.gguf").write_bytes(GOOD[:place] + bytes([value]) + GOOD[place + 1 :])
            try:
                read = read_control_vector(tmp_path / "v.gguf")
            except FileFormatError:
                continue
            assert all(torch.isfinite(direction).all() for direction in read.directions.values())


def test_a_file_beyond_all_measure_is_not_read(tmp_path):
    with (tmp_path / "v.gguf").open("wb") as huge:
        huge.truncate(2**40)  # takes no room on disk
    with pytest.raises(FileFormatError, match="is larger than"):
        read_control_vector(tmp_path / "v.gguf")
