import json

import pytest
import torch

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.engines.vllm.server import allowed_plugins, server_arguments
from rotalabs_steer.engines.vllm.settings import steering_config
from rotalabs_steer.errors import OptionError


def arguments(tmp_path, host="127.0.0.1", key=None, options=(), **steering):
    return server_arguments("a/model", tmp_path, host, 8000, key, options, steering)


def test_the_command_line_of_vllm(tmp_path):
    found = arguments(tmp_path, options=["--dtype", "float32"], max_strength=3.0, layers=[4])
    config = json.dumps(
        {"rotalabs_steer": {"vectors": str(tmp_path), "max_strength": 3.0, "layers": [4], "check_model": True}}
    )
    expected = ["a/model", "--host", "127.0.0.1", "--port", "8000", "--additional-config", config]
    assert found == [*expected, "--dtype", "float32"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_a_server_that_others_reach_needs_a_key(tmp_path, monkeypatch, host):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(OptionError, match=r"could be reached from other machines by anyone. Pass --api-key"):
        arguments(tmp_path, host)
    assert host in arguments(tmp_path, host, key="secret")
    assert "secret" not in arguments(tmp_path, host, key="secret")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_this_machine_alone_it_needs_none(tmp_path, host):
    assert host in arguments(tmp_path, host)


@pytest.mark.parametrize(
    "option", ["--host=0.0.0.0", "--host", "--additional-config={}", "--additional_config", "--api-key"]
)
def test_options_that_would_undo_ours(tmp_path, option):
    with pytest.raises(OptionError, match="is set by rotalabs-steer serve: use"):
        arguments(tmp_path, options=[option])


def test_plugins_that_vllm_loads():
    assert allowed_plugins("") == "rotalabs_steer"
    assert allowed_plugins("mine,rotalabs_steer") == "mine,rotalabs_steer"
    assert "rotalabs_steer" in allowed_plugins(None).split(",")


def test_an_engine_that_would_not_load_the_plugin(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    with pytest.raises(OptionError, match="VLLM_PLUGINS is 'other', so vLLM would not load rotalabs_steer"):
        steering_config(tmp_path)
    monkeypatch.setenv("VLLM_PLUGINS", "other,rotalabs_steer")
    assert steering_config(tmp_path, check_model=False)["rotalabs_steer"]["check_model"] is False


def test_vectors_of_a_repository_and_of_no_place(hub, tmp_path):
    calm = SteeringVectorSet("calm", [SteeringVector("calm", 1, torch.ones(8), "org/model")])
    calm.push_to_hub("me/calm")
    folder = steering_config("me/calm")["rotalabs_steer"]["vectors"]
    assert SteeringVectorSet.load(folder) == calm
    with pytest.raises(FileNotFoundError, match="There are no steering vectors at me/nothing"):
        steering_config("me/nothing")
    with pytest.raises(FileNotFoundError, match="There are no steering vectors at"):
        steering_config(tmp_path / "nowhere")
