"""Archives of torch.save: what their pickles may ask for, and arrays of numpy in them."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.reading import parse_vector
from rotalabs_steer.importing import import_vectors


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def with_pickle(program: bytes) -> bytes:
    """A file as torch.save writes it, with another pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(torch.ones(4)))) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, program if name.endswith("data.pkl") else source.read(name))
    return buffer.getvalue()


def members(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()


HUGE = b"\x8a\x06" + (2**40).to_bytes(6, "little")
GOOD = saved(torch.ones(4))


@pytest.mark.parametrize(("program", "message"), [
    (b"\x80\x02cbuiltins\nbytearray\n" + HUGE + b"\x85R.", r"could run code \(builtins bytearray\)"),
    (b"\x80\x02ctorch\nTensor\n" + HUGE + b"\x85R.", r"could run code \(torch Tensor\)"),
    (b"\x80\x02ctorch._utils\n_rebuild_qtensor\n.", r"could run code \(torch._utils _rebuild_qtensor\)"),
    (b"\x80\x04\x8c\x05torch\x8c\x06Tensor\x93.", r"could run code \(STACK_GLOBAL\)"),
    (b"\x80\x02(" + b"}" * 60_000 + b"t.", "has a pickle of more than 50,000 instructions"),
    (b"\x80\x02}r\xff\xff\xff\x7f.", "has a pickle of more than 50,000 instructions"),
    (b"\x80\x02X" + struct.pack("<I", 5_000_000) + b"a" * 5_000_000 + b".", "has a pickle of 5,000,008 bytes, more"),
    (b"\x80\x02X" + struct.pack("<I", 5_000_000) + b"a.", "is not a plain PyTorch tensor file: "),
    (b"\x80\x02c\xff\n\xff\n.", "is not a plain PyTorch tensor file: "),
], ids=range(9))  # fmt: skip
def test_a_pickle_asks_for_tensors_or_is_refused(tmp_path, program, message):
    with pytest.raises(FileFormatError, match=message):
        parse_vector(with_pickle(program), tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(with_pickle(program))
    with pytest.raises(FileFormatError, match=message):
        import_vectors(tmp_path / "x.pt")


def end_with(directory: int) -> bytes:
    """A file whose last words name another place for the list of members."""
    return GOOD[:-6] + directory.to_bytes(4, "little") + GOOD[-2:]


@pytest.mark.parametrize(("content", "message"), [
    (b"PK\x03\x04 anything" + GOOD, "can be read in two ways"),
    (GOOD[:-2] + b"\x03\x00abc", "can be read in two ways"),
    (end_with(0), "can be read in two ways"),
    (GOOD[:-50] + (7).to_bytes(8, "little") + GOOD[-42:], "can be read in two ways|not a PyTorch file"),
    (GOOD[:-34] + (7).to_bytes(8, "little") + GOOD[-26:], "can be read in two ways"),
    (members(("a/data.pkl", b"x"), ("a/DATA.pkl", b"y")), "can be read in two ways"),
    (members(("a/data.pkl", b"x"), ("b/data.pkl", b"y")), "holds 2 pickles, expected one"),
    (members(("a/version", b"3")), "holds 0 pickles, expected one"),
], ids=range(8))  # fmt: skip
def test_an_archive_is_one_to_every_reader(tmp_path, content, message):
    with pytest.raises(FileFormatError, match=message):
        parse_vector(content, tmp_path / "x.pt")


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_arrays_of_numpy(tmp_path, dtype):
    array = np.arange(-2, 6).astype(dtype)
    torch.save(array, tmp_path / "one.pt")
    assert import_vectors(tmp_path / "one.pt", layers=[3])[3].vector.tolist() == array.tolist()
    torch.save({3: array, 4: 2 * array}, tmp_path / "two.pt")
    assert import_vectors(tmp_path / "two.pt")[4].vector.tolist() == (2 * array).tolist()
    torch.save([array, array[None]], tmp_path / "list.pt")
    assert import_vectors(tmp_path / "list.pt").layers == [0, 1]


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
    (saved({3: np.ones(2), 4: torch.ones(2)}), "could run code"),
    (saved({3: np.ones(2), 4: "text"}), "expected tensors: one, or one a layer"),
    (with_pickle(array_program(shape=b"J\xff\xff\xff\x7f\x85")), r"claims shape \(2147483647,\), and has 16 bytes"),
    (with_pickle(array_program(encoding=b"idna")), "it holds bytes as 'idna'"),
    (with_pickle(b"\x80\x02cnumpy\nndarray\n\x8a\x01\x04\x85R."), r"could run code \(LONG1\)"),
], ids=range(11))  # fmt: skip
def test_strangers_arrays(tmp_path, capsys, content, message):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        import_vectors(tmp_path / "x.pt", layers=[3])
    assert "executed" not in capsys.readouterr().out
