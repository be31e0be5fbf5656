"""Models that a verb is told to work on."""

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from rotalabs_steer import SteeringVectorSet
from rotalabs_steer.cli.app import app
from rotalabs_steer.errors import ModelNameError
from rotalabs_steer.model.loading import resolve_model
from tiny import make_vector, tiny_llama


@pytest.fixture
def vectors(tmp_path):
    SteeringVectorSet("calm", [make_vector(tiny_llama(), behavior="calm")]).save(tmp_path / "calm")
    return str(tmp_path / "calm")


def asked(hub):
    """What was asked of a repository."""
    return [request for request in hub.requests if "/org/" in request]


def test_the_hub_is_asked_once_for_a_mistyped_model(hub, vectors, tmp_path):
    result = CliRunner().invoke(app, ["bake", "org/nothing", vectors, str(tmp_path / "out")])
    assert result.exit_code == 1
    assert " ".join(result.output.split()) == (
        "error: org/nothing is neither a folder nor a model that can be read from the Hugging Face Hub: there is no "
        "such repository, or none that your token may see."
    )
    assert asked(hub) == ["HEAD /org/nothing/resolve/main/config.json"]


def test_a_model_that_exists_may_be_loaded(hub):
    hub.create("org/adapter")  # without config.json: what it is, transformers finds out
    assert resolve_model("org/adapter") == "org/adapter"


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_folder_without_a_model_is_one_sentence(tmp_path, monkeypatch, processes):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    tune = ["tune", "./empty", "--behavior", "formality", "--behavior", "humor", "--processes", processes]
    result = CliRunner().invoke(app, tune)
    assert result.exit_code == 1
    assert " ".join(result.output.split()) == (
        "error: ./empty has no config.json, so it is not a model folder. Give the folder that save_pretrained wrote, "
        "or a Hugging Face id."
    )
    assert not (tmp_path / "tuned").exists()


def test_nobody_is_asked_again_where_nobody_answers(hub, monkeypatch, caplog):
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        monkeypatch.setattr(constants, name, getattr(constants, name).replace(hub.url, "http://127.0.0.1:9"))
    with pytest.raises(ModelNameError, match=r"org/nothing is neither a folder nor .* Hub: .*refused"):
        resolve_model("org/nothing")
    assert "Retrying" not in caplog.text


def test_ids_that_are_none_and_no_network_allowed(hub, monkeypatch):
    with pytest.raises(ModelNameError, match="it is not the id of a repository"):
        resolve_model("a/b/c")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNameError, match=r"Hub: .*offline"):
        resolve_model("org/nothing")
    assert asked(hub) == []
