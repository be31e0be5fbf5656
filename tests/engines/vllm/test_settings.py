from types import SimpleNamespace

import pytest
import torch

from engines.vllm.steered_sets import FINGERPRINT, save_sets
from rotalabs_steer.engines.vllm.settings import CONFIG_KEY, SteeringSettings, check_engine, steering_config
from rotalabs_steer.errors import OptionError


def engine(additional=None, **changes):
    """The parts of vLLM's configuration that steering looks at."""
    text = SimpleNamespace(model_type=FINGERPRINT["model_type"], vocab_size=FINGERPRINT["vocab_size"])
    model = SimpleNamespace(
        model="a/model", hf_text_config=text, dtype=torch.float32, is_encoder_decoder=False, runner_type="generate",
        enforce_eager=False, get_total_num_hidden_layers=lambda: 30, get_hidden_size=lambda: 8,
    )  # fmt: skip
    config = {
        "additional_config": additional or {}, "model_config": model, "kv_transfer_config": None,
        "scheduler_config": SimpleNamespace(max_num_seqs=7), "parallel_config": SimpleNamespace(use_ubatching=False),
        "compilation_config": SimpleNamespace(), "cache_config": SimpleNamespace(enable_prefix_caching=True),
    }  # fmt: skip
    return SimpleNamespace(**config | changes)


def test_an_engine_without_settings_does_not_steer():
    assert SteeringSettings.of(engine()) is None
    assert SteeringSettings.of(engine({"other": 1})) is None


def test_settings_reach_the_engine(tmp_path):
    save_sets(tmp_path, hidden=8)
    config = engine(steering_config(tmp_path, max_strength=2.0, layers=[15, 20]))
    settings = SteeringSettings.of(config)
    catalogue = settings.catalogue(config)
    assert (catalogue.layers, catalogue.max_strength) == ((15, 20), 2.0)
    assert catalogue.model.fingerprint == FINGERPRINT


def test_the_graph_depends_on_layers_and_rows_but_not_on_the_folder(tmp_path):
    for name in ("a", "b"):
        save_sets(tmp_path / name, hidden=8)
    keys = []
    for name, layers in (("a", None), ("b", None), ("b", [15, 20])):
        config = engine(steering_config(tmp_path / name, layers=layers))
        keys.append(SteeringSettings.of(config).graph_key(config))
    assert keys[0] == keys[1] == {"version": 1, "layers": [10, 12, 15, 20], "rows": 8}
    assert keys[2]["layers"] == [15, 20]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("vectors", "additional_config.'rotalabs_steer'. is 'vectors'; it takes vectors, max_strength"),
        ({"vector": "x"}, "it takes vectors, max_strength, layers, check_model, capture"),
        ({"vectors": "x", "max_strength": float("inf")}, "max_strength is inf; it must be a finite number above 0"),
        ({"vectors": "x", "max_strength": 0}, "max_strength is 0; it must be"),
        ({}, "Give either a folder of vectors to steer by, or capture=True to extract"),
        ({"vectors": "x", "capture": True}, "Give either a folder of vectors to steer by, or capture=True to extract"),
    ],
)
def test_settings_that_cannot_be_used(given, message):
    with pytest.raises(OptionError, match=message):
        SteeringSettings.of(engine({CONFIG_KEY: given}))


def test_what_moves_tokens_past_steering_is_refused():
    check_engine(engine(), capture=False)
    with pytest.raises(OptionError, match="does not go together with a KV connector"):
        check_engine(engine(kv_transfer_config=object()), capture=False)
    with pytest.raises(OptionError, match="dual batch overlap"):
        check_engine(engine(parallel_config=SimpleNamespace(use_ubatching=True)), capture=False)
    passes = SimpleNamespace(pass_config=SimpleNamespace(enable_sp=True))
    with pytest.raises(OptionError, match="the sequence parallelism pass"):
        check_engine(engine(compilation_config=passes), capture=False)


def test_reading_needs_an_eager_engine_without_prefix_caching():
    with pytest.raises(OptionError, match="capture needs an engine that is eager and without prefix caching"):
        check_engine(engine(), capture=True)
