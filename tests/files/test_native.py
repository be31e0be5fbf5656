import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.errors import FileFormatError


def vector(layer=3, value=1.0):
    return SteeringVector("calm", layer, torch.full((8,), value), "some/model", metadata={"note": "é", "n": 1})


def calm(value=1.0, layers=(1, 2)):
    return SteeringVectorSet("calm", [vector(layer, value) for layer in layers], {"chosen_layer": layers[0]})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["refusal_layer_15", "qwen2.5_layer_15", "v1.json.backup"])
@pytest.mark.parametrize("ending", ["", ".json", ".pt"])
def test_a_vector_survives_the_disk(tmp_path, name, ending):
    saved = vector()
    saved.save(tmp_path / "deep" / name)
    assert names(tmp_path / "deep") == [f"{name}.json", f"{name}.pt"]
    assert SteeringVector.load(str(tmp_path / "deep" / (name + ending))) == saved


def test_the_files_are_what_the_documentation_says(tmp_path):
    vector().save(tmp_path / "calm")
    document = json.loads((tmp_path / "calm.json").read_text("utf-8"))
    assert document["behavior"] == "calm"
    assert document["layer_index"] == 3
    assert document["model_name"] == "some/model"
    assert document["extraction_method"] == "caa"
    assert torch.equal(torch.load(tmp_path / "calm.pt", weights_only=True), torch.ones(8))


def test_a_set_survives_the_disk_and_replaces_an_older_one_whole(tmp_path):
    calm(1.0, layers=(1, 2, 5)).save(tmp_path / "set")
    (tmp_path / "set" / "README.md").write_text("mine")
    saved = calm(2.0)
    saved.save(tmp_path / "set")
    assert SteeringVectorSet.load(tmp_path / "set") == saved
    assert SteeringVector.load(tmp_path / "set" / "layer_2") == saved[2]
    assert names(tmp_path / "set") == [
        "README.md", "layer_1.json", "layer_1.pt", "layer_2.json", "layer_2.pt", "metadata.json",
    ]  # fmt: skip


def write_1_2(folder, values):
    """What rotalabs-steer 1.2 writes."""
    folder.mkdir()
    for layer, value in values.items():
        document = {"behavior": "calm", "layer_index": layer, "model_name": "m", "extraction_method": "caa"}
        document |= {"metadata": {"created_at": "then"}, "vector_shape": [4]}
        (folder / f"layer_{layer}.json").write_text(json.dumps(document))
        torch.save(torch.full((4,), value), folder / f"layer_{layer}.pt")
    (folder / "metadata.json").write_text(json.dumps({"behavior": "calm", "layers": list(values), "model_name": "m"}))


def test_a_set_of_1_2_is_read_and_can_be_saved_over(tmp_path):
    write_1_2(tmp_path / "old", {1: 1.0, 2: 2.0, 7: 3.0})
    old = SteeringVectorSet.load(tmp_path / "old")
    assert old.layers == [1, 2, 7]
    assert old[2].vector.tolist() == [2.0] * 4
    assert SteeringVector.load(tmp_path / "old" / "layer_1").metadata == {"created_at": "then"}
    new = calm(4.0)
    new.save(tmp_path / "old")
    assert SteeringVectorSet.load(tmp_path / "old") == new
    assert names(tmp_path / "old") == ["layer_1.json", "layer_1.pt", "layer_2.json", "layer_2.pt", "metadata.json"]


def test_metadata_that_is_no_json_writes_nothing(tmp_path):
    bad = SteeringVector("calm", 1, torch.ones(2), "m", metadata={"when": object()})
    with pytest.raises(FileFormatError, match=r"cannot be written as JSON.*Nothing was written"):
        bad.save(tmp_path / "calm")
    with pytest.raises(FileFormatError, match="cannot be written as JSON"):
        SteeringVectorSet("calm", [bad]).save(tmp_path / "set")
    assert names(tmp_path) == []


def edit(path, **changes):
    document = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps(document), "utf-8")


@pytest.mark.parametrize(("changes", "message"), [
    ({"behavior": 7}, "does not describe a steering vector: behavior is 7; it must be a string"),
    ({"layer_index": "3"}, "layer_index is '3'; it must be a 0-based decoder layer"),
    ({"layer_index": -1}, "layer_index is -1; it must be a 0-based decoder layer"),
    ({"model_name": None}, "model_name is None; it must be a string"),
    ({"metadata": []}, r"metadata is \[\]; it must be a dictionary"),
    ({"vector_shape": [9]}, r"says vector_shape \[9\], the tensor has another: \[8\]"),
    ({"schema_version": "3.0"}, "schema version '3.0'; this release reads up to 2. Upgrade"),
    ({"schema_version": {}}, "schema version"),
    ({"sha256": "0" * 64}, "changed or damaged after it was saved"),
    ({"sha256": "../../etc/passwd"}, "it must have 64 hexadecimal digits"),
])  # fmt: skip
def test_metadata_that_does_not_hold_is_refused(tmp_path, changes, message):
    vector().save(tmp_path / "calm")
    edit(tmp_path / "calm.json", **changes)
    with pytest.raises(FileFormatError, match=message):
        SteeringVector.load(tmp_path / "calm")


@pytest.mark.parametrize(("changes", "message"), [
    ({"layers": ["../../secret"]}, "a list of layer numbers"),
    ({"layers": None}, "a list of layer numbers"),
    ({"layers": [1]}, "does not describe the vectors it lists"),
    ({"vectors": {"1": 0, "2": 0}}, "has no SHA-256 for layer 1"),
    ({"behavior": None}, "needs a behavior"),
    ({"behavior": "wild"}, "layer_1 is the vector of 'calm'"),
])  # fmt: skip
def test_set_metadata_that_does_not_hold_is_refused(tmp_path, changes, message):
    calm().save(tmp_path / "set")
    edit(tmp_path / "set" / "metadata.json", **changes)
    with pytest.raises(FileFormatError, match=message):
        SteeringVectorSet.load(tmp_path / "set")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        SteeringVector.load(tmp_path / "nothing")
    vector().save(tmp_path / "calm")
    (tmp_path / "calm.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"calm\.pt is missing: copy it together"):
        SteeringVector.load(tmp_path / "calm")


WRITER = """
import sys, torch
from rotalabs_steer import SteeringVector, SteeringVectorSet
print("ready", flush=True)
for value in range(1, 10_000):
    vectors = [SteeringVector("calm", n, torch.full((8,), float(value)), "m") for n in (1, 2, 3)]
    SteeringVectorSet("calm", vectors).save(sys.argv[1])
    vectors[0].save(sys.argv[1] + "-one")
"""


def start_writer(folder):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"ready\n"
    return writer


def stop(writer):
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()


KILLED_WRITERS = """
import json, os, signal, sys, torch
from rotalabs_steer import SteeringVector, SteeringVectorSet

def vectors(value):
    return [SteeringVector("calm", n, torch.full((8,), value), "m") for n in (1, 2, 3)]

def save(value):
    SteeringVectorSet("calm", vectors(value)).save(sys.argv[1])
    vectors(value)[0].save(sys.argv[1] + "-one")

def read():
    values = {float(value) for one in SteeringVectorSet.load(sys.argv[1]) for value in one.vector}
    return sorted(values), sorted(set(SteeringVector.load(sys.argv[1] + "-one").vector.tolist()))

def die_at(step):
    left = [step]
    def hook(event, arguments):
        if event in ("open", "os.rename", "os.link", "os.remove", "os.mkdir"):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

save(0.0)
found = []
for step in range(10_000):
    save(0.0)
    child = os.fork()
    if child == 0:
        die_at(step)
        save(1.0)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    found.append(read())
print(json.dumps(found))
"""


@pytest.mark.skipif(os.name != "posix", reason="kills processes")
def test_a_writer_killed_at_any_step_leaves_the_old_set_or_the_new(tmp_path):
    folder = tmp_path / "set"
    found = json.loads(subprocess.check_output([sys.executable, "-c", KILLED_WRITERS, str(folder)]))
    assert len(found) > 10, "steps of a save at which it was killed"
    assert {len(values) for both in found for values in both} == {1}, "a mixture was read"
    sets, ones = ([values[0] for values in part] for part in zip(*found, strict=True))
    assert sets == sorted(sets)
    assert set(sets) == {0.0, 1.0}, "killed early the old set is there, killed late the new one"
    assert ones[0] == 0.0
    calm(5.0).save(folder)
    calm(5.0)[1].save(f"{folder}-one")
    assert not [name for name in names(folder) + names(tmp_path) if name.startswith(".")]


@pytest.mark.skipif(os.name != "posix", reason="writers are kept apart by flock")
def test_readers_beside_two_writers_always_see_one_whole_set(tmp_path):
    folder = tmp_path / "set"
    calm(0.0, layers=(1, 2, 3)).save(folder)
    calm(0.0)[1].save(f"{folder}-one")
    writers = [start_writer(folder) for _ in range(2)]
    try:
        for _ in range(150):
            assert len({float(value) for one in SteeringVectorSet.load(folder) for value in one.vector}) == 1
            assert len(set(SteeringVector.load(f"{folder}-one").vector.tolist())) == 1
    finally:
        for writer in writers:
            stop(writer)


def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path):
    vector().save(tmp_path / "calm")
    (tmp_path / "other").touch()
    modes = {(tmp_path / name).stat().st_mode for name in ("calm.json", "calm.pt", "other")}
    assert len(modes) == 1
    assert names(tmp_path) == ["calm.json", "calm.pt", "other"]


@pytest.mark.parametrize(
    ("files", "said"), [([], "a folder without a vector set"), (["unfinished-tuning.json"], "was stopped")]
)
def test_a_folder_without_a_set_says_what_it_is(tmp_path, files, said):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match=said):
        SteeringVectorSet.load(tmp_path)
