"""The verbs of `rotalabs-steer vectors` as a user in a hurry runs them."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.cli.app import app
from rotalabs_steer.errors import OptionError
from rotalabs_steer.importing import import_vectors


def run(*arguments):
    return CliRunner().invoke(app, ["vectors", *(str(argument) for argument in arguments)], env={"COLUMNS": "200"})


def calm(size=8):
    about = {"token_position": "response"}
    vectors = [SteeringVector("calm", n, torch.ones(size), "org/model", metadata=about) for n in (1, 2)]
    return SteeringVectorSet("calm", vectors, {"chosen_layer": 2})


@pytest.mark.parametrize("name", ["native", "one.safetensors", "shared"])
def test_show_in_every_format(tmp_path, name):
    (calm().save_pretrained if name == "shared" else calm().save)(tmp_path / name)
    result = run("show", tmp_path / name)
    assert result.exit_code == 0, result.output
    assert "calm  org/model" in result.stdout
    assert "chosen_layer: 2" in result.stdout
    assert [line.split() for line in result.stdout.splitlines() if line.strip().startswith("*2 ")] == [
        ["*2", "8", "2.828", "float32", "caa", "response"]
    ]
    facts = json.loads(run("show", tmp_path / name, "--json").stdout)
    assert [row["layer"] for row in facts["vectors"]] == [1, 2]
    assert facts["metadata"] == {"chosen_layer": 2}
    assert facts["acting_layers"] == [2]
    assert "* the layer that acts: tuning chose it" in result.stdout


def test_show_marks_the_layers_that_act_together(tmp_path):
    calm().with_acting_layers([1, 2]).save(tmp_path / "calm")
    shown = run("show", tmp_path / "calm").stdout
    assert [line.split()[0] for line in shown.splitlines() if line.strip().startswith("*")] == ["*1", "*2", "*"]
    assert "* layers that act together" in shown
    assert json.loads(run("show", tmp_path / "calm", "--json").stdout)["acting_layers"] == [1, 2]
    SteeringVectorSet("calm").save(tmp_path / "empty")
    assert "The set is empty." in run("show", tmp_path / "empty").stdout
    assert json.loads(run("show", tmp_path / "empty", "--json").stdout)["acting_layers"] == []


def test_show_of_a_vector_saved_alone(tmp_path):
    calm()[1].save(tmp_path / "v1.5")
    for name in ("v1.5", "v1.5.json", "v1.5.pt"):
        assert json.loads(run("show", tmp_path / name, "--json").stdout)["vectors"][0]["layer"] == 1


def test_verify(tmp_path):
    calm().save(tmp_path / "good")
    calm().save(tmp_path / "bad")
    (tmp_path / "bad" / "layer_1.pt").write_bytes(b"broken")
    result = run("verify", tmp_path / "good")
    assert result.exit_code == 0
    assert f"sound   {tmp_path / 'good'}: calm, 2 vectors" in result.stdout
    result = run("verify", tmp_path / "good", tmp_path / "bad", "--json")
    assert result.exit_code == 1
    good, bad = json.loads(result.stdout)
    assert good["sound"]
    assert not bad["sound"]
    assert "SHA-256 differs" in bad["reason"]


def test_verify_against_a_model(tmp_path, llama):
    llama.save_pretrained(tmp_path / "model")
    calm(16).save(tmp_path / "fits.safetensors")
    calm(8).save(tmp_path / "not.safetensors")
    assert run("verify", tmp_path / "fits.safetensors", "--model", tmp_path / "model").exit_code == 0
    result = run("verify", tmp_path / "not.safetensors", "--model", tmp_path / "model")
    assert result.exit_code == 1
    assert "has 8 numbers;" in result.stdout
    assert "has 4 layers, 0 to 3, of 16" in result.stdout


def test_convert_there_and_back(tmp_path):
    calm().save(tmp_path / "a")
    for source, target, to in (("a", "b.safetensors", None), ("b.safetensors", "c", "pretrained"), ("c", "d", None)):
        result = run("convert", tmp_path / source, tmp_path / target, *(["--to", to] if to else []))
        assert result.exit_code == 0, result.output
        assert "2 vectors of 'calm' (layers 1, 2) written to" in result.stderr
    assert SteeringVectorSet.load(tmp_path / "d") == SteeringVectorSet.load(tmp_path / "a")
    assert (tmp_path / "c" / "README.md").exists()


def test_convert_from_another_tool(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 8), np.float32))
    result = run("convert", tmp_path / "x.npy", tmp_path / "y")
    assert result.exit_code == 1
    assert "pass layers=, 2 numbers" in result.stderr
    options = ["--layer", 5, "--layer", 6, "--layer-offset", -1, "--behavior", "calm", "--model-name", "org/model"]
    assert run("convert", tmp_path / "x.npy", tmp_path / "y", *options).exit_code == 0
    made = SteeringVectorSet.load(tmp_path / "y")
    assert (made.behavior, made.model_name, made.layers) == ("calm", "org/model", [4, 5])


def test_convert_to_gguf_and_back(tmp_path):
    calm().save(tmp_path / "a")
    result = run("convert", tmp_path / "a", tmp_path / "b.gguf")
    assert result.exit_code == 0, result.output
    assert f"1 vector of 'calm' (layer 2) written to {tmp_path / 'b.gguf'}" in result.stderr
    assert (
        "The other layers of [1, 2] do not act in this set, and llama.cpp would apply them all, so they are left out."
        in result.stderr
    )
    assert run("convert", tmp_path / "b.gguf", tmp_path / "c.safetensors").exit_code == 0
    back = SteeringVectorSet.load(tmp_path / "c.safetensors")
    assert (back.behavior, back.model_name, back.layers) == ("calm", "org/model", [2])
    calm().with_acting_layers([1, 2]).save(tmp_path / "spread")
    result = run("convert", tmp_path / "spread", tmp_path / "spread.gguf")
    assert "2 vectors of 'calm' (layers 1, 2) written to" in result.stderr
    assert "left out" not in result.stderr
    run("convert", tmp_path / "spread.gguf", tmp_path / "e")
    assert SteeringVectorSet.load(tmp_path / "e").acting_layers == [1, 2]
    assert torch.equal(back[2].vector, torch.ones(8))
    with pytest.raises(OptionError, match=r"a GGUF file is not a vector set but what llama.cpp applies"):
        calm().save(tmp_path / "d.gguf")


def test_convert_can_say_which_layers_act(tmp_path):
    calm().save(tmp_path / "a")
    options = ["--acting-layer", 1, "--acting-layer", 2]
    for target in ("b", "b.gguf"):
        assert run("convert", tmp_path / "a", tmp_path / target, *options).exit_code == 0
        assert import_vectors(tmp_path / target).acting_layers == [1, 2]
    result = run("convert", tmp_path / "a", tmp_path / "c", "--acting-layer", 7)
    assert result.exit_code == 1
    assert "The set of 'calm' has no vector at layer 7; it has [1, 2]" in " ".join(result.stderr.split())
    assert not (tmp_path / "c").exists()


def test_push_and_pull(tmp_path, hub):
    calm().save(tmp_path / "calm")
    result = run("push", tmp_path / "calm", "me/calm", "--token", "hf_x", "--private")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == f"{hub.url}/me/calm/commit/{hub.sha('me/calm', 'main')}"
    assert "2 vectors of 'calm'" in run("pull", "me/calm", tmp_path / "back.safetensors").stderr
    assert SteeringVectorSet.load(tmp_path / "back.safetensors") == SteeringVectorSet.load(tmp_path / "calm")
    assert json.loads(run("show", "me/calm", "--json").stdout)["behavior"] == "calm"


def test_every_verb_takes_a_repository_with_its_revision(tmp_path, hub):
    calm().push_to_hub("me/calm")
    first = hub.sha("me/calm", "main")
    calm(4).push_to_hub("me/calm")
    named = f"me/calm@{first}"
    assert json.loads(run("show", named, "--json").stdout)["vectors"][0]["dim"] == 8
    assert json.loads(run("show", "me/calm", "--revision", first, "--json").stdout)["vectors"][0]["dim"] == 8
    assert run("verify", named).exit_code == 0
    for verb in ("convert", "pull"):
        assert run(verb, named, tmp_path / verb).exit_code == 0
        assert SteeringVectorSet.load(tmp_path / verb)[1].dim == 8
    assert run("push", named, "me/old").exit_code == 0
    assert SteeringVectorSet.from_pretrained("me/old")[1].dim == 8


def test_push_takes_what_show_takes(tmp_path, hub):
    calm()[1].save(tmp_path / "alone")
    np.savez(tmp_path / "x.npz", layer_3=np.ones(8, np.float32))
    for name, layers in {"alone": [1], "alone.json": [1], "alone.pt": [1], "x.npz": [3]}.items():
        assert run("show", tmp_path / name).exit_code == 0
        result = run("push", tmp_path / name, "me/pushed")
        assert result.exit_code == 0, result.output
        assert SteeringVectorSet.from_pretrained("me/pushed").layers == layers


def test_a_private_repository_is_asked_for_with_the_token(hub):
    calm().push_to_hub("me/calm")
    hub.tokens.clear()
    assert run("show", "me/calm", "--token", "hf_x").exit_code == 0
    assert set(hub.tokens) == {"Bearer hf_x"}


@pytest.mark.parametrize(("arguments", "message"), [
    (["show", "nothing.safetensors"], "There are no steering vectors at nothing.safetensors"),
    (["show", "a/b/c"], "There are no steering vectors at a/b/c"),
    (["show", "clam"], "There are no steering vectors at clam"),
    (["push", "nothing", "me/x"], "There are no steering vectors at nothing"),
    (["push", "good", "me/x/y"], "'me/x/y' cannot be the id of a repository"),
    (["show", "me/x@"], "me/x@ has no revision behind the @"),
    (["show", "good", "--revision", "v1"], "good is a local path and has no revision 'v1'"),
    (["convert", "good", "out", "--to", "pickle"], "Unknown format 'pickle'. Use one of native, pretrained"),
    (["show", "text.txt"], "not a vector file that can be read safely"),
])  # fmt: skip
def test_mistakes_are_one_message_and_write_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    calm().save(tmp_path / "good")
    (tmp_path / "text.txt").write_text("hello")
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "text.txt"]
