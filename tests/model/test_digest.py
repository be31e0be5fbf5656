import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.model.digest import model_digest, tokenizer_digest
from tiny import tiny_gpt2, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # names that transformers is about to change


def change_one_weight(model):
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[5, 7] += 1e-3
    return model


def negate_a_row(model):
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[5].neg_()
    return model


def with_adapter(model, **options):
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False, **options))


def penalised(model):
    model.generation_config.repetition_penalty = 1.5
    return model


OTHERS = {
    "one weight": lambda: change_one_weight(tiny_llama()),
    "the signs of a row": lambda: negate_a_row(tiny_llama()),
    "dtype": lambda: tiny_llama().to(torch.bfloat16),
    "attention": lambda: tiny_llama(_attn_implementation="eager"),
    "an adapter": lambda: with_adapter(tiny_llama()),
    "the adapter's scale": lambda: with_adapter(tiny_llama(), lora_alpha=32),
    "a merged adapter": lambda: with_adapter(tiny_llama()).merge_and_unload(),
    "a rotary base": lambda: tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": 5000.0}),
    "architecture": tiny_gpt2,
    "a penalty in generation": lambda: penalised(tiny_llama()),
}


def test_every_change_of_a_model_gives_another_digest():
    digests = {name: model_digest(make()) for name, make in OTHERS.items()}
    assert model_digest(tiny_llama()) not in digests.values()
    assert len(set(digests.values())) == len(OTHERS), digests


def test_an_adapter_that_is_switched_off_gives_another_digest():
    model = with_adapter(tiny_llama())
    on = model_digest(model)
    with model.disable_adapter():
        assert model_digest(model) != on
    assert model_digest(model) == on


def test_the_same_model_gives_the_same_digest_wherever_it_is(tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config._name_or_path == str(tmp_path)
    assert model_digest(loaded) == model_digest(model)
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    assert model_digest(model) == model_digest(loaded)


def test_weights_that_accelerate_keeps_elsewhere_count(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    plain, changed = tiny_llama(), change_one_weight(tiny_llama())
    digests = []
    for number, model in enumerate((plain, changed)):
        offloaded = accelerate.disk_offload(model, tmp_path / str(number), execution_device="cpu")
        assert {weight.device.type for weight in offloaded.parameters()} == {"meta"}
        digests.append(model_digest(offloaded))
    assert digests[0] != digests[1]


@pytest.mark.real_model
def test_a_tokenizer_is_told_by_vocabulary_template_and_rules(small_model):
    words = AutoTokenizer.from_pretrained(small_model)
    before = tokenizer_digest(words)
    words(["ab", "c"], padding=True, truncation=True, max_length=1)
    assert tokenizer_digest(words) == before, "what a call asks for does not count"
    template = words.chat_template
    words.chat_template = template + " "
    assert tokenizer_digest(words) != before
    words.chat_template = template
    assert tokenizer_digest(words) == before
    words.add_tokens(["new"])
    assert tokenizer_digest(words) != before


def with_template(words, template):
    other = copy.deepcopy(words)
    other.chat_template = template
    return other


@pytest.mark.real_model
def test_a_tokenizer_with_options_is_told_by_what_it_wraps(small_model):
    words = AutoTokenizer.from_pretrained(small_model)
    options = "{% if loud %}!{% endif %}" + words.chat_template
    changed = copy.deepcopy(words)
    changed.add_tokens(["new"])
    others = [
        ChatTokenizer.of(words),
        ChatTokenizer.of(changed),
        ChatTokenizer.of(with_template(words, words.chat_template + " ")),
        ChatTokenizer.of(with_template(words, options)),
        ChatTokenizer.of(with_template(words, options), {"loud": True}),
        ChatTokenizer(with_template(words, None), processor_template=words.chat_template),
        ChatTokenizer(with_template(words, None), processor_template=options),
    ]
    assert len(set(map(tokenizer_digest, others))) == len(others)
    assert tokenizer_digest(ChatTokenizer.of(words)) == tokenizer_digest(words)
