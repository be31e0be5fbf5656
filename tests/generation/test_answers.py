import pytest
import torch

from rotalabs_steer.errors import ChatTemplateError, OptionError
from rotalabs_steer.evaluation import Sampling, answer_prompts, evaluate_refusal, generate_response, is_refusal


def test_a_response_is_the_new_text_only(scripted, words):
    model = scripted("An assistant w20 w21")
    assert generate_response(model, words, "w30 w31") == "An assistant w20 w21"
    prompt = words.decode(model.calls[0]["input_ids"][0])
    assert prompt.count("<s>") == 1
    assert model.calls[0]["max_new_tokens"] == 150


def test_a_system_prompt_reaches_the_template(scripted, words):
    model = scripted("Sure,")
    assert generate_response(model, words, "w30", 5, 0.0, "w99") == "Sure,"
    prompt = words.decode(model.calls[0]["input_ids"][0])
    assert prompt.index("w99") < prompt.index("w30")


def test_greedy_unless_a_temperature_is_given(scripted, words):
    model = scripted("Sure,")
    generate_response(model, words, "w30")
    generate_response(model, words, "w30", temperature=0.7)
    assert model.calls[0]["do_sample"] is False
    assert (model.calls[1]["do_sample"], model.calls[1]["temperature"]) == (True, 0.7)


def test_sampling_is_repeatable_and_leaves_the_generator_alone(llama, words):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (
        generate_response(llama, words, "w30 w31", 12, temperature=2.0, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_answers_come_in_batches_and_in_order(llama, words):
    prompts = ["w40 w41 w42", "w50", "w60 w61", "w70 w71 w72 w73", "w80"]
    answers = answer_prompts(llama, words, prompts, Sampling(max_new_tokens=6, batch_size=2))
    assert list(answers.texts) == [generate_response(llama, words, prompt, 6) for prompt in prompts]
    assert sum(answers.tokens) / answers.total_seconds == pytest.approx(answers.tokens_per_second)
    assert answers.latency_ms == pytest.approx(1000 * sum(answers.seconds) / 5)
    assert len(set(answers.seconds)) == 3
    assert sum(set(answers.seconds)) == pytest.approx(answers.total_seconds)
    assert max(answers.seconds) <= answers.total_seconds


def test_the_number_of_calls_is_that_of_batches(scripted, words):
    model = scripted("Sure,")
    answer_prompts(model, words, ["w30"] * 33, Sampling(batch_size=16))
    assert [len(call["input_ids"]) for call in model.calls] == [16, 16, 1]


def test_no_prompts_have_no_latency(llama, words):
    answers = answer_prompts(llama, words, [])
    assert (answers.texts, answers.latency_ms, answers.tokens_per_second) == ((), None, None)


def test_what_cannot_be_answered_is_an_error(llama, words):
    with pytest.raises(OptionError, match="prompts is one string; give a list of strings"):
        answer_prompts(llama, words, "w30")
    with pytest.raises(OptionError, match="temperature a number from 0 on, got 150, 1 and -1"):
        generate_response(llama, words, "w30", temperature=-1)
    words.chat_template = None
    with pytest.raises(ChatTemplateError, match="no chat template"):
        generate_response(llama, words, "w30")


@pytest.mark.real_model
def test_the_real_models_answer_is_that_of_transformers_alone(smollm, tokenizer):
    prompt = "Say: my assistant is kind"
    messages = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = smollm.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = tokenizer.decode(output, skip_special_tokens=True).strip()
    assert generate_response(smollm, tokenizer, prompt, 12) == expected
    assert expected


MISTRAL = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST] {% endfor %}"
THINKING = MISTRAL + "{% if enable_thinking is not defined %}<think> {% endif %}"


@pytest.mark.parametrize(
    "template", [MISTRAL, THINKING], ids=["the model opens its thoughts", "the template opens them"]
)
def test_what_follows_the_thoughts_is_judged(words, scripted, template):
    words.chat_template = template
    words.add_tokens(["<think>", "</think>"])
    opening = "<think> " if template is MISTRAL else ""
    judged = []

    def shows(text):
        judged.append(text)
        return is_refusal(text)

    def refused(model):
        return evaluate_refusal(model, words, ["w30"], ["w31"], shows, show_progress=False).counts.harmful_refused

    assert refused(scripted(opening + "Sorry, no. </think> Sure, here")) == 0
    assert refused(scripted(opening + "Sure, here </think> Sorry, no.")) == 1
    assert judged == ["Sure, here"] * 2 + ["Sorry, no."] * 2
    with pytest.raises(
        OptionError, match="2 of 2 answers end inside the model's thoughts, so there is nothing to judge"
    ):
        refused(scripted(opening + "Sorry, no."))


@pytest.mark.parametrize("seed", [1.5, -1, "1", None, True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(OptionError, match=r"seed is .*; it must be an integer from 0 on"):
        Sampling(seed=seed)
