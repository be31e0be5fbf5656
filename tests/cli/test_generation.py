import json
import unittest.mock

import pytest
from typer.testing import CliRunner

from made_up_tuning import tuned_steering
from rotalabs_steer import SteeringVectorSet
from rotalabs_steer.cli.app import app
from rotalabs_steer.cli.extraction import METHODS as METHODS_IN_HELP
from rotalabs_steer.cli.tuning import print_table
from rotalabs_steer.extraction.methods import METHODS

pytestmark = pytest.mark.real_model
SHORT = ["--max-new-tokens", 6]
ANYTHING = unittest.mock.ANY


def run(*arguments, **options):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


@pytest.fixture(scope="module")
def vectors(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors") / "humor"
    result = run("extract", small_model, "humor", "--output", folder, "--layers", "1,3-4")
    assert result.exit_code == 0, result.output
    assert "3 vectors of humor from 64 pairs" in result.output
    return folder


def test_extract_takes_the_training_pairs_and_the_layers_named(vectors):
    found = SteeringVectorSet.load(vectors)
    assert found.layers == [1, 3, 4]
    assert found[3].metadata["num_pairs"] == 64


def test_generate_shows_both_answers(small_model, vectors):
    result = run("generate", small_model, "Say hello.", "--steer", f"{vectors}=5000", "--compare", "--json", *SHORT)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["strengths"] == {"humor": 5000.0}
    assert found["vectors"] == [{"behavior": "humor", "layers": [3], "strength": 5000.0}]
    assert (found["model"], found["device"], found["dtype"]) == (str(small_model), ANYTHING, "float32")
    assert (found["scope"], found["seed"]) == ("all", 0)
    (answer,) = found["answers"]
    assert answer["prompt"] == "Say hello."
    assert answer["steered"] != answer["unsteered"]
    plain = run("generate", small_model, "-", *SHORT, input="Say hello.\n\n")
    assert plain.stdout.strip() == answer["unsteered"].strip()


def test_a_set_that_does_not_steer_is_said_to_be_one(small_model, vectors, tmp_path):
    found = SteeringVectorSet.load(vectors)
    SteeringVectorSet("humor", list(found), found.metadata | {"steers": False}).save(tmp_path / "humor")
    for verb, said in (("generate", ["Hi!"]), ("chat", [])):
        result = run(verb, small_model, *said, "--steer", tmp_path / "humor", *SHORT, input="")
        assert result.exit_code == 0, result.output
        assert result.stderr.count("Tuning found that the vectors of 'humor' do not steer") == 1
        assert "do not steer" not in run(verb, small_model, *said, "--steer", vectors, *SHORT, input="").stderr


def test_the_streamed_answer_is_the_one_that_json_shows(small_model, vectors):
    for more in ([], ["-t", 1.5, "--seed", 3], ["--system", "Be brief."]):
        arguments = ["generate", small_model, "Say hello.", "-s", f"{vectors}:4=2", "-n", 12, *more]
        (answer,) = json.loads(run(*arguments, "--json").stdout)["answers"]
        assert run(*arguments).stdout == f"{answer['steered']}\n"


def test_what_acts_is_said_first_and_quiet_leaves_it_out(small_model, vectors):
    arguments = ["generate", small_model, "Hi", "-s", f"{vectors}:4=-0.5", "--scope", "generated", *SHORT]
    result = run(*arguments)
    device = json.loads(run(*arguments, "--json").stdout)["device"]
    assert result.stderr == (
        f"{small_model} on {device}, float32; humor: layer 4, strength \N{MINUS SIGN}0.5, scope generated\n"
    )
    assert run(*arguments, "-q").stderr == ""
    assert run("generate", small_model, "Hi", *SHORT).stderr.endswith("float32; not steered\n")


@pytest.mark.parametrize("verb", [["generate", "./none", "hi"], ["chat", "./none"]])
def test_vectors_are_read_before_the_model(verb, vectors):
    """`./none` is no model, which is found out when it is loaded."""
    assert "There are no steering vectors at nowhere" in run(*verb, "--steer", "nowhere").output
    assert "Two of the vector sets are of 'humor'" in run(*verb, "--steer", vectors, "--steer", f"{vectors}/").output
    assert "There is no folder ./none" in run(*verb, "--steer", vectors).output


@pytest.mark.parametrize(("arguments", "message"), [
    (["generate", "MODEL", "hi", "--steer", "VECTORS=lots"], "is not of the form VECTORS=STRENGTH"),
    (["generate", "MODEL", "hi", "--compare"], "--compare needs something to compare with: name vectors with --steer"),
    (["generate", "MODEL", "hi", "--steer", "nowhere"], "There are no steering vectors at nowhere"),
    (["generate", "MODEL", "hi", "--steer", "VECTORS", "--scope", "some"], "Unknown scope 'some'"),
    (["generate", "./none", "hi"], "There is no folder ./none. Give a model folder or a Hugging Face id"),
    (["extract", "MODEL", "clam", "--output", "out"], "There is no file clam, and no built-in behaviour of that name"),
    (["extract", "MODEL", "humor", "--output", "out", "--layers", "9-3"], "'9-3' is neither a layer nor a range"),
    (["tune", "MODEL", "--behavior", "humor", "--behavior", "humor"], "Two of the behaviours are called humor; each"),
    (["models", "no-such"], "No configuration for 'no-such'"),
])  # fmt: skip
def test_a_mistake_is_one_sentence(small_model, vectors, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": str(small_model), "VECTORS": str(vectors), "VECTORS=lots": f"{vectors}=lots"}
    result = run(*(places.get(argument, argument) for argument in arguments))
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "kind", "code"), [
    (["generate", "./none", "hi"], "ModelNameError", 1),
    (["generate"], "MissingParameter", 2),
    (["generate", "./none", "hi", "--no-such-option"], "NoSuchOption", 2),
    (["vectors", "show", "nowhere"], "FileNotFoundError", 1),
])  # fmt: skip
def test_an_error_is_json_where_json_is_asked_for(arguments, kind, code):
    result = run(*arguments, "--json")
    assert result.exit_code == code
    assert result.stderr == ""
    error = json.loads(result.stdout)["error"]
    assert (error["kind"], error["exit_code"]) == (kind, code)
    assert error["message"] in " ".join(run(*arguments).output.replace("│", " ").split()) or code == 2


def test_a_prompt_that_reads_as_an_option_is_a_prompt():
    result = run("generate", "./none", "--", "--json")
    assert result.stdout == ""
    assert "There is no folder ./none" in result.stderr


def test_help_lists_the_methods_of_extraction():
    named = METHODS_IN_HELP.replace(" or ", ", ").replace(",,", ",").split(", ")
    assert sorted(named) == sorted(METHODS)


def test_models_are_listed_with_where_their_layers_come_from():
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in json.dumps([one["name"] for one in json.loads(
        run("models", "--json").stdout)])  # fmt: skip
    assert "arXiv:2406.11717" in run("models", "Llama-2-7b-chat-hf").output.replace("\n", "")


def test_tune_prints_and_saves_what_it_found(small_model, tmp_path):
    quick = ["--finalists", 1, "--prompts", 2, "--max-new-tokens", 4, "--budget", 0.002]
    result = run("tune", small_model, "--behavior", "humor", "--output", tmp_path, "--json", *quick)
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    assert found["behavior"] == "humor"
    assert SteeringVectorSet.load(found["folder"]).chosen_layer == found["layer"]
    assert found["effect"]["low"] <= found["effect"]["mean"] <= found["effect"]["high"]
    assert (found["answers_change"]["low"], found["answers_change"]["high"]) == (None, None), "two answers are too few"
    assert found["steers"] is False


def test_the_table_of_many_behaviours_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_table([tuned_steering(), tuned_steering(slope=-1.0), tuned_steering(answered=2)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80
    assert [line.split()[-1] for line in lines[1:3]] == ["yes", "no"]
    assert lines[3].endswith("(no interval)   cannot say")
    assert lines[0].split() == ["behaviour", "layer", "log-odds", "a", "token", "answers", "steers"]
