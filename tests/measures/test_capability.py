import pytest
import torch

from rotalabs_steer import ActivationInjector
from rotalabs_steer.datasets import ContrastPair
from rotalabs_steer.errors import DatasetError
from rotalabs_steer.evaluation import capability_check, capability_questions, wilson_interval
from tiny import count_hooks, make_vector


def test_the_questions_of_the_package_are_many_and_different():
    questions = list(capability_questions())
    assert len(questions) >= 60
    assert len({question.prompt for question in questions}) == len(questions)
    assert len({question.category for question in questions}) >= 8


def test_a_question_is_scored_from_where_its_answers_differ(llama, words):
    question = ContrastPair("An w20 w21 w22", "An w20 w23", prompt="w30 w31")
    (found,) = capability_check(llama, words, [question]).log_odds
    start = words("[INST] w30 w31 [/INST] An w20", add_special_tokens=True)["input_ids"]

    def log_prob(text):
        ids = words(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            log_probs = llama(torch.tensor([[*start, *ids]])).logits[0].log_softmax(-1)
        return sum(float(log_probs[len(start) - 1 + n, token]) for n, token in enumerate(ids)) / len(ids)

    assert found == pytest.approx(log_prob("w21 w22") - log_prob("w23"), abs=1e-5)


def test_steering_is_compared_on_the_same_questions(llama, words):
    questions = [ContrastPair(f"w{n}", f"w{n + 1}", prompt=f"w{n + 2}") for n in range(40, 60)]
    injector = ActivationInjector(llama, make_vector(llama, layer=3, scale=30.0))
    check = capability_check(llama, words, questions, injector)
    with injector:
        alone = capability_check(llama, words, questions)
    assert check.accuracy == alone.accuracy == wilson_interval(sum(odds > 0 for odds in alone.log_odds), 20)
    assert check.unsteered == capability_check(llama, words, questions).accuracy != check.accuracy
    assert check.change.difference.mean == pytest.approx(check.accuracy.mean - check.unsteered.mean)
    assert alone.change is None
    assert count_hooks(llama) == 0


def test_answers_that_are_the_same_are_an_error(llama, words):
    with pytest.raises(DatasetError, match="Both sides of question 1 have the same tokens"):
        capability_check(
            llama, words, [ContrastPair("w15", "w16", prompt="w17"), ContrastPair("w15", "w15", prompt="w17")]
        )


@pytest.mark.real_model
def test_the_real_model_knows_the_answers(smollm, tokenizer):
    assert capability_check(smollm, tokenizer).accuracy.low > 0.6
