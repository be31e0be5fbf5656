"""Directions from the statistics of one layer, by method name.

Every direction points from negative to positive and has the length of the mean difference there, so that a strength
means much the same whatever the method. `register_method` adds one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import softplus

from rotalabs_steer.errors import OptionError
from rotalabs_steer.extraction.statistics import FISHER, GRADIENT, MOMENTS, NEEDS, NEUTRAL, SAMPLES, LayerStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jaxtyping import Float

    Direction = Callable[[LayerStatistics], Float[torch.Tensor, " hidden"]]

DEFAULT_METHOD = "mean_difference"

_SHRINKAGE = 0.1
_PENALTY = 1e-2


@dataclass(frozen=True)
class Method:
    """A way to a direction, and what it needs besides the means of both sides."""

    name: str
    direction: Direction
    needs: frozenset[str]


METHODS: dict[str, Method] = {}


def register_method(name: str, needs: Iterable[str] = ()) -> Callable[[Direction], Direction]:
    """Makes a function from `LayerStatistics` to a vector `[hidden]` available as `method=name`.

    Args:
        needs: among "moments", "samples", "neutral", "gradient" and "fisher"; what is not asked for is not computed.

    Raises:
        OptionError: the name is taken, or a need is unknown.
    """
    unknown = set(needs) - NEEDS
    if unknown:
        raise OptionError(f"Unknown needs {sorted(unknown)} of method {name!r}. Use: {', '.join(sorted(NEEDS))}.")
    if name in METHODS:
        raise OptionError(f"There is a method {name!r} already; choose another name.")

    def register(direction: Direction) -> Direction:
        METHODS[name] = Method(name, direction, frozenset(needs))
        return direction

    return register


def get_method(name: str) -> Method:
    """The method of a name.

    Raises:
        OptionError: there is none.
    """
    if name not in METHODS:
        raise OptionError(f"Unknown method {name!r}. Use one of: {', '.join(METHODS)}.")
    return METHODS[name]


@register_method("mean_difference")
def mean_difference(statistics: LayerStatistics) -> torch.Tensor:
    """Mean of the positive minus mean of the negative activations (CAA; Rimsky et al. 2024, arXiv:2312.06681)."""
    return statistics.mean_difference


@register_method("mean_centred", needs=[NEUTRAL])
def mean_centred(statistics: LayerStatistics) -> torch.Tensor:
    """Mean of the positive activations minus that of neutral text (Jorgensen et al. 2023, arXiv:2312.03813)."""
    assert statistics.neutral_mean is not None
    return statistics.positive_mean - statistics.neutral_mean


@register_method("pca", needs=[MOMENTS])
def pca(statistics: LayerStatistics) -> torch.Tensor:
    """First principal component of both sides, each pair centred on its own mean.

    Which is the first eigenvector of the second moment of the differences, their mean included.
    """
    assert statistics.difference_moment is not None
    return _first_eigenvector(statistics.difference_moment)


@register_method("pca_differences", needs=[MOMENTS])
def pca_differences(statistics: LayerStatistics) -> torch.Tensor:
    """First principal component of the differences (RepE; Zou et al. 2023, arXiv:2310.01405).

    A principal component is taken about the mean, so what all pairs have in common is exactly what is left out.
    """
    assert statistics.difference_moment is not None
    shared = statistics.mean_difference
    return _first_eigenvector(statistics.difference_moment - torch.outer(shared, shared))


@register_method("lda", needs=[MOMENTS])
def lda(statistics: LayerStatistics) -> torch.Tensor:
    """The mean difference whitened by the covariance within the sides (Fisher 1936).

    The covariance is shrunk by a tenth towards a multiple of the identity, since pairs are fewer than dimensions.
    """
    assert statistics.second_moment is not None
    means = statistics.positive_mean, statistics.negative_mean
    within = statistics.second_moment - sum(torch.outer(mean, mean) for mean in means) / 2
    direction: torch.Tensor = torch.linalg.solve(_shrunk(within), statistics.mean_difference)
    return direction


@register_method("logistic", needs=[SAMPLES])
def logistic(statistics: LayerStatistics) -> torch.Tensor:
    """Weights of a logistic regression that tells the sides apart (a linear probe; Alain and Bengio 2016).

    With an L2 penalty, on activations scaled to unit variance on average, solved by L-BFGS.
    """
    assert statistics.samples is not None
    centred = statistics.samples.double() - statistics.samples.double().mean(dim=(0, 1))
    rows = (centred / centred.std()).flatten(0, 1)
    signs = torch.tensor([1.0, -1.0], dtype=rows.dtype).repeat(len(statistics.samples))
    with torch.inference_mode(mode=False), torch.enable_grad():
        weights = torch.zeros(rows.shape[1], dtype=rows.dtype, requires_grad=True)
        solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            solver.zero_grad()
            value = softplus(-signs * (rows @ weights)).mean() + _PENALTY * weights.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        solver.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach()


@register_method("gradient", needs=[GRADIENT])
def gradient(statistics: LayerStatistics) -> torch.Tensor:
    """Gradient of the pairs' mean log-odds with respect to an addition at the layer.

    To first order the direction in which a step of given length changes the log-odds most. See docs/methods.md for why
    that is not the direction which changes what the model writes.
    """
    assert statistics.gradient is not None
    return statistics.gradient


@register_method("natural_gradient", needs=[GRADIENT, FISHER])
def natural_gradient(statistics: LayerStatistics) -> torch.Tensor:
    """(F + λI)⁻¹ g: most change of the pairs' log-odds for a given KL on neutral text (Amari 1998).

    g is the gradient of `gradient`, F the Fisher information of neutral text, λ the mean of F's diagonal.
    """
    assert statistics.gradient is not None
    return _per_cost(statistics, statistics.gradient, damping=1.0)


@register_method("mean_difference_per_cost", needs=[FISHER])
def mean_difference_per_cost(statistics: LayerStatistics) -> torch.Tensor:
    """(F + λI)⁻¹ v: the mean difference with what costs most on neutral text turned down.

    λ is ten times the mean of F's diagonal: with less, too little of the difference is left.
    """
    return _per_cost(statistics, statistics.mean_difference, damping=10.0)


def _per_cost(statistics: LayerStatistics, vector: torch.Tensor, damping: float) -> torch.Tensor:
    """(F + λI)⁻¹ vector from the scores S, F = SᵀS/n, by the Woodbury identity: S has few rows."""
    assert statistics.fisher_scores is not None
    scores = statistics.fisher_scores.to(vector.dtype) / len(statistics.fisher_scores) ** 0.5
    ridge = damping * scores.square().sum() / scores.shape[1]
    inner = scores @ scores.T + ridge * torch.eye(len(scores), dtype=scores.dtype)
    shared: torch.Tensor = torch.linalg.solve(inner, scores @ vector)
    reduced: torch.Tensor = (vector - scores.T @ shared) / ridge
    return reduced


def _first_eigenvector(matrix: torch.Tensor) -> torch.Tensor:
    vectors: torch.Tensor = torch.linalg.eigh(matrix).eigenvectors
    return vectors[:, -1]


def _shrunk(covariance: torch.Tensor) -> torch.Tensor:
    size = covariance.shape[0]
    level = covariance.trace() / size
    return (1 - _SHRINKAGE) * covariance + _SHRINKAGE * level * torch.eye(size, dtype=covariance.dtype)
