import pytest

from rotalabs_steer.errors import OptionError
from rotalabs_steer.evaluation import (
    Sampling,
    TradeoffResult,
    compare_with_baseline,
    evaluate_steering_strength,
    strength_sweep,
    wilson_interval,
)
from tiny import count_hooks

PROMPTS = ["w30 w31", "w32", "w33"]


def test_strengths_are_compared_with_the_unsteered_model(llama, words, naming):
    vector, named = naming(llama)
    weak, strong = evaluate_steering_strength(
        llama, words, PROMPTS, vector, named, [0.001, 50.0], False, sampling=Sampling(max_new_tokens=4)
    )
    assert (weak.behavior, weak.strength, weak.improvement) == ("naming", 0.001, 0.0)
    assert (strong.target_rate, strong.baseline_rate, strong.improvement) == (1.0, 0.0, 1.0)
    assert strong.target_interval == wilson_interval(3, 3)
    assert (strong.change.p_value, strong.change.pairs, strong.num_samples) == (0.25, 3, 3)
    assert strong.kl_cost > weak.kl_cost >= 0
    assert strong.text.distinct_1 < weak.text.distinct_1
    assert strong.seed == 0
    assert count_hooks(llama) == 0


def test_the_default_strengths_are_those_of_1_2(llama, words, naming):
    vector, named = naming(llama)
    sampling = Sampling(max_new_tokens=1)
    measured = evaluate_steering_strength(
        llama, words, PROMPTS[:1], vector, named, show_progress=False, sampling=sampling
    )
    assert [metrics.strength for metrics in measured] == [0.0, 0.5, 1.0, 1.5, 2.0]
    swept = strength_sweep(llama, words, vector, PROMPTS[:1], named, show_progress=False, sampling=sampling)
    assert [row["strength"] for row in swept] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0]


def test_a_sweep_is_rows_of_plain_values(llama, words, naming):
    vector, named = naming(llama)
    zero, strong = strength_sweep(
        llama, words, vector, PROMPTS, named, [0.0, 50.0], False, sampling=Sampling(max_new_tokens=4, seed=2)
    )
    assert (zero["behavior_rate"], zero["change"], zero["p_value"], zero["kl_cost"]) == (0.0, 0.0, 1.0, 0.0)
    assert (strong["behavior_rate"], strong["behavior_high"], strong["change"]) == (1.0, 1.0, 1.0)
    assert (strong["p_value"], strong["num_samples"], strong["seed"]) == (0.25, 3, 2)
    assert strong["avg_latency_ms"] > 0 < strong["tokens_per_second"]


def test_the_model_is_restored_if_the_caller_raises(llama, words, naming):
    vector, _ = naming(llama)
    with pytest.raises(ZeroDivisionError):
        strength_sweep(llama, words, vector, PROMPTS, lambda text: 1 / 0, [1.0], False, sampling=Sampling(2))
    assert count_hooks(llama) == 0


def steered(outcomes):
    rate = wilson_interval(sum(outcomes), len(outcomes))
    return TradeoffResult(
        1.0, rate.mean, None, None, None, 1.0, 4, target_interval=rate, target_outcomes=tuple(outcomes)
    )


def test_rates_are_compared_with_a_known_baseline():
    compared = compare_with_baseline([steered([True, True, True, False])], 0.5, 0.25)
    assert compared["baseline"] == {"target_rate": 0.5, "false_positive_rate": 0.25}
    (row,) = compared["by_strength"]
    assert (row["strength"], row["target_rate"], row["improvement_over_baseline"]) == (1.0, 0.75, 0.25)
    assert row["improvement_low"] == pytest.approx(wilson_interval(3, 4).low - 0.5)
    assert row["improvement_high"] == pytest.approx(wilson_interval(3, 4).high - 0.5)
    assert (row["false_positive_rate"], row["fp_increase"], row["paired"], row["fp_paired"]) == (None,) * 4


def test_outcomes_by_prompt_allow_a_paired_test():
    outcomes = [False, False, True, False]
    compared = compare_with_baseline([steered([True, True, True, False])], 0.25, baseline_outcomes=outcomes)
    paired = compared["by_strength"][0]["paired"]
    assert (paired["difference"]["mean"], paired["p_value"], paired["pairs"], paired["seed"]) == (0.5, 0.5, 4, 0)


def test_a_result_of_1_2_can_be_compared():
    old = TradeoffResult(1.0, 0.9, 0.2, 0.8, 0.7, 10.0, 20)
    (row,) = compare_with_baseline([old], 0.4, 0.1)["by_strength"]
    assert row["improvement_over_baseline"] == pytest.approx(0.5)
    assert row["fp_increase"] == pytest.approx(0.1)
    assert (row["improvement_low"], row["paired"]) == (None, None)


def test_what_cannot_be_compared_is_an_error():
    with pytest.raises(OptionError, match=r"baseline_rate is 90; a rate lies between 0 and 1"):
        compare_with_baseline([], 90)
    with pytest.raises(OptionError, match=r"baseline_false_positive is -0.1"):
        compare_with_baseline([], 0.5, -0.1)
    with pytest.raises(OptionError, match=r"baseline_rate is 0.5, but the outcomes given for it are 1 of 4"):
        compare_with_baseline([], 0.5, baseline_outcomes=[True, False, False, False])
    with pytest.raises(OptionError, match="the same items twice, got 2 and 4 values"):
        compare_with_baseline([steered([True] * 4)], 0.5, baseline_outcomes=[True, False])
