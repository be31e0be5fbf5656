"""Files that a stranger wrote."""

import io
import json
import os
import pickle
import zipfile

import pytest
import torch

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.reading import MAX_JSON_BYTES, l2_norm, parse_json_object, read_bytes
from rotalabs_steer.files.torch_files import parse_vector
from rotalabs_steer.importing import import_vectors


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class Bomb:
    def __reduce__(self):
        return (print, ("executed",))


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    return buffer.getvalue()


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is not a file of torch.save"),
    (b"hello", "is not a file of torch.save"),
    (pickle.dumps(Bomb()), "is not a file of torch.save"),
    (zip_bomb(), "is a compressed archive"),
    (saved(Bomb()), "not a plain PyTorch tensor file: it holds more than plain tensors, and reading that could run"),
    (saved({"vector": torch.ones(2)}), "holds a dict, expected one tensor"),
    (saved(torch.ones(1).expand(2**40)), r"stride \(0,\), expected a contiguous one"),
    (saved(torch.sparse_coo_tensor([[0]], [1.0], (2**40,), check_invariants=True)), "more than plain tensors"),
    (saved(torch.empty(2**40, device="meta")), "more than plain tensors"),
    (saved(torch.ones(2, 2)), r"shape \[2, 2\]"),
    (saved(torch.ones(0)), r"shape \[0\]"),
    (saved(torch.ones(2, dtype=torch.int64)), "torch.int64, expected floating-point"),
    (saved(torch.tensor([1.0, float("inf")])), "NaN or infinite"),
    (saved(torch.ones(1000)[:2]), "carries more data than its tensor shows"),
], ids=range(14))  # fmt: skip
def test_tensors_that_are_not_vectors_are_refused(tmp_path, capsys, content, message):
    with pytest.raises(FileFormatError, match=message):
        parse_vector(bytearray(content), tmp_path / "v.pt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(("content", "message"), [
    (b"[1]", "JSON list, expected an object"),
    (b"{", "not valid JSON"),
    (b"\xff\xfe", "not valid JSON"),
    (b'{"a": NaN}', "NaN is not JSON"),
    (b"[" * 100_000, "not valid JSON"),
    (b'{"a": ' + b"9" * 100_000 + b"}", "an integer of 100,000 digits"),
    (b'{"a": 1e999}', "1e999 is beyond all floating-point numbers"),
    (b'{"a": "\\ud800"}', "not valid JSON"),
    (b"[" + b"[]," * 100_000 + b"[]]", "about 200,002 JSON items, more than 100,000. Not parsed"),
])  # fmt: skip
def test_json_that_is_none_is_refused(tmp_path, content, message):
    with pytest.raises(FileFormatError, match=message):
        parse_json_object(content, tmp_path / "v.json")


def test_a_file_beyond_all_measure_is_not_read(tmp_path):
    path = tmp_path / "v.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room on disk
    (tmp_path / "v.pt").write_bytes(saved(torch.ones(2)))
    with pytest.raises(FileFormatError, match="is larger than"):
        read_bytes(path, MAX_JSON_BYTES)
    with pytest.raises(FileFormatError, match="is larger than"):
        SteeringVector.load(tmp_path / "v")


def test_a_pointer_of_git_lfs_says_how_to_get_the_file(tmp_path):
    (tmp_path / "calm").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 173632\n")
    for read in (import_vectors, SteeringVectorSet.load):
        with pytest.raises(FileFormatError, match=r"calm is a pointer of Git LFS, .* Fetch that with `git lfs pull`"):
            read(tmp_path / "calm")


def test_a_flipped_bit_is_noticed(tmp_path):
    SteeringVector("calm", 1, torch.ones(64), "m").save(tmp_path / "v")
    content = bytearray((tmp_path / "v.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "v.pt").write_bytes(content)
    with pytest.raises(FileFormatError, match="changed or damaged"):
        SteeringVector.load(tmp_path / "v")


def test_the_norm_of_a_vector_that_is_read_in_parts():
    numbers = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert l2_norm(numbers) == pytest.approx(float(numbers.double().norm()), rel=1e-12)


def calm_at(folder):
    SteeringVectorSet("calm", [SteeringVector("calm", 1, torch.ones(8), "m")]).save(folder)
    return folder


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
def test_links_out_of_the_folder_and_pipes_are_not_read(tmp_path):
    folder, outside = calm_at(tmp_path / "set"), tmp_path / "secret.pt"
    (folder / "layer_1.pt").rename(outside)
    (folder / "layer_1.pt").symlink_to(outside)
    with pytest.raises(FileFormatError, match=r"layer_1.pt is a link to .*secret.pt, outside its folder. Not read"):
        SteeringVectorSet.load(folder)
    (folder / "layer_1.pt").unlink()
    (folder / "layer_1.pt").symlink_to("layer_1.pt")
    with pytest.raises(FileFormatError, match="is a link that leads nowhere"):
        SteeringVectorSet.load(folder)
    (folder / "layer_1.pt").unlink()
    os.mkfifo(folder / "layer_1.pt")
    with pytest.raises(FileFormatError, match="is not a regular file"):
        SteeringVectorSet.load(folder)
    calm_at(folder)
    assert SteeringVectorSet.load(folder).layers == [1]


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_saving_replaces_a_link_and_never_writes_through_it(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "set").mkdir()
    for name in ("metadata.json", "layer_1.pt", "layer_1.json"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "mine.txt")
    calm_at(tmp_path / "set")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert SteeringVectorSet.load(tmp_path / "set").layers == [1]


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_within_the_folder_and_into_the_hub_cache_are_read(tmp_path):
    folder = calm_at(tmp_path / "set")
    (folder / "layer_1.pt").rename(folder / "data")
    (folder / "layer_1.pt").symlink_to("data")
    assert SteeringVectorSet.load(folder).layers == [1]
    snapshot = calm_at(tmp_path / "models--me--calm" / "snapshots" / "abc")
    blobs = tmp_path / "models--me--calm" / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert SteeringVectorSet.load(snapshot).layers == [1]


@pytest.mark.parametrize("metadata", [
    {"chosen_layer": []}, {"chosen_layer": "1"}, {"chosen_layer": 9}, {"chosen_layer": True},
])  # fmt: skip
def test_a_chosen_layer_that_makes_no_sense_is_an_error(tmp_path, metadata):
    folder = calm_at(tmp_path / "set")
    document = json.loads((folder / "metadata.json").read_text("utf-8"))
    document["metadata"] = metadata
    document["vectors"]["1"]["metadata"]["fingerprint"] = ["not", "a", "fingerprint"]
    (folder / "metadata.json").write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match="chosen_layer of the set of 'calm' is"):
        SteeringVectorSet.load(folder)
