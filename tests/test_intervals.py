import itertools

import numpy as np
import pytest
from scipy import stats

from rotalabs_steer.errors import OptionError
from rotalabs_steer.intervals import compare_paired, mean_of, rate_of, wilson_interval


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


def test_unpaired_values_are_an_error():
    with pytest.raises(OptionError, match="the same items twice, got 2 and 1 values"):
        compare_paired([1.0, 2.0], [1.0])
    with pytest.raises(OptionError, match="got 0 and 0 values"):
        compare_paired([], [])
