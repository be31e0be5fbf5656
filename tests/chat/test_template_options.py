"""Options of the chat template reach every place where prompts are rendered."""

import dataclasses

import pytest
import torch

from chat_templates import HYBRID, LLAMA, OPENS, PARTS, Processor, byte_tokenizer
from rotalabs_steer.datasets import ChatTokenizer, ContrastPair
from rotalabs_steer.errors import ChatTemplateError, OptionError
from rotalabs_steer.evaluation import (
    Sampling,
    answer_prompts,
    capability_check,
    detection_auroc,
    evaluate_refusal,
    evaluate_steering_strength,
    evaluate_vector,
    generate_response,
    project,
    strength_sweep,
    tune,
)
from rotalabs_steer.extraction import extract_caa_vector, extract_caa_vectors, extract_vectors, read_statistics
from rotalabs_steer.reporting.extra_measurements import gather_evidence
from rotalabs_steer.steering.conditions import fit_condition
from rotalabs_steer.tuning.first_order import score_layers
from rotalabs_steer.tuning.result import TunedSteering
from tiny import make_vector, tiny_llama

PAIRS = [ContrastPair(f"yes {n}", f"no {n}", prompt=f"question {n}") for n in range(5)]
OFF = {"enable_thinking": False}
FEW = Sampling(max_new_tokens=2)
CONVERSATION = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
]


@pytest.fixture(scope="module")
def model():
    return tiny_llama(vocab_size=272, max_position_embeddings=1024)


@pytest.fixture
def reasoner():
    return byte_tokenizer(OPENS)


def shows(text):
    return True


def uses(model):
    """What renders prompts with responses, by name."""
    vector = make_vector(model)
    quiet = {"show_progress": False}
    return {
        "read_statistics": lambda t, **o: read_statistics(model, t, PAIRS, [1], **quiet, **o),
        "extract_vectors": lambda t, **o: extract_vectors(model, t, PAIRS, [1], **quiet, **o),
        "extract_caa_vectors": lambda t, **o: extract_caa_vectors(model, t, PAIRS, [1], **quiet, **o),
        "extract_caa_vector": lambda t, **o: extract_caa_vector(model, t, PAIRS, 1, **quiet, **o),
        "score_layers": lambda t, **o: score_layers(model, t, PAIRS, [1], **quiet, **o),
        "capability_check": lambda t, **o: capability_check(model, t, PAIRS, **o),
        "detection_auroc": lambda t, **o: detection_auroc(model, t, PAIRS, vector, **o),
        "evaluate_vector": lambda t, **o: evaluate_vector(model, t, vector, PAIRS, [1.0], **o),
    }


def questions(model):
    """What renders prompts alone, by name."""
    vector = make_vector(model)
    options = {"show_progress": False, "sampling": FEW}
    return {
        "generate_response": lambda t, **o: generate_response(model, t, "q", 2, **o),
        "answer_prompts": lambda t, **o: answer_prompts(model, t, ["q"], FEW, **o).texts,
        "fit_condition": lambda t, **o: fit_condition(model, t, ["q"], ["r"], [1], **o).condition.vector,
        "project": lambda t, **o: project(model, t, ["a"], vector, prompts=["q"], **o)[0].scores,
        "evaluate_refusal": lambda t, **o: evaluate_refusal(model, t, ["q"], ["r"], shows, **options, **o).results[0],
        "evaluate_steering_strength": lambda t, **o: (
            evaluate_steering_strength(model, t, ["q"], vector, shows, [1.0], **options, **o)[0].text
        ),
        "strength_sweep": lambda t, **o: strength_sweep(model, t, vector, ["q"], shows, [1.0], **options, **o)[0][
            "behavior_rate"
        ],
    }


@pytest.mark.parametrize("name", list(uses(tiny_llama())))
def test_responses_are_not_read_as_thoughts(model, reasoner, name):
    use = uses(model)[name]
    with pytest.raises(ChatTemplateError, match="inside a block of thoughts"):
        use(reasoner)
    use(reasoner, template_options=OFF)
    use(ChatTokenizer.of(reasoner, OFF))
    use(Processor(byte_tokenizer(), LLAMA))


@pytest.mark.parametrize("name", list(questions(tiny_llama())))
def test_prompts_take_options_processors_and_tokenizers_with_options(model, reasoner, name):
    ask = questions(model)[name]
    given, carried = ask(reasoner, template_options=OFF), ask(ChatTokenizer.of(reasoner, OFF))
    assert torch.equal(given, carried) if isinstance(given, torch.Tensor) else given == carried
    ask(Processor(byte_tokenizer(), PARTS))
    with pytest.raises(OptionError, match="never mentions the option 'enable_thinkin'"):
        ask(reasoner, template_options={"enable_thinkin": False})


def test_vectors_record_the_options(model, reasoner):
    vectors = extract_vectors(model, reasoner, PAIRS, [1], template_options=OFF, show_progress=False)
    assert vectors[1].metadata["template_options"] == OFF
    plain = extract_vectors(model, byte_tokenizer(LLAMA), PAIRS, [1], show_progress=False)
    assert "template_options" not in plain[1].metadata


def test_options_change_what_is_read(model):
    hybrid = byte_tokenizer(HYBRID)
    off, default = (
        extract_vectors(model, hybrid, PAIRS, [1], template_options=options, show_progress=False)[1].vector
        for options in (OFF, None)
    )
    assert not torch.allclose(off, default)


def test_conversations_are_asked(model):
    tokenizer = byte_tokenizer(LLAMA)
    answers = answer_prompts(model, tokenizer, [CONVERSATION, "r"], Sampling(max_new_tokens=8))
    rendered = tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    expected = model.generate(rendered, attention_mask=torch.ones_like(rendered), max_new_tokens=8, do_sample=False)
    assert answers.texts[0] == tokenizer.decode(expected[0, rendered.shape[1] :], skip_special_tokens=True).strip()
    assert generate_response(model, tokenizer, CONVERSATION, 8) == answers.texts[0]
    metrics = evaluate_refusal(model, tokenizer, [CONVERSATION], ["r"], shows, show_progress=False, sampling=FEW)
    assert metrics.results[0].prompt == "user: q\nassistant: a\nuser: r"
    with pytest.raises(ValueError, match="The prompt is of type dict"):
        answer_prompts(model, tokenizer, CONVERSATION)


def test_tuning_takes_options_and_conversations_and_keeps_both(model, reasoner, tmp_path):
    pairs = [dataclasses.replace(PAIRS[n % 5], positive=f"yes {n}", negative=f"no {n}") for n in range(15)]
    pairs = [dataclasses.replace(pair, prompt=[*CONVERSATION, *CONVERSATION[:1]]) for pair in pairs]
    pairs = [dataclasses.replace(pair, system=f"Rule {n}.") for n, pair in enumerate(pairs)]
    settings = {"candidates": 1, "validation_pairs": 2, "prompts": 2, "max_new_tokens": 3, "show_progress": False}
    settings["budget"] = 1e-3  # what a random model can cost is little
    with pytest.raises(ChatTemplateError, match="inside a block of thoughts"):
        tune(model, reasoner, pairs, **settings)
    tuned = tune(model, reasoner, pairs, tmp_path / "calm", template_options=OFF, **settings)
    assert tuned.vectors.get_best().metadata["template_options"] == OFF
    assert tuned.provenance["options"]["template_options"] == OFF
    assert tuned.answers.prompts[0][0] == {"role": "system", "content": "Rule 4."}
    loaded = TunedSteering.load(tmp_path / "calm")
    assert loaded.answers.prompts == tuned.answers.prompts
    again = tune(model, ChatTokenizer.of(reasoner, OFF), pairs, tmp_path / "calm", **settings)
    assert again.answers.texts == tuned.answers.texts
    with pytest.raises(OptionError, match="other options"):
        tune(model, ChatTokenizer.of(reasoner, {"enable_thinking": None}), pairs, tmp_path / "calm", **settings)
    assert gather_evidence(model, reasoner, loaded).capability.accuracy.mean >= 0
