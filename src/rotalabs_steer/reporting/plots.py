"""Figures of a tuning, drawn with matplotlib, for notebooks, papers and the report.

They can be read at the width of a phone: they are five inches wide, with letters of twelve points.
"""

from __future__ import annotations

import io
import math
from functools import partial
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import missing_dependency
from rotalabs_steer.intervals import Estimate, mean_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from rotalabs_steer.tuning.curves import LayerCurve
    from rotalabs_steer.tuning.result import TunedSteering

INK, SOFT, GRID, ACCENT, PALE, ORANGE = "#1f2933", "#5b6773", "#d5dbe1", "#0b6e69", "#9fc5c2", "#c25100"
DIVERGING = "PuOr_r"
"""Purple for less of the behaviour, orange for more: readers who confuse red and green can tell them apart."""

_WIDTH = 5.0
_LETTERS = 12


def first_order_figure(tuned: TunedSteering) -> Figure:
    """The first-order score of every layer. Candidate layers are dark, and the chosen one has a mark."""
    from matplotlib.lines import Line2D

    figure, axes = _figure(2.8)
    layers = sorted(tuned.first_order_scores)
    candidates = {candidate.layer_index for candidate in tuned.candidates}
    heights = [tuned.first_order_scores[layer] for layer in layers]
    axes.bar(layers, heights, color=[ACCENT if layer in candidates else PALE for layer in layers], width=0.8)
    axes.axhline(0, color=INK, linewidth=0.8)
    _leave_room_for_legend(axes)
    top = max(tuned.first_order_scores[tuned.layer_index], 0.0)
    mark: dict[str, Any] = {"marker": "v", "markersize": 9, "color": ORANGE, "linestyle": ""}
    axes.plot(tuned.layer_index, top + 0.05 * (axes.get_ylim()[1] - axes.get_ylim()[0]), **mark)
    handles = [Line2D([], [], **mark), Line2D([], [], **mark | {"marker": "s", "color": ACCENT})]
    _legend(axes, handles, [f"chosen: layer {tuned.layer_index}", "candidates"], columns=2)
    axes.set_xlabel("layer")
    axes.set_ylabel("score")
    return figure


def heat_map_figure(tuned: TunedSteering) -> Figure:
    """Mean change of the validation pairs' log-odds, in nats per token, by candidate layer and strength."""
    rows = sorted(tuned.compared_changes().items())
    changes = [[change.mean for change in row] for _, row in rows]
    limit = 1.3 * max(abs(value) for row in changes for value in row) or 1.0
    figure, axes = _figure(0.9 + 0.5 * len(rows))
    axes.pcolormesh(changes, cmap=DIVERGING, vmin=-limit, vmax=limit, edgecolors="white", linewidth=2)
    for y, row in enumerate(changes):
        for x, value in enumerate(row):
            color = "white" if abs(value) > 0.55 * limit else INK
            axes.text(
                x + 0.5, y + 0.5, _signed(round(value, 2), 2), ha="center", va="center", color=color, fontsize=_LETTERS
            )
    axes.set_xticks([x + 0.5 for x in range(len(changes[0]))], [_signed(f) for f in tuned.compared_fractions])
    axes.set_yticks([y + 0.5 for y in range(len(rows))], [f"layer {layer}" for layer, _ in rows])
    for label, (layer, _) in zip(axes.get_yticklabels(), rows, strict=True):
        if layer == tuned.layer_index:
            label.set(fontweight="bold", color=ACCENT)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("strength (−1 to 1 is safe)")
    return figure


def propensity_figure(tuned: TunedSteering) -> Figure:
    """Change of the test pairs' log-odds by strength, with 95 % intervals, and the same for a random direction."""
    figure, axes = _figure(3.2)
    axes.axhline(0, color=GRID, linewidth=1)
    for curve, color, style in ((tuned.control, SOFT, "--"), (tuned.curve, ACCENT, "-")):
        changes = [curve.change_at(fraction) for fraction in curve.fractions]
        low, high = zip(*map(_ends, changes), strict=True)
        axes.fill_between(curve.fractions, low, high, color=color, alpha=0.18, linewidth=0)
        axes.plot(curve.fractions, [c.mean for c in changes], style, color=color, marker="o", markersize=4, linewidth=2)
    axes.set_xticks(tuned.curve.fractions, [_signed(fraction) for fraction in tuned.curve.fractions])
    axes.set_xlabel("strength (1 = the coherence budget)")
    axes.set_ylabel("change, nats per token")
    _legend(axes, [_line(ACCENT, "-"), _line(SOFT, "--")], [f"layer {tuned.layer_index}", "random direction"])
    return figure


def tradeoff_figure(tuned: TunedSteering) -> Figure:
    """Effect by cost: the candidate layers on the validation pairs, the chosen one on the test pairs with intervals."""
    figure, axes = _figure(3.4)
    axes.axhline(0, color=GRID, linewidth=1)
    axes.axvline(tuned.budget, color=SOFT, linewidth=1, linestyle=":")
    for candidate in tuned.candidates:
        costs, effects = _effects_by_cost(candidate.curve)
        axes.plot(costs, [effect.mean for effect in effects], color=PALE, linewidth=2, marker="o", markersize=4)
    costs, effects = _effects_by_cost(tuned.curve)
    means = [effect.mean for effect in effects]
    ends = list(map(_ends, effects))
    errors = [
        [effect.mean - low for effect, (low, _) in zip(effects, ends, strict=True)],
        [high - effect.mean for effect, (_, high) in zip(effects, ends, strict=True)],
    ]
    axes.errorbar(costs, means, errors, color=ACCENT, linewidth=2, elinewidth=1.2, capsize=3, marker="o", markersize=4)
    axes.plot(costs[-1], means[-1], marker="*", markersize=15, color=ACCENT, markeredgecolor="white")
    _leave_room_for_legend(axes)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("cost on neutral text, KL in nats per token")
    axes.set_ylabel("effect, nats per token")
    names = ["chosen layer, test pairs (star: strength 1)", "candidate layers, validation pairs", "coherence budget"]
    _legend(axes, [_line(ACCENT, "-"), _line(PALE, "-"), _line(SOFT, ":")], names)
    return figure


def _effects_by_cost(curve: LayerCurve) -> tuple[list[float], list[Estimate]]:
    """The mean cost of both signs, and half their difference, at each strength that was measured at both signs."""
    costs, effects = [0.0], [Estimate(0.0, 0.0, 0.0)]
    for fraction in sorted(fraction for fraction in curve.fractions if fraction > 0 and -fraction in curve.fractions):
        costs.append((curve.cost_at(fraction).kl + curve.cost_at(-fraction).kl) / 2)
        effects.append(mean_interval(((curve.at(fraction) - curve.at(-fraction)) / 2).tolist()))
    return costs, effects


def _ends(estimate: Estimate) -> tuple[float, float]:
    """Both ends of an interval. Where there is none they are NaN, which matplotlib does not draw."""
    if estimate.low is None or estimate.high is None:
        return math.nan, math.nan
    return estimate.low, estimate.high


def _figure(height: float) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_dependency("A picture", "plot", error) from error
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]  # notebooks show pyplot figures only
    axes = figure.subplots()
    axes.tick_params(colors=INK, labelsize=_LETTERS)
    axes.xaxis.label.set(color=INK, fontsize=_LETTERS)
    axes.yaxis.label.set(color=INK, fontsize=_LETTERS)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _legend(axes: Axes, handles: Sequence[Line2D], names: Sequence[str], columns: int = 1) -> None:
    axes.legend(
        handles, names, loc="upper left", frameon=False, fontsize=_LETTERS - 1, labelcolor=INK, ncols=columns,
        handlelength=1.6, borderaxespad=0.2,
    )  # fmt: skip


def _line(color: str, style: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linestyle=style, linewidth=2.5)  # type: ignore[arg-type]


def _leave_room_for_legend(axes: Axes) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))


def _signed(value: float, digits: int | None = None) -> str:
    return (f"{value:+g}" if digits is None else f"{value:+.{digits}f}").replace("-", "−") if value else "0"
