"""How sure a measurement is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rotalabs_steer.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

_Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""

_MOST_EXACT = 12
"""Pairs that differ, up to which all 2ⁿ sign flips are tried."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def bootstrap_mean(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """The mean of a sample with its percentile bootstrap interval (Efron 1979)."""
    sample = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(sample), size=(resamples, len(sample)))
    low, high = np.quantile(sample[drawn].mean(axis=1), [0.025, 0.975])
    return Estimate(float(sample.mean()), float(low), float(high))


def wilson_interval(successes: float, trials: int) -> Estimate:
    """A rate with its 95 % score interval (Wilson 1927), which stays inside 0 to 1 and is honest near both ends.

    Args:
        successes: may be a fraction, where a trial is half a success.

    Raises:
        OptionError: there are no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise OptionError(f"A rate needs at least one trial and 0 to trials successes, got {successes} of {trials}.")
    rate, square = successes / trials, _Z**2 / trials
    centre = rate + square / 2
    margin = _Z * math.sqrt((rate * (1 - rate) + square / 4) / trials)
    low = 0.0 if successes == 0 else (centre - margin) / (1 + square)
    high = 1.0 if successes == trials else (centre + margin) / (1 + square)
    return Estimate(rate, low, high)


@dataclass(frozen=True)
class PairedComparison:
    """The same items measured twice.

    Attributes:
        difference: mean of second minus first, with its bootstrap interval over items.
        p_value: two-sided, of a sign-flip permutation test; on outcomes of yes and no that is McNemar's test.
        pairs: number of items.
        seed: of the bootstrap and the permutations.
    """

    difference: Estimate
    p_value: float
    pairs: int
    seed: int


def compare_paired(
    first: Sequence[float], second: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> PairedComparison:
    """Compares two measurements of the same items, in the same order.

    If neither differs from the other, each difference could as well have had the other sign (Fisher 1935). All sign
    patterns are tried where at most 12 differences are not zero; else `resamples` random ones, the observed included.

    Raises:
        OptionError: there are no items, or not the same number twice.
    """
    if len(first) != len(second) or not first:
        raise OptionError(f"A paired comparison needs the same items twice, got {len(first)} and {len(second)} values.")
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    changed = np.abs(differences[differences != 0])
    observed = abs(differences.sum()) * (1 - 1e-12)
    if len(changed) <= _MOST_EXACT:
        flips = np.arange(2 ** len(changed))[:, None] >> np.arange(len(changed))
        sums = (1 - 2 * (flips & 1)) @ changed
        p_value = float((np.abs(sums) >= observed).mean())
    else:
        signs = np.random.default_rng(seed).integers(0, 2, size=(resamples, len(changed)), dtype=np.int8)
        extreme = int((np.abs((1 - 2 * signs) @ changed) >= observed).sum())
        p_value = (extreme + 1) / (resamples + 1)
    return PairedComparison(bootstrap_mean(differences.tolist(), seed=seed), p_value, len(differences), seed)


def rate_of(outcomes: Sequence[bool]) -> Estimate | None:
    """The share of outcomes that are true, with its Wilson interval; None where there are none."""
    return wilson_interval(sum(outcomes), len(outcomes)) if outcomes else None


def mean_of(scores: Sequence[float | None], seed: int = 0) -> Estimate | None:
    """The mean of the scores there are, with its bootstrap interval; None where there are none."""
    known = [score for score in scores if score is not None]
    return bootstrap_mean(known, seed=seed) if known else None
