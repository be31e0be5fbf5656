import pytest

from rotalabs_steer import MODEL_CONFIGS, get_model_config, infer_model_config
from rotalabs_steer.errors import ModelNameError
from tiny import tiny_gpt2, tiny_llama


def test_names_are_found_whole_or_by_their_last_part_in_any_case():
    assert get_model_config("Qwen/Qwen3-14B").num_layers == 40
    assert get_model_config("qwen3-14b") == MODEL_CONFIGS["Qwen/Qwen3-14B"]


@pytest.mark.parametrize(("name", "message"), [
    ("", "The model name is empty"),
    ("  ", "The model name is empty"),
    ("llama", r"No configuration for 'llama'; the nearest names are .*Llama-2-7b"),
    ("Qwen3-8", r"nearest names are Qwen/Qwen3-8B"),
    ("zzzzzz", r"No configuration for 'zzzzzz'\. A loaded model needs none"),
])  # fmt: skip
def test_an_unknown_name_is_an_error_with_the_nearest_ones(name, message):
    with pytest.raises(ModelNameError, match=message):
        get_model_config(name)


def test_every_recommendation_says_where_it_comes_from():
    for config in MODEL_CONFIGS.values():
        for behavior, layers in config.recommended_layers.items():
            assert config.get_provenance(behavior).split(":")[0] in ("published", "measured")
            assert all(0 <= layer < config.num_layers for layer in layers)


def test_without_a_recommendation_the_middle_is_advised():
    config = get_model_config("SmolLM2-1.7B-Instruct")
    assert config.get_recommended_layers("nothing known") == [10, 11, 12, 13]
    assert config.get_provenance("nothing known").startswith("default")


def test_the_loaded_model_beats_the_table(tmp_path):
    model = tiny_llama()
    model.config._name_or_path = str(tmp_path / "Meta-Llama-3-8B-Instruct")
    config = infer_model_config(model)
    assert (config.num_layers, config.hidden_size) == (4, 16)
    assert config.recommended_layers == {}


def test_templates_are_the_models_own_paths():
    config = infer_model_config(tiny_gpt2())
    assert config.layer_template == "transformer.h.{i}"
    assert (config.mlp_template, config.attn_template) == ("transformer.h.{i}.mlp", "transformer.h.{i}.attn")


@pytest.mark.parametrize("name", [None, 5])
def test_a_name_that_is_not_a_string_is_a_name_error(name):
    with pytest.raises(ModelNameError, match=f"The model name is {name}. Give a Hugging Face id"):
        get_model_config(name)
