"""What cannot be met is refused with a reason, and the engine goes on."""

import pytest
from vllm import LLM, SamplingParams

from engines.vllm.live.conftest import generate, greedy
from engines.vllm.steered_sets import random_set
from rotalabs_steer.engines.vllm import steering_config
from rotalabs_steer.errors import OptionError, VectorError


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"wram": 1.0}, "Unknown behaviour 'wram'. This server has: calm, cool, spread, warm"),
        ({"warm": float("nan")}, "it must be a number from -10 to 10"),
        ({"warm": 1e30}, "it must be a number from -10 to 10"),
        ({"behaviors": {"warm": 1.0}, "layers": [3]}, "has no vector at layer 3"),
        ({"behaviors": {"warm": 1.0}, "scope": "some"}, "has scope 'some'"),
        ({"behaviors": {"warm": 1.0}, "path": "/etc/passwd"}, "steering has no 'path'"),
    ],
)
def test_a_request_that_cannot_be_met(llm, prompts, value, message):
    before = generate(llm, prompts[:1], greedy(tokens=4))
    with pytest.raises(ValueError, match=message):
        generate(llm, prompts[:1], greedy(value))
    assert generate(llm, prompts[:1], greedy(tokens=4)) == before


def test_the_engines_own_key_cannot_be_sent(llm, prompts):
    params = SamplingParams(extra_args={"rotalabs_steer": {"additions": [], "scope": "all"}})
    with pytest.raises(OptionError, match="which the engine sets itself; use 'steering'"):
        generate(llm, prompts[:1], params)


def test_the_callers_parameters_stay_as_they_were(llm, prompts):
    params = greedy({"warm": 1.0}, tokens=2)
    generate(llm, prompts[:1], params)
    assert params.extra_args == {"steering": {"warm": 1.0}}


def test_vectors_that_do_not_fit_are_refused_before_anything_is_loaded(options, tmp_path):
    random_set("wide", (3,), 0, hidden=64).save(tmp_path / "wide")
    with pytest.raises(VectorError, match=r"has 64 numbers; .* has hidden size 576"):
        LLM(**options | {"additional_config": steering_config(tmp_path)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rotalabs_steer": {"vektors": "x"}}, "it takes vectors, max_strength, layers, check_model, capture"),
        ({"rotalabs_steer": {}}, "Give either a folder of vectors to steer by"),
        ({"rotalabs_steer": {"vectors": "/nowhere"}}, "/nowhere has no vector sets"),
    ],
)
def test_settings_that_cannot_be_used(options, config, message):
    with pytest.raises((OptionError, FileNotFoundError), match=message):
        LLM(**options | {"additional_config": config})
