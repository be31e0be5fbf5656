import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from rotalabs_steer.errors import OptionError
from rotalabs_steer.intervals import (
    FEWEST_VALUES,
    Estimate,
    compare_paired,
    mean_interval,
    mean_of,
    rate_of,
    wilson_interval,
)

REPETITIONS = 4000

SAMPLES = {
    "normal": (lambda draw, shape: draw.normal(1.0, 2.0, shape), 1.0),
    "exponential": (lambda draw, shape: draw.exponential(1.0, shape), 1.0),
    "lognormal, sigma 0.5": (lambda draw, shape: draw.lognormal(0.0, 0.5, shape), np.exp(0.125)),
    "lognormal, sigma 1": (lambda draw, shape: draw.lognormal(0.0, 1.0, shape), np.exp(0.5)),
    "exponential, negative": (lambda draw, shape: -draw.exponential(1.0, shape), -1.0),
    "Student's t, 3 degrees": (lambda draw, shape: draw.standard_t(3, shape), 0.0),
}


def covered(interval, value):
    return interval.low <= value <= interval.high


@pytest.mark.parametrize("count", [8, 12, 24])
@pytest.mark.parametrize("source", SAMPLES)
def test_intervals_of_means_cover_what_they_say(source, count):
    draw, mean = SAMPLES[source]
    samples = draw(np.random.default_rng(count), (REPETITIONS, count))
    coverage = np.mean([covered(mean_interval(sample), mean) for sample in samples])
    error = np.sqrt(0.95 * 0.05 / REPETITIONS)
    assert 0.93 - 2 * error <= coverage <= 0.97 + 2 * error


@pytest.mark.parametrize("count", [4, 8, 12, 24])
def test_intervals_of_rates_cover_what_they_say(count):
    rates = np.linspace(0.005, 0.995, 199)
    intervals = [wilson_interval(successes, count) for successes in range(count + 1)]
    coverage = [
        sum(stats.binom.pmf(k, count, rate) for k, found in enumerate(intervals) if covered(found, rate))
        for rate in rates
    ]
    assert 0.93 <= np.mean(coverage) <= 0.97
    assert min(coverage[20:-20]) > 0.83, "the score interval's lowest coverage (Brown, Cai and DasGupta 2001)"


@pytest.mark.parametrize("count", [4, 8, 12, 24])
@pytest.mark.parametrize(
    ("gained", "lost"), [(0.08, 0.02), (0.1, 0.0), (0.3, 0.05), (0.3, 0.3), (0.6, 0.1), (0.8, 0.0)]
)
def test_intervals_of_paired_rates_cover_at_least_what_they_say(count, gained, lost):
    coverage = 0.0
    for up, down in itertools.product(range(count + 1), repeat=2):
        if up + down <= count:
            before = [0] * up + [1] * down + [1] * (count - up - down)
            after = [1] * up + [0] * down + [1] * (count - up - down)
            chance = stats.multinomial.pmf([up, down, count - up - down], count, [gained, lost, 1 - gained - lost])
            coverage += chance * covered(compare_paired(before, after).difference, gained - lost)
    assert coverage > 0.93


def test_few_values_get_no_interval():
    values = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]
    found = mean_interval(values)
    assert (found.mean, found.low, found.high) == (pytest.approx(1.3), None, None)
    assert not found.excludes_zero
    assert not found.above_zero
    assert str(found) == "+1.30 (no interval)"
    assert mean_interval([*values, 1.7]).above_zero
    assert len(values) + 1 == FEWEST_VALUES


@pytest.mark.parametrize("values", [[0.0] * 20, [1.0] * 20, [0.1] * 30, [-2.5] * 8])
def test_values_that_are_all_the_same_get_no_interval(values):
    found = mean_interval(values)
    assert (found.mean, found.low, found.high) == (pytest.approx(values[0]), None, None)
    assert not found.excludes_zero


def test_without_skewness_the_interval_is_that_of_student():
    values = [-3.0, -1.5, -1.0, -0.2, 0.2, 1.0, 1.5, 3.0]
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval()
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-3)
    tiny = mean_interval([*values[:-1], 3.0 + 1e-9])
    assert (tiny.low, tiny.high) == pytest.approx((low, high), rel=1e-3)


def test_the_interval_of_skewed_values_reaches_further_to_their_long_side():
    values = [0.1, 0.1, 0.2, 0.3, 0.3, 0.5, 0.9, 2.4]
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval()
    found, mirrored = mean_interval(values), mean_interval([-value for value in values])
    assert found.low == pytest.approx(low, rel=1e-2)
    assert found.high > high + 0.2
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    shifted = mean_interval([3 * value + 5 for value in values])
    assert (shifted.low, shifted.high) == pytest.approx((3 * found.low + 5, 3 * found.high + 5))


CHANGES = [
    (0.02, 0.9, 0.08), (0.0, 0.95, 0.05), (0.01, 0.98, 0.01), (0.05, 0.9, 0.05), (0.1, 0.8, 0.1), (0.3, 0.4, 0.3),
    (0.02, 0.7, 0.28), (0.05, 0.45, 0.5), (0.0, 0.5, 0.5), (0.0, 0.2, 0.8), (0.1, 0.0, 0.9), (0.6, 0.35, 0.05),
]  # fmt: skip


@pytest.mark.parametrize("count", [8, 12, 24, 48])
def test_intervals_of_changes_of_yes_and_no_cover_what_they_say(count):
    counts = [(down, same, count - down - same) for down in range(count + 1) for same in range(count + 1 - down)]
    found = [mean_interval(np.repeat([-1.0, 0.0, 1.0], of_each)) for of_each in counts]
    given = np.array([interval.low is not None for interval in found])
    for chances in CHANGES:
        mean = chances[2] - chances[0]
        likely = stats.multinomial.pmf(counts, count, chances)
        covers = np.array([interval.low is not None and covered(interval, mean) for interval in found])
        assert likely[covers].sum() / likely[given].sum() > 0.93, chances


@pytest.mark.parametrize("unit", [1e-300, 1e-6, 0.5, 2.0, -1.0, 7.0, 1e300])
@pytest.mark.parametrize("values", [
    [1.0] + [0.0] * 11, [1.0] * 5 + [0.0] * 7, [1.0] * 9 + [0.0] * 3, [-1.0, 0.0, 0.0, 1.0] * 5, [0.0, 0.5, 1.0] * 6,
    [0.3, -0.2, 0.5, 0.9, 1.4, 0.1, 0.2, 0.35],
])  # fmt: skip
def test_another_unit_gives_the_same_interval_in_that_unit(values, unit):
    found, other = mean_interval(values), mean_interval([unit * value for value in values])
    ends = sorted([unit * found.low, unit * found.high])
    assert [other.low, other.high] == pytest.approx(ends, rel=1e-9, abs=1e-12 * abs(unit))
    assert other.excludes_zero == found.excludes_zero


@pytest.mark.parametrize("changed", range(1, 13))
@pytest.mark.parametrize("unit", [1.0, 0.5, 3.0])
def test_an_interval_leaves_zero_out_only_where_the_test_does(changed, unit):
    values = [unit] * changed + [0.0] * (12 - changed)
    p_value = stats.binomtest(changed, changed).pvalue
    compared = compare_paired([0.0] * 12, values)
    assert compared.p_value == pytest.approx(p_value)
    for found in (mean_interval(values), mean_interval([-value for value in values]), compared.difference):
        assert not (found.excludes_zero and p_value > 0.05)


def test_changes_that_nearly_all_agree_leave_zero_out():
    assert mean_interval([1.0] * 11 + [0.0]).above_zero
    assert mean_interval([0.5] * 7 + [0.0] * 5).above_zero
    assert compare_paired([0.0] * 12, [1.0] * 7 + [0.0] * 5).difference.above_zero


def test_no_sample_of_few_values_contradicts_the_test():
    for values in itertools.combinations_with_replacement((-2.0, -1.0, 0.0, 1.0, 2.0), 9):
        found = compare_paired([0.0] * 9, values)
        assert not (found.difference.excludes_zero and found.p_value > 0.05), values


@pytest.mark.parametrize("values", [
    [1e308, -1e308] * 6, [1e200, -1e200] * 6, [1e-320, 2e-320] * 6, [1e-200 * number for number in range(12)],
    [1e308, -1e308, *[1e307] * 12],
])  # fmt: skip
def test_very_large_and_very_small_values_have_intervals_of_some_width(values):
    found = mean_interval(values)
    assert -np.inf < found.low <= found.mean <= found.high < np.inf
    assert found.low < found.high


def test_an_interval_beyond_the_largest_float_is_an_error():
    with pytest.raises(OptionError, match=r"of 8 values up to 1.7e\+308 ends beyond the largest float. Divide"):
        mean_interval([1.7e308] * 5 + [1e308] * 3)
    with pytest.raises(OptionError, match="9 of 9 values are not finite numbers"):
        compare_paired([-1e308] * 9, [1e308] * 9)


@pytest.mark.parametrize("bad", [["1", "2"], [None, 1.0], [1 + 0j], "12", {"a": 1.0}, 3.0, [[1.0], [2.0]], [10**400]])
def test_what_is_not_a_list_of_numbers_has_no_mean(bad):
    with pytest.raises(OptionError, match=r"A mean needs (a list of )?numbers"):
        mean_interval(bad)
    with pytest.raises(OptionError, match=r"A mean needs (a list of )?numbers"):
        compare_paired(bad, bad)


def test_numbers_of_any_library_and_generators_are_compared():
    first, second = [0.0, 0.5, 0.25] * 4, [1.0, 0.25, 0.75] * 4
    expected = compare_paired(first, second)
    assert compare_paired((value for value in first), (value for value in second)) == expected
    assert compare_paired(torch.tensor(first).double(), np.array(second)) == expected
    assert compare_paired([torch.tensor(value).double() for value in first], second) == expected
    halves = torch.tensor([0.0, 0.5, 1.0] * 4, dtype=torch.bfloat16)
    assert mean_interval(halves) == mean_interval([0.0, 0.5, 1.0] * 4)


@pytest.mark.parametrize("wrong", [{"resamples": 0}, {"resamples": -1}, {"resamples": 1.5}, {"seed": 0.5}, {"seed": -1},
                                   {"seed": None}])  # fmt: skip
def test_a_comparison_draws_at_least_once_and_from_a_whole_seed(wrong):
    with pytest.raises(OptionError, match="they must be integers, from 1 and from 0 on"):
        compare_paired(range(20), range(1, 21), **wrong)


@pytest.mark.parametrize("of", [("2", 5), (2, 5.5), (True, True), (2, "5"), (None, 5), (2, float("nan"))])
def test_what_is_not_a_count_has_no_rate(of):
    with pytest.raises(OptionError, match="at least one trial and 0 to trials successes, got"):
        wilson_interval(*of)


def test_rates_are_of_true_and_false():
    assert rate_of([True, np.False_, torch.tensor(True), 1, 0.0]) == wilson_interval(3, 5)
    assert rate_of([np.int64(1), np.float32(0)]) == wilson_interval(1, 2)
    for wrong in (None, 0.5, "no", 2, float("nan"), [1]):
        with pytest.raises(OptionError, match="A rate needs outcomes that are True or False, got"):
            rate_of([True, wrong])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_have_no_mean(bad):
    message = r"1 of 20 values are not finite numbers \(the value at index 3 is -?(nan|inf)\)"
    values = [0.1] * 3 + [bad] + [0.2] * 16
    with pytest.raises(OptionError, match=message):
        mean_interval(values)
    with pytest.raises(OptionError, match=message):
        compare_paired([0.0] * 20, values)
    with pytest.raises(OptionError, match=message):
        compare_paired(values, values)
    with pytest.raises(OptionError, match=message):
        mean_of([None, *values])
    with pytest.raises(OptionError, match="a list of at least one number, got none"):
        mean_interval([])
    with pytest.raises(OptionError, match="at least one trial and 0 to trials successes"):
        wilson_interval(bad, 4)


@pytest.mark.parametrize(("estimate", "text"), [
    (Estimate(0.5, -0.25, 1.25), "+0.50 [-0.25, +1.25]"),
    (Estimate(0.004, 0.001, 0.007), "+0.004 [+0.001, +0.007]"),
    (Estimate(-0.0004, -0.001, 0.0), "-0.0004 [-0.0010, +0.0000]"),
    (Estimate(0.0, 0.0, 0.0), "+0.00 [+0.00, +0.00]"),
    (Estimate(0.001, None, None), "+0.001 (no interval)"),
])  # fmt: skip
def test_a_number_that_is_not_zero_does_not_read_as_zero(estimate, text):
    assert str(estimate) == text


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 10), (3, 10), (10, 10), (47, 100), (1, 1000)])
def test_the_wilson_interval_is_that_of_scipy(successes, trials):
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    found = wilson_interval(successes, trials)
    assert (found.mean, found.low, found.high) == pytest.approx((successes / trials, expected.low, expected.high))


def test_rates_of_nothing():
    assert rate_of([]) is None
    assert mean_of([None, None]) is None
    assert mean_of([1.0, None, 3.0]).mean == 2.0
    with pytest.raises(OptionError, match="at least one trial and 0 to trials successes, got 0 of 0"):
        wilson_interval(0, 0)
    with pytest.raises(OptionError, match="got 3 of 2"):
        wilson_interval(3, 2)


def test_few_changes_are_tested_exactly():
    first, second = [0.0, 0.0, 0.0, 0.0, 1.0, 0.3], [1.0, 0.5, 0.2, 0.0, 0.6, 0.3]
    differences = np.subtract(second, first)
    flipped = [abs((np.array(signs) * differences).sum()) for signs in itertools.product((1, -1), repeat=6)]
    expected = np.mean(np.array(flipped) >= abs(differences.sum()) - 1e-9)
    found = compare_paired(first, second)
    assert found.p_value == pytest.approx(expected)
    assert found.difference.mean == pytest.approx(differences.mean())
    assert found.pairs == 6


def test_on_yes_and_no_it_is_the_exact_test_of_mcnemar():
    first, second = [False] * 9 + [True] * 2 + [True] * 20, [True] * 9 + [False] * 2 + [True] * 20
    assert compare_paired(first, second).p_value == pytest.approx(stats.binomtest(2, 11).pvalue)


def test_many_changes_are_tested_by_random_flips():
    generator = np.random.default_rng(0)
    first = generator.normal(size=60)
    second = first + generator.normal(0.3, 1.0, size=60)
    found = compare_paired(first.tolist(), second.tolist(), seed=3)
    expected = stats.permutation_test(
        (second - first,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    )
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.01)
    assert found.seed == 3
    assert found == compare_paired(first.tolist(), second.tolist(), seed=3)


def test_no_change_is_no_evidence():
    same = compare_paired([True, False], [True, False])
    assert (same.p_value, same.difference.mean) == (1.0, 0.0)
    assert same.difference.low < 0 < same.difference.high
    assert compare_paired([0.3] * 9, [0.3] * 9).difference == Estimate(0.0, None, None)


def test_sums_that_differ_by_their_rounding_are_ties():
    assert compare_paired([0.0, 0.0, 0.0], [0.1, 0.2, -0.3]).p_value == 1.0


def test_a_single_change_is_no_proof():
    found = compare_paired([False], [True])
    assert (found.p_value, found.difference.excludes_zero) == (1.0, False)


def test_unpaired_values_are_an_error():
    with pytest.raises(OptionError, match="the same items twice, got 2 and 1 values"):
        compare_paired([1.0, 2.0], [1.0])
    with pytest.raises(OptionError, match="got 0 and 0 values"):
        compare_paired([], [])
