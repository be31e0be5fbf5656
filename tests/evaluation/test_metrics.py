import dataclasses
import json
import subprocess
import sys

import pytest

from rotalabs_steer import ActivationInjector, evaluation
from rotalabs_steer.errors import OptionError
from rotalabs_steer.evaluation import (
    BehaviorMetrics,
    EvaluationResult,
    RefusalCounts,
    RefusalMetrics,
    Sampling,
    evaluate_refusal,
    is_refusal,
    measure_texts,
)
from tiny import count_hooks


def test_every_public_name_can_be_imported():
    for name in evaluation.__all__:
        assert getattr(evaluation, name) is not None


def test_importing_the_judge_imports_no_client():
    code = "import sys, rotalabs_steer.evaluation; print({'openai', 'anthropic'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_the_fields_are_those_of_1_2():
    metrics = BehaviorMetrics("formality", 1.0, 0.75, 0.25)
    assert metrics.improvement == 0.5
    assert metrics.to_dict()["improvement"] == 0.5
    refusal = RefusalMetrics("refusal", 1.0, 0.9, 0.4, 0.9, 0.1, 0.8, 0.7)
    assert (refusal.refusal_rate_harmful, refusal.refusal_rate_benign) == (0.9, 0.1)
    assert (refusal.coherence_score, refusal.helpfulness_on_benign) == (0.8, 0.7)
    result = EvaluationResult("p", "r", True, False, 1.0)
    assert (result.coherence, result.metadata) == (None, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.strength = 2.0


def test_precision_is_of_counts_not_of_rates():
    # 9 of 10 harmful and 99 of 990 benign prompts refused: most refusals are wrong, though the rates are 0.9 and 0.1.
    counts = RefusalCounts(9, 1, 99, 891)
    metrics = RefusalMetrics("refusal", 1.0, 0.9, None, 0.9, 0.1, counts=counts)
    assert metrics.precision == pytest.approx(9 / 108)
    assert metrics.recall == 0.9
    assert metrics.f1_score == pytest.approx(2 * (9 / 108) * 0.9 / (9 / 108 + 0.9))


def test_what_was_not_measured_is_none():
    assert BehaviorMetrics("b", 1.0, 0.5, None).improvement is None
    unknown = RefusalMetrics("refusal", 1.0, 0.9, None, 0.9, 0.1)
    assert (unknown.precision, unknown.f1_score, unknown.coherence_score, unknown.kl_cost) == (None,) * 4
    assert unknown.recall == 0.9
    nothing_refused = RefusalCounts(0, 5, 0, 5)
    assert (nothing_refused.precision, nothing_refused.recall, nothing_refused.f1_score) == (None, 0.0, 0.0)
    assert RefusalCounts(0, 0, 0, 5).f1_score is None


def test_texts_are_measured_by_repetition():
    measures = measure_texts(["one two three four one two three four", "a b"])
    assert measures.words == 5
    assert measures.empty == 0
    assert measures.distinct_1 == pytest.approx(6 / 10)
    assert measures.distinct_2 == pytest.approx(5 / 8)
    assert measures.repetition == pytest.approx(1 / 5)
    assert measure_texts([]) is None
    assert measure_texts(["too short"]).repetition is None
    short = measure_texts(["", "a"])
    assert (short.empty, short.distinct_2, short.repetition) == (0.5, None, None)


def test_a_loop_repeats_more_than_prose():
    prose = "The harbour was quiet in the morning, and the boats lay still until the first of the crews came down."
    loop = "the the harbour the the harbour the the harbour the the harbour the the harbour"
    assert measure_texts([loop]).repetition > 0.7 > measure_texts([prose]).repetition == 0


@pytest.mark.parametrize("given", ["vector", "injector"])
def test_refusal_is_measured_against_the_unsteered_model(llama, words, naming, given):
    vector, named = naming(llama)
    steering = {
        "vector": {"steering_vector": vector, "strength": 50.0},
        "injector": {"injector": ActivationInjector(llama, [vector], 50.0)},
    }[given]
    metrics = evaluate_refusal(
        llama,
        words,
        ["w30 w31", "w32", "w33"],
        ["w40", "w41 w42"],
        named,
        show_progress=False,
        helpfulness_fn=lambda prompt, response: float(prompt == "w40"),
        sampling=Sampling(max_new_tokens=4),
        **steering,
    )
    assert metrics.counts == RefusalCounts(3, 0, 2, 0)
    assert (metrics.baseline_rate, metrics.baseline_rate_benign) == (0.0, 0.0)
    assert (metrics.target_rate, metrics.improvement, metrics.over_refusal_rate) == (1.0, 1.0, 1.0)
    assert metrics.precision == 3 / 5
    assert metrics.change.p_value == 0.25
    assert metrics.benign_change.pairs == 2
    assert metrics.harmful_interval.low < 0.5
    assert metrics.coherence_score is None
    assert metrics.helpfulness_on_benign == 0.5
    assert metrics.kl_cost > 0
    assert metrics.strength == 50.0
    assert [result.is_harmful_prompt for result in metrics.results] == [True] * 3 + [False] * 2
    assert metrics.tokens_per_second > 0
    assert metrics.seed == 0
    json.dumps(metrics.to_dict(), allow_nan=False)
    assert count_hooks(llama) == 0


def test_refusal_of_an_unsteered_model_has_no_baseline(scripted, words):
    metrics = evaluate_refusal(scripted("Sorry, no."), words, ["w30"], [], is_refusal, show_progress=False)
    assert (metrics.target_rate, metrics.baseline_rate, metrics.improvement) == (1.0, None, None)
    assert (metrics.strength, metrics.kl_cost, metrics.over_refusal_rate) == (0.0, None, None)


def test_what_cannot_be_evaluated_is_an_error(llama, words, naming):
    with pytest.raises(OptionError, match="Nothing to measure: 0 prompts, 1 strengths"):
        evaluate_refusal(llama, words, [], [], is_refusal)
    vector = naming(llama)[0]
    with pytest.raises(OptionError, match="either steering_vector or injector"):
        evaluate_refusal(
            llama, words, ["w30"], [], is_refusal, vector, ActivationInjector(llama, [vector]), show_progress=False
        )
    with pytest.raises(OptionError, match=r"acts at the strength that it is set to, so \[1.0, 2.0\] are too many"):
        evaluate_refusal(llama, words, ["w30"], [], is_refusal, vector, strength=[1.0, 2.0], show_progress=False)
    with pytest.raises(OptionError, match=r"returned None for .*; it must return True or False"):
        evaluate_refusal(llama, words, ["w30"], [], lambda text: None, show_progress=False)
