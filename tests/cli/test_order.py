"""What is wrong with data, names and options is said before a model is loaded: the model here does not exist."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from rotalabs_steer import SteeringVector, SteeringVectorSet, __version__
from rotalabs_steer.cli.app import app
from rotalabs_steer.cli.layers import layers_of, name_layers
from rotalabs_steer.cli.named_vectors import parse_steer
from rotalabs_steer.cli.pairs import parse_columns, read_pairs_of
from rotalabs_steer.cli.tuning import _datasets
from rotalabs_steer.errors import DatasetError, OptionError
from rotalabs_steer.files.names import folded
from rotalabs_steer.steering.strengths_in_text import NamedVectors, parse_vectors

UNSAFE = ["../../etc/evil", "/etc/evil", "a/b", "..", "a\\b", "C:up", "NUL", "con.json", "dot.", " space", "~root",
          "x" * 300, "line\nbreak", "star*"]  # fmt: skip


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})


def pair_file(folder, behavior, count=12, name="pairs.json", **columns):
    fields = {"prompt": "prompt", "positive": "positive", "negative": "negative"} | columns
    rows = [{column: f"{field} {n}" for field, column in fields.items()} for n in range(count)]
    (folder / name).write_text(json.dumps({"behavior": behavior, "pairs": rows}), "utf-8")
    return folder / name


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a vector set `calm`, pairs of several kinds, a file and an empty folder."""
    monkeypatch.chdir(tmp_path)
    SteeringVectorSet("calm", [SteeringVector("calm", 1, torch.ones(8), "m")]).save("calm")
    pair_file(tmp_path, "calm")
    pair_file(tmp_path, "calm", 1, name="one.json")
    pair_file(tmp_path, "calm", name="renamed.json", positive="chosen", negative="rejected")
    (tmp_path / "broken.json").write_text('{"pairs": [', "utf-8")
    (tmp_path / "text.txt").write_text("hello", "utf-8")
    (tmp_path / "empty").mkdir()
    return tmp_path


NO_MODEL = "There is no folder ./none"


@pytest.mark.parametrize(("arguments", "message"), [
    (["extract", "./none", "one.json", "--output", "o"], "give at least two pairs"),
    (["extract", "./none", "broken.json", "--output", "o"], "broken.json is not valid JSON"),
    (["extract", "./none", "renamed.json", "--output", "o"], "--column positive=chosen"),
    (["extract", "./none", "empty", "--output", "o"], "empty is a folder; give one file of pairs"),
    (["extract", "./none", "pairs.json", "--output", "text.txt"], "text.txt is a file; a native set is a folder"),
    (["extract", "./none", "pairs.json", "--output", "o", "--method", "best"], "Unknown method 'best'"),
    (["extract", "./none", "pairs.json", "--output", "o", "--position", "end"], "Unknown token position 'end'"),
    (["extract", "./none", "pairs.json", "--output", "o", "--column", "positive"], "not of the form FIELD=COLUMN"),
    (["extract", "./none", "humor", "--output", "o", "--column", "positive=a"], "--column is for files; humor is"),
    (["tune", "./none", "--behavior", "one.json"], "Tuning needs at least 10 pairs"),
    (["tune", "./none", "--behavior", "pairs.json", "--output", "text.txt"], "text.txt is a file; each behaviour"),
    (["tune", "./none", "--behavior", "pairs.json", "--candidates", "0"], "candidates is 0; it must be an integer"),
    (["tune", "./none", "--behavior", "renamed.json"], "--column positive=chosen"),
    (["extract", "./none", "--output", "o"], "Name the pairs once"),
    (["extract", "./none", "humor", "-b", "calm", "-o", "o"], "Name the pairs once"),
    (["extract", "./none", "humor", "-o", "o", "-l", "0-99999999999"], "is neither a layer nor a range"),
    (["generate", "./none", "hi", "-s", "calm:"], "is neither a layer nor a range"),
    (["generate", "./none", "hi", "-s", "calm:7"], "has no vector at layer 7; it has [1]"),
    (["chat", "./none", "-s", "calm:7=2"], "has no vector at layer 7; it has [1]"),
    (["evaluate", "./none", "calm:7"], "has no vector at layer 7; it has [1]"),
    (["evaluate", "./none", "calm=1", "--strength", "1"], "VECTORS names a strength and --strength does, too"),
    (["evaluate", "./none", "nothing"], "There are no steering vectors at nothing"),
    (["evaluate", "./none", "calm", "--pairs", "broken.json"], "broken.json is not valid JSON"),
    (["evaluate", "./none", "calm", "--pairs", "pairs.json", "--strength", "0"], "cannot be compared with 0"),
    (["evaluate", "./none", "calm", "--pairs", "pairs.json", "--strength", "nan"], "Strength nan is not a finite"),
    (["bake", "./none", "nothing", "o"], "There are no steering vectors at nothing"),
    (["bake", "./none", "calm", "o", "--strength", "inf"], "Strength inf is not a finite number"),
    (["export", "calm", "empty"], "empty is a folder; give the name of the GGUF file"),
    (["generate", "./none", "hi", "--steer", "nothing"], "There are no steering vectors at nothing"),
    (["generate", "./none", "hi", "--steer", "calm=nan"], "is not of the form VECTORS=STRENGTH"),
    (["generate", "./none", "hi", "--steer", "calm=1", "--steer", "calm=2"], "--steer names calm twice"),
    (["generate", "./none", "hi", "--steer", "=2"], "is not of the form VECTORS=STRENGTH"),
    (["generate", "./none", "hi", "--steer", "calm", "--scope", "some"], "Unknown scope 'some'"),
    (["generate", "./none", "hi", "--steer", "calm", "--intervention", "mul"], "Unknown intervention 'mul'"),
    (["chat", "./none", "--steer", "nothing"], "There are no steering vectors at nothing"),
    (["chat", "./none", "--scope", "some"], "Unknown scope 'some'"),
    (["playground", "./none", "--vectors", "nothing"], "There are no steering vectors at nothing"),
    (["report", "calm", "--model", "./none"], "calm holds no tuning"),
    (["report", "calm", "--output", "empty"], "empty is a folder; give the name of the HTML file"),
    (["report", "calm", "--column", "positive=a"], "--column is for a file of pairs: give --pairs, too"),
    (["vectors", "verify", "nothing", "--model", "./none"], "There are no steering vectors at nothing"),
])  # fmt: skip
def test_a_mistake_is_said_before_the_model_is_loaded(place, arguments, message):
    before = sorted(place.rglob("*"))
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert message in " ".join(result.output.split())
    assert NO_MODEL not in result.output
    assert "Traceback" not in result.output
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("verb", [["tune"], ["evaluate", "calm"], ["generate", "hi"]])
def test_an_answer_has_at_least_one_token(place, verb):
    result = run(verb[0], "./none", *verb[1:], "-n", 0, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["message"].startswith("Invalid value for '--max-new-tokens'")


def test_help_is_shown_without_torch():
    """A shell asks for completions at each press of Tab."""
    program = "import sys, rotalabs_steer.cli.app; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set()"


@pytest.mark.parametrize("arguments", [
    ["extract", "./none", "renamed.json", "--output", "o"],
    ["tune", "./none", "--behavior", "renamed.json"],
    ["evaluate", "./none", "calm", "--pairs", "renamed.json"],
])  # fmt: skip
def test_verbs_take_the_columns_that_the_error_speaks_of(place, arguments):
    result = run(*arguments, "--column", "positive=chosen", "--column", "negative=rejected")
    assert NO_MODEL in result.output, "the pairs are read, and the model is looked for"


def test_columns_are_given_once():
    assert parse_columns(["positive=chosen", "negative=a=b"]) == {"positive": "chosen", "negative": "a=b"}
    with pytest.raises(OptionError, match="--column names the column of 'positive' twice"):
        parse_columns(["positive=a", "positive=b"])


@pytest.mark.parametrize("behavior", UNSAFE)
def test_a_behaviour_that_is_no_folder_name_is_not_made_one(tmp_path, behavior):
    with pytest.raises(OptionError, match=r"gets a folder of its own, but .* is not a safe file name"):
        _datasets([str(pair_file(tmp_path, behavior))], {})


@pytest.mark.parametrize("pair", [("Calm", "calm"), ("caf\u00e9", "cafe\u0301"), ("STRASSE", "stra\u00dfe")])
def test_behaviours_that_one_folder_would_hold_are_refused(tmp_path, pair):
    files = [str(pair_file(tmp_path, behavior, name=f"{n}.json")) for n, behavior in enumerate(pair)]
    assert folded(pair[0]) == folded(pair[1])
    with pytest.raises(OptionError, match=f"Two of the behaviours are called {pair[0]}, {pair[1]}; each needs"):
        _datasets(files, {})


@pytest.mark.parametrize("behavior", ["very calm", "höflich", "冷静", "v1.5"])
def test_ordinary_names_of_behaviours_are_folders(tmp_path, behavior):
    (dataset,) = _datasets([str(pair_file(tmp_path, behavior))], {})
    assert dataset.behavior == behavior


@pytest.mark.parametrize("behavior", [7, None, ["calm"], {"a": 1}])
def test_a_behaviour_that_is_no_text_is_a_fault_of_the_file(tmp_path, behavior):
    path = pair_file(tmp_path, behavior)
    with pytest.raises(DatasetError, match=r"'behavior' is .*, expected a string"):
        read_pairs_of(str(path))


def test_a_path_with_an_equals_sign_is_a_path(place):
    (place / "runs=3").mkdir()
    (place / "at:12").mkdir()
    assert parse_steer(["runs=3", "calm=0.5", "me/x@v1=-2"]) == [
        NamedVectors("runs=3"), NamedVectors("calm", None, 0.5), NamedVectors("me/x@v1", None, -2.0)
    ]  # fmt: skip
    assert parse_steer(["runs=3=0.5"]) == [NamedVectors("runs=3", None, 0.5)]
    assert parse_vectors("at:12=2") == NamedVectors("at:12", None, 2.0)
    assert parse_vectors("at:12:3") == NamedVectors("at:12", (3,))


def test_a_set_can_be_named_with_the_layers_that_act():
    assert parse_vectors("calm:14=0.8") == NamedVectors("calm", (14,), 0.8)
    assert parse_vectors("me/x@v1:8-10,12") == NamedVectors("me/x@v1", (8, 9, 10, 12))
    assert parse_vectors("C:/sets/calm=-1") == NamedVectors("C:/sets/calm", None, -1.0)
    assert layers_of(["3,10-12", "11"]) == [3, 10, 11, 12]
    assert [name_layers(layers) for layers in ([4], [1, 2], [1, 2, 3], [1, 2, 4])] == [
        "layer 4", "layers 1, 2", "layers 1-3", "layers 1, 2, 4"
    ]  # fmt: skip


def test_the_package_is_a_program():
    result = subprocess.run(
        [sys.executable, "-m", "rotalabs_steer", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == __version__
