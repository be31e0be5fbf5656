"""Archives of torch.save: what lies where in them, what their pickles may do, and arrays of numpy in them."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.reading import numbers_in
from rotalabs_steer.files.torch_files import open_archive, parse_pickle, parse_vector
from rotalabs_steer.importing import import_vectors


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def parsed(content: bytearray, path):
    return parse_pickle(open_archive(content, path), path)


def with_pickle(program: bytes) -> bytearray:
    """A file as torch.save writes it, with another pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(torch.ones(4)))) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, program if name.endswith("data.pkl") else source.read(name))
    return bytearray(buffer.getvalue())


def members(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()


HUGE = b"\x8a\x06" + (2**40).to_bytes(6, "little")
NESTED = "it holds more than tensors, arrays, and one list"
GOOD = saved(torch.ones(4))
DOUBLED = b"\x86q\x00h\x00" * 60  # a pair of a pair of …: 2^60 to whoever follows it

SELF = (
    b"\x80\x02csteering_vectors.steering_vector\nSteeringVector\n)\x81q\x00}X\x11\x00\x00\x00layer_activationsh\x00sb."
)


@pytest.mark.parametrize(("program", "message"), [
    (b"\x80\x02cbuiltins\nbytearray\n" + HUGE + b"\x85R.", r"could run code \(builtins bytearray\)"),
    (b"\x80\x02ctorch\nTensor\n" + HUGE + b"\x85R.", r"could run code \(torch Tensor\)"),
    (b"\x80\x02ctorch._utils\n_rebuild_qtensor\n.", r"could run code \(torch._utils _rebuild_qtensor\)"),
    (b"\x80\x04\x8c\x05torch\x8c\x06Tensor\x93.", r"could run code \(SHORT_BINUNICODE\)"),
    (b"\x80\x02(" + b"}" * 60_000 + b"t.", "its pickle has more than 30,000 instructions"),
    (b"\x80\x02X" + struct.pack("<I", 5_000_000) + b"a" * 5_000_000 + b".", "has a pickle of 5,000,008 bytes, more"),
    (b"\x80\x02X" + struct.pack("<I", 5_000_000) + b"a.", "is not a plain PyTorch tensor file: "),
    (b"\x80\x02c\xff\n\xff\n.", "is not a plain PyTorch tensor file: "),
    (b"\x80\x02.", "is not a plain PyTorch tensor file: "),
    (b"\x80\x02}(K\x01K\x01" + DOUBLED + b"K\x02u.", "a dictionary with keys other than numbers and text"),
    (b"\x80\x02c_codecs\nencode\n}X\x0c\x00\x00\x00__defaults__K\x01sb.", r"could run code \(BUILD\)"),
    (b"\x80\x02c_codecs\nencode\nK\x01K\x01\x86a.", r"could run code \(APPEND\)"),
    (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00idna\x86R.", NESTED),
    (b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.", "is not a plain PyTorch tensor file: "),
    (b"\x80\x02K\x05)R.", r"could run code \(REDUCE\)"),
    (b"\x80\x02K\x05\x86.", "takes more values than it has"),
    (b"\x80\x02]q\x00h\x00a.", NESTED),
    (b"\x80\x02}K\x01" + b"\x85" * 29_000 + b"Ns.", "a dictionary with keys other than numbers and text"),
    (b"\x80\x02" + b"]" * 14_000 + b"a" * 13_999 + b".", NESTED),
    (SELF, "a dictionary with keys other than numbers and text"),
    (b"\x80\x02Nr\xff\xff\xff\xff.", "holds a NoneType, expected"),
], ids=range(21))  # fmt: skip
def test_a_pickle_builds_vectors_or_is_refused(tmp_path, program, message):
    with pytest.raises(FileFormatError, match=message):
        parse_vector(with_pickle(program), tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(with_pickle(program))
    with pytest.raises(FileFormatError, match=message):
        import_vectors(tmp_path / "x.pt")


def tensor_program(kind=b"torch\nFloatStorage", key=b"0", count=4, offset=0, size=4, stride=1) -> bytes:
    """What torch.save pickles of four float32, with parts of it changed."""
    storage = b"(X\x07\x00\x00\x00storagec" + kind + b"\nX" + struct.pack("<I", len(key)) + key
    storage += b"X\x03\x00\x00\x00cpuJ" + struct.pack("<i", count) + b"tQ"
    view = b"".join(b"J" + struct.pack("<i", number) + after for number, after in ((offset, b""), (size, b"\x85")))
    view += b"J" + struct.pack("<i", stride) + b"\x85"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"\x89ccollections\nOrderedDict\n)RtR."


def test_the_program_of_a_tensor_is_what_is_read(tmp_path):
    assert parse_vector(with_pickle(tensor_program()), tmp_path / "x.pt").tolist() == [1.0] * 4


@pytest.mark.parametrize(("program", "message"), [
    (tensor_program(key=b"7"), "refers to data that it does not have"),
    (tensor_program(kind=b"_codecs\nencode"), "refers to data that it does not have"),
    (tensor_program(count=5), r"claims 5 numbers of torch.float32, and has 16 bytes"),
    (tensor_program(count=-1), r"claims -1 numbers of torch.float32, and has 16 bytes"),
    (tensor_program(offset=1), "is not a plain PyTorch tensor file: .*out of bounds"),
    (tensor_program(size=5), "is not a plain PyTorch tensor file: .*out of bounds"),
    (tensor_program(size=2**31 - 1, stride=2**31 - 1), "is not a plain PyTorch tensor file: .*overflowed"),
    (tensor_program(offset=-1), "is not a plain PyTorch tensor file: "),
    (tensor_program(size=-1), "offset, sizes or strides are not up to 8 numbers"),
    (tensor_program(stride=-1), "offset, sizes or strides are not up to 8 numbers"),
    (tensor_program().replace(b"J\x04\x00\x00\x00\x85", b"(" + b"K\x01" * 9 + b"t"), "up to 8 numbers"),
    (tensor_program().replace(b"X\x01\x00\x00\x000", b"K\x01K\x01" + DOUBLED), "refers to data that it does not have"),
    (tensor_program(kind=b"torch\nComplexFloatStorage"), r"could run code \(torch ComplexFloatStorage\)"),
], ids=range(13))  # fmt: skip
def test_a_tensor_shows_what_its_file_has(tmp_path, program, message):
    with pytest.raises(FileFormatError, match=message):
        parse_vector(with_pickle(program), tmp_path / "x.pt")


@pytest.mark.parametrize(("content", "message"), [
    (GOOD[:100], "is not a file of torch.save or numpy.savez"),
    (GOOD[64:], "is not a file of torch.save or numpy.savez"),
    (members(("a/version", b"3")), "holds 0 pickles, expected one"),
    (members(("a/data.pkl", b"x"), ("b/data.pkl", b"y")), "holds 2 pickles, expected one"),
    (members(("a/data.pkl", b"x"), ("a/byteorder", b"big")), "was written on a big-endian machine"),
    (members(*((f"a/data/{n}", b"") for n in range(10_000))), r"it asks for [\d,]+ bytes at once, more than 524,288"),
], ids=range(6))  # fmt: skip
def test_archives_that_are_not_read(tmp_path, content, message):
    with pytest.raises(FileFormatError, match=message):
        parse_vector(bytearray(content), tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_has_one_file_of_a_name(tmp_path):
    with pytest.raises(FileFormatError, match="holds two files of one name"):
        parse_vector(bytearray(members(("a/data.pkl", b"x"), ("a/data.pkl", b"y"))), tmp_path / "x.pt")


def test_tensors_are_used_where_they_lie_and_saved_alone(tmp_path):
    content = bytearray(saved({1: torch.arange(4.0), 2: torch.arange(4.0, 8.0)}))
    found = parsed(content, tmp_path / "x.pt")
    place = content.index(torch.arange(4.0).numpy().tobytes())
    content[place : place + 4] = b"\0\0\x80\x3f"
    assert found[1].tolist() == [1.0, 1.0, 2.0, 3.0]
    assert found[1].untyped_storage().nbytes() == 16
    assert len(saved(found[2])) < 2_000


@pytest.mark.parametrize("before", range(1, 8))
def test_numbers_that_begin_anywhere(tmp_path, before):
    content = bytearray(b"x" * before) + torch.arange(4.0, dtype=torch.float64).numpy().tobytes()
    numbers = numbers_in(memoryview(content)[before:], torch.float64)
    assert numbers.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert numbers.data_ptr() % 8 == 0


def test_what_else_torch_saves_of_tensors(tmp_path):
    linear = torch.nn.Linear(4, 1)
    state = parsed(bytearray(saved(linear.state_dict())), tmp_path / "x.pt")
    assert state["weight"].equal(linear.weight)
    assert parsed(bytearray(saved(linear.weight)), tmp_path / "x.pt").equal(linear.weight)
    table = torch.arange(12.0).reshape(3, 4)
    rows = parsed(bytearray(saved([table[0], table[2], table[2]])), tmp_path / "x.pt")
    assert [row.tolist() for row in rows] == [table[n].tolist() for n in (0, 2, 2)]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert parse_vector(bytearray(saved(torch.arange(4).to(dtype))), tmp_path / "x.pt").dtype == dtype


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_arrays_of_numpy(tmp_path, dtype):
    array = np.arange(-2, 6).astype(dtype)
    torch.save(array, tmp_path / "one.pt")
    assert import_vectors(tmp_path / "one.pt", layers=[3])[3].vector.tolist() == array.tolist()
    torch.save({3: array, 4: 2 * array}, tmp_path / "two.pt")
    assert import_vectors(tmp_path / "two.pt")[4].vector.tolist() == (2 * array).tolist()
    torch.save([array, array[None], array], tmp_path / "list.pt")
    assert import_vectors(tmp_path / "list.pt").layers == [0, 1, 2]
    torch.save({3: array, 4: torch.ones(8)}, tmp_path / "both.pt")
    assert import_vectors(tmp_path / "both.pt").layers == [3, 4]


def test_arrays_that_numpy_1_wrote(tmp_path):
    program = pickle.dumps(np.ones(4, np.float32), protocol=2).replace(b"numpy._core.", b"numpy.core.")
    (tmp_path / "x.pt").write_bytes(with_pickle(program))
    assert import_vectors(tmp_path / "x.pt", layers=[3])[3].vector.tolist() == [1.0] * 4


class Opener:
    def __reduce__(self):
        return (print, ("executed",))


def array_program(shape: bytes = b"K\x04\x85", text: bytes = b"a" * 16, encoding: bytes = b"latin1") -> bytes:
    """What numpy pickles of four float32, with parts of it changed."""

    def word(letters: bytes) -> bytes:
        return b"X" + struct.pack("<I", len(letters)) + letters

    array = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + shape + word(b"b") + b"\x87R"
    order = b"(K\x03" + word(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    dtype = b"cnumpy\ndtype\n" + word(b"f4") + b"\x89\x88\x87R" + order
    data = b"c_codecs\nencode\n" + word(text) + word(encoding) + b"\x86R"
    return b"\x80\x02" + array + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb."


def test_the_program_of_an_array_is_what_is_read(tmp_path):
    (tmp_path / "x.pt").write_bytes(
        with_pickle(array_program(text=np.ones(4, np.float32).tobytes().decode("latin-1").encode()))
    )
    assert import_vectors(tmp_path / "x.pt", layers=[3])[3].vector.tolist() == [1.0] * 4


@pytest.mark.parametrize(("content", "message"), [
    (saved(np.array([Opener()])), "could run code"),
    (saved({3: np.ones(2), 4: Opener()}), "could run code"),
    (saved(np.ones(2, np.int64)), "other than plain numbers"),
    (saved(np.ones(2, ">f4")), "other than plain numbers"),
    (saved(np.asfortranarray(np.ones((2, 2)))), "other than plain numbers"),
    (saved(np.ones(0, np.float32)), "could run code"),
    (saved({3: np.ones(2), 4: "text"}), "expected tensors: one, or one a layer"),
    (with_pickle(array_program(shape=b"J\xff\xff\xff\x7f\x85")), r"claims shape \(2147483647,\), and has 16 bytes"),
    (with_pickle(b"\x80\x02cnumpy\ndtype\nK\x01K\x01" + DOUBLED + b"\x86R."), NESTED),
    (with_pickle(array_program(encoding=b"idna")), "an array of other than plain numbers"),
    (with_pickle(b"\x80\x02cnumpy\nndarray\n\x8a\x01\x04\x85R."), NESTED),
], ids=range(11))  # fmt: skip
def test_strangers_arrays(tmp_path, capsys, content, message):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        import_vectors(tmp_path / "x.pt", layers=[3])
    assert "executed" not in capsys.readouterr().out
