"""The sign-flip test (Fisher 1935): if nothing changed, each difference could as well have had the other sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_SUMS = 2**12
"""The test is exact up to so many different sums: those of any 12 differences, or of many more that are multiples."""


def sign_flip_p_value(differences: NDArray[np.float64], resamples: int, seed: int) -> float:
    """The two-sided p-value: how often the sum of differences with random signs is as far from 0 as the observed sum.

    It is exact if the sums have few different values, as those of yes and no always do (it is then McNemar's exact
    test). Otherwise `resamples` random patterns of signs are drawn, and the observed pattern is counted as well.
    """
    changed = differences[differences != 0]
    if len(changed) == 0 or (changed > 0).all() or (changed < 0).all():
        return float(0.5 ** max(len(changed) - 1, 0))
    changed = changed / np.abs(changed).max()
    rounding = 1e-12 * len(changed)  # sums that differ only by rounding count as equal
    observed = abs(changed.sum()) - rounding
    exact = _sums(np.abs(changed))
    if exact is not None:
        sums, chances = exact
        return float(min(chances[np.abs(sums) >= observed].sum(), 1.0))
    signs = np.random.default_rng(seed).integers(0, 2, size=(resamples, len(changed)), dtype=np.int8)
    extreme = int((np.abs((1 - 2 * signs) @ np.abs(changed)) >= observed).sum())
    return (extreme + 1) / (resamples + 1)


def _sums(sizes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The different sums of the sizes under random signs, and the chance of each; None if there are too many."""
    sums: NDArray[np.float64] = np.zeros(1)
    chances: NDArray[np.float64] = np.ones(1)
    for size in sizes:
        both = np.concatenate([sums + size, sums - size]).round(12)
        sums, places = np.unique(both, return_inverse=True)
        if len(sums) > _MOST_SUMS:
            return None
        chances = np.bincount(places, np.concatenate([chances, chances]) / 2).astype(np.float64)
    return sums, chances
