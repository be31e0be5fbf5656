"""Methods: functions from the statistics of one layer to a direction, by name. `register_method` adds one.

`ActivationStatistics.vectors` turns each direction towards the positive side and gives it the length of the mean
difference, so that a strength has about the same effect with every method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize, softplus

from rotalabs_steer.errors import OptionError
from rotalabs_steer.extraction.statistics import FIELD_OF_NEED, FISHER, GRADIENT, NEUTRAL, SAMPLES, LayerStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jaxtyping import Float

    Direction = Callable[[LayerStatistics], Float[torch.Tensor, " hidden"]]

DEFAULT_METHOD = "mean_difference"

_SHRINKAGE = 0.1
_PENALTY = 1e-2
_ROUNDING = 1e-5  # relative: activations are fp32, so smaller differences between pairs are rounding errors


@dataclass(frozen=True)
class Method:
    """A function that finds a direction, and what it needs besides the means of both sides."""

    name: str
    direction: Direction
    needs: frozenset[str]


METHODS: dict[str, Method] = {}


def register_method(name: str, needs: Iterable[str] = ()) -> Callable[[Direction], Direction]:
    """Makes a function from `LayerStatistics` to a vector `[hidden]` available as `method=name`.

    Args:
        needs: "samples", "neutral", "gradient" or "fisher"; fields of `LayerStatistics` that no method needs are None.

    Raises:
        OptionError: the name is taken, or a need is unknown.
    """
    unknown = set(needs) - set(FIELD_OF_NEED)
    if unknown:
        raise OptionError(
            f"Unknown needs {sorted(unknown)} of method {name!r}. Use: {', '.join(sorted(FIELD_OF_NEED))}."
        )
    if name in METHODS:
        raise OptionError(f"There is a method {name!r} already; choose another name.")

    def register(direction: Direction) -> Direction:
        METHODS[name] = Method(name, direction, frozenset(needs))
        return direction

    return register


def get_method(name: str) -> Method:
    """The method with this name; an `OptionError` that lists the names if there is none."""
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


@register_method("pca", needs=[SAMPLES])
def pca(statistics: LayerStatistics) -> torch.Tensor:
    """First principal component of both sides, each pair centred on its own mean.

    Centred so, the sides of a pair are plus and minus half their difference: the component is the first right singular
    vector of the differences, their mean included.
    """
    return _first_component(_differences(statistics))


@register_method("pca_differences", needs=[SAMPLES])
def pca_differences(statistics: LayerStatistics) -> torch.Tensor:
    """First principal component of the differences (RepE; Zou et al. 2023, arXiv:2310.01405).

    A principal component is taken about the mean, so it leaves out exactly what all pairs have in common.
    """
    differences = _differences(statistics)
    centred = differences - differences.mean(dim=0)
    if centred.norm() <= _ROUNDING * differences.norm():  # the same difference each time: no direction is left
        return torch.zeros_like(differences[0])
    return _first_component(centred)


@register_method("lda", needs=[SAMPLES])
def lda(statistics: LayerStatistics) -> torch.Tensor:
    """The mean difference whitened by the covariance within the sides (Fisher 1936).

    The covariance is shrunk by a tenth towards a multiple of the identity, since pairs are fewer than dimensions.
    """
    assert statistics.samples is not None
    samples = statistics.samples.double()
    rows = (samples - samples.mean(dim=0)).flatten(0, 1)
    rows = rows / len(rows) ** 0.5  # rowsᵀ rows is the covariance
    ridge = _SHRINKAGE * rows.square().sum() / rows.shape[1]
    return _solve_damped((1 - _SHRINKAGE) ** 0.5 * rows, ridge, statistics.mean_difference)


@register_method("logistic", needs=[SAMPLES])
def logistic(statistics: LayerStatistics) -> torch.Tensor:
    """Weights of a logistic regression that tells the sides apart (a linear probe; Alain and Bengio 2016).

    With an L2 penalty, on activations scaled to unit variance on average, solved by L-BFGS.
    """
    assert statistics.samples is not None
    centred = statistics.samples.double() - statistics.samples.double().mean(dim=(0, 1))
    rows = (centred / centred.std()).flatten(0, 1)
    signs = torch.tensor([1.0, -1.0], dtype=rows.dtype).repeat(len(statistics.samples))
    # A caller may be in inference mode, where no gradients are recorded.
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

    To first order, it is the direction in which a step of given length changes the log-odds most. docs/methods.md says
    why that is not the direction that changes most what the model writes.
    """
    assert statistics.gradient is not None
    return statistics.gradient


@register_method("natural_gradient", needs=[GRADIENT, FISHER])
def natural_gradient(statistics: LayerStatistics) -> torch.Tensor:
    """(F + λI)⁻¹ g: the most change of the pairs' log-odds for a given KL on neutral text (Amari 1998).

    g is the gradient of `gradient`, F the Fisher information of neutral text, λ the mean of F's diagonal.
    """
    assert statistics.gradient is not None
    return _per_cost(statistics, statistics.gradient, damping=1.0)


@register_method("mean_difference_per_cost", needs=[FISHER])
def mean_difference_per_cost(statistics: LayerStatistics) -> torch.Tensor:
    """(F + λI)⁻¹ v: the mean difference, with the directions that cost most on neutral text turned down.

    λ is ten times the mean of F's diagonal: with less, too little of the difference is left.
    """
    return _per_cost(statistics, statistics.mean_difference, damping=10.0)


def _per_cost(statistics: LayerStatistics, vector: torch.Tensor, damping: float) -> torch.Tensor:
    """(F + λI)⁻¹ vector, where F = SᵀS/n from the n scores S."""
    assert statistics.fisher_scores is not None
    scores = statistics.fisher_scores.to(vector.dtype) / len(statistics.fisher_scores) ** 0.5
    return _solve_damped(scores, damping * scores.square().sum() / scores.shape[1], vector)


def _solve_damped(
    rows: Float[torch.Tensor, "rows hidden"], ridge: torch.Tensor, vector: Float[torch.Tensor, " hidden"]
) -> Float[torch.Tensor, " hidden"]:
    """(RᵀR + ridge I)⁻¹ vector for few rows R. By the Woodbury identity, only a matrix of `[rows, rows]` is solved."""
    if not bool(ridge):  # the rows are zero, so no direction is shortened more than another
        return vector
    inner = rows @ rows.T + ridge * torch.eye(len(rows), dtype=rows.dtype)
    shared: torch.Tensor = torch.linalg.solve(inner, rows @ vector)
    return (vector - rows.T @ shared) / ridge


def _differences(statistics: LayerStatistics) -> Float[torch.Tensor, "pairs hidden"]:
    assert statistics.samples is not None
    samples = statistics.samples.double()
    return samples[:, 0] - samples[:, 1]


def _first_component(rows: Float[torch.Tensor, "rows hidden"]) -> Float[torch.Tensor, " hidden"]:
    """The first right singular vector. The matrix of the rows' products is the small one where rows are few."""
    vectors: torch.Tensor = torch.linalg.eigh(rows @ rows.T).eigenvectors
    return normalize(rows.T @ vectors[:, -1], dim=0)
