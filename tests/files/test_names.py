"""Names that come from outside, and the downloads that use them."""

import pytest
import torch

from rotalabs_steer import SteeringVectorSet
from rotalabs_steer.errors import DownloadError, FileFormatError
from rotalabs_steer.files.names import check_name, check_relative
from rotalabs_steer.utils import download_vectors, list_available_vectors

UNSAFE = [
    "", "..", "../up", "..\\up", "/etc/passwd", "C:\\up", "C:up", "\\\\server\\share", "a/../../up", "NUL", "con.json",
    "COM1 .pt", "name:stream", "dot.", "space ", "~root", "zero\0byte", "star*", "x" * 300,
]  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_names_are_refused_on_every_system(name):
    with pytest.raises(FileFormatError, match="is not a safe file name: "):
        check_name(name)


@pytest.mark.parametrize("name", ["refusal", "qwen3-8b", "qwen2.5_layer_15", ".hidden", "é", "console", "com10", "a b"])
def test_ordinary_names_are_not(name):
    assert check_name(name) == name
    assert check_relative(f"{name}/{name}") == [name, name]


def layout_of_1_2(folder):
    """The files that rotalabs-steer 1.2 publishes, by path."""
    import json

    files = {}
    for layer in (3, 4):
        about = {"behavior": "calm", "layer_index": layer, "model_name": "m", "extraction_method": "caa"}
        files[f"layer_{layer}.json"] = json.dumps(about | {"metadata": {}, "vector_shape": [4]}).encode()
        torch.save(torch.full((4,), float(layer)), folder / "x.pt")
        files[f"layer_{layer}.pt"] = (folder / "x.pt").read_bytes()
    files["metadata.json"] = json.dumps({"behavior": "calm", "layers": [3, 4], "model_name": "m"}).encode()
    return files


@pytest.fixture
def collection(hub, tmp_path):
    files = {f"qwen3-8b/calm/{name}": content for name, content in layout_of_1_2(tmp_path).items()}
    hub.commit("rotalabs/steering-vectors", "main", files | {"README.md": b"", "metadata.json": b"{}"})
    return hub


def test_downloads_of_1_2(collection, tmp_path):
    folder = download_vectors("calm", "qwen3-8b", output_dir=tmp_path / "out")
    assert folder == tmp_path / "out" / "qwen3-8b" / "calm"
    assert SteeringVectorSet.load(folder)[4].vector.tolist() == [4.0] * 4
    asked = len(collection.requests)
    assert download_vectors("calm", "qwen3-8b", tmp_path / "out") == folder
    assert len(collection.requests) == asked
    download_vectors("calm", "qwen3-8b", tmp_path / "out", force=True)
    assert len(collection.requests) > asked
    assert list_available_vectors() == [
        {"model": "qwen3-8b", "behavior": "calm", "path": "qwen3-8b/calm", "layers": [3, 4]}
    ]


def test_downloads_go_to_the_folder_of_1_2(collection, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".cache" / "rotalabs_steer" / "vectors" / "qwen3-8b" / "calm"
    assert download_vectors("calm", "qwen3-8b") == folder


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_names_are_neither_asked_for_nor_written(collection, tmp_path, name):
    with pytest.raises(FileFormatError, match="not a safe file name"):
        download_vectors(name, "qwen3-8b", tmp_path / "out")
    with pytest.raises(FileFormatError, match="not a safe file name"):
        download_vectors("calm", name, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not [request for request in collection.requests if "/resolve/" in request]


def test_unsafe_names_in_a_repository_are_left_there(collection, tmp_path):
    evil = {f"qwen3-8b/calm/{name}": b"evil" for name in UNSAFE if name}
    evil |= {"qwen3-8b/calm/run.py": b"evil", "../up/x/metadata.json": b"{}", "C:\\x/nul/metadata.json": b"{}"}
    collection.commit("rotalabs/steering-vectors", "main", evil)
    folder = download_vectors("calm", "qwen3-8b", tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == [
        "layer_3.json", "layer_3.pt", "layer_4.json", "layer_4.pt", "metadata.json",
    ]  # fmt: skip
    assert [row["path"] for row in list_available_vectors()] == ["qwen3-8b/calm"]


def test_what_cannot_be_downloaded_is_said(collection, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no vectors of 'wild' for 'qwen3-8b'. list_avail"):
        download_vectors("wild", "qwen3-8b", tmp_path / "out")
    with pytest.raises(DownloadError, match="cannot be downloaded from nobody/none"):
        download_vectors("calm", "qwen3-8b", tmp_path / "out", repo_id="nobody/none")
    with pytest.raises(RuntimeError, match="The files of nobody/none cannot be listed"):
        list_available_vectors("nobody/none")
