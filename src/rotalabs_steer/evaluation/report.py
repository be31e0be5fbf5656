"""The HTML report of a layer search: one self-contained file."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import missing_dependency
from rotalabs_steer.files.atomic import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rotalabs_steer.evaluation.layer_search import LayerCurve, LayerSearch

_INK, _ACCENT, _GRID = "#1f2933", "#0b6e69", "#d5dbe1"


@dataclass(frozen=True)
class SideBySide:
    """One prompt and the answers at negative, zero and positive strength."""

    prompt: str
    negative: str
    unsteered: str
    positive: str


def write_report(
    path: Path,
    search: LayerSearch,
    confirmed: LayerCurve,
    generations: Sequence[SideBySide],
    facts: Mapping[str, Any],
) -> None:
    """Writes the report.

    Args:
        search: all measured layers, on the pairs that the layer was chosen on.
        confirmed: the chosen layer on pairs that were used for nothing else.
        facts: model, sides of the behaviour and versions, shown as they are.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    from jinja2 import Environment

    template = files("rotalabs_steer.evaluation").joinpath("data/report.html.jinja").read_text("utf-8")
    page = (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            search=search,
            confirmed=confirmed,
            generations=generations,
            facts=facts,
            heat_map=_svg(_heat_map(search)),
            curve=_svg(_curve(confirmed)),
            records=json.dumps(_records(search, confirmed), indent=1),
        )
    )
    write_atomically(path, page.encode())


def _records(search: LayerSearch, confirmed: LayerCurve) -> dict[str, Any]:
    def record(curve: LayerCurve) -> dict[str, Any]:
        return {
            "layer": curve.layer_index,
            "unit": curve.unit,
            "fractions": list(curve.fractions),
            "mean_change": curve.mean_change(),
            "effect": vars(curve.effect),
            "anti_steerable": curve.anti_steerable,
        }

    return {
        "behavior": search.behavior,
        "budget_kl": search.budget,
        "layers": [record(curve) for curve in search.curves],
        "confirmed": record(confirmed),
    }


def _heat_map(search: LayerSearch) -> Figure:
    """Mean change of propensity for each layer and strength."""
    rows = sorted(search.curves, key=lambda curve: -curve.layer_index)
    changes = [curve.mean_change() for curve in rows]
    limit = max(abs(value) for row in changes for value in row) or 1.0
    figure, axes = _figure(6.4, 0.9 + 0.42 * len(rows))
    axes.imshow(changes, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    for y, row in enumerate(changes):
        for x, value in enumerate(row):
            axes.text(
                x, y, f"{value:+.2f}", ha="center", va="center", color="white" if abs(value) > 0.6 * limit else _INK
            )
    axes.set_xticks(
        range(len(rows[0].fractions)), [f"{fraction:+g}" if fraction else "0" for fraction in rows[0].fractions]
    )
    axes.set_yticks(range(len(rows)), [f"layer {curve.layer_index}" for curve in rows])
    axes.tick_params(length=0)
    axes.set_xlabel("strength (1 = the coherence budget at that layer)")
    best = [curve.layer_index for curve in rows].index(search.best.layer_index)
    axes.get_yticklabels()[best].set_fontweight("bold")
    axes.get_yticklabels()[best].set_color(_ACCENT)
    axes.spines[:].set_visible(False)
    return figure


def _curve(curve: LayerCurve) -> Figure:
    """Propensity change against strength, with 95 % intervals."""
    from rotalabs_steer.evaluation.intervals import bootstrap_mean

    zero = curve.propensities[curve.fractions.index(0.0)]
    estimates = [bootstrap_mean((row - zero).tolist()) for row in curve.propensities]
    figure, axes = _figure(6.4, 3.2)
    axes.axhline(0, color=_GRID, linewidth=1)
    axes.fill_between(
        curve.fractions, [e.low for e in estimates], [e.high for e in estimates], color=_ACCENT, alpha=0.18, linewidth=0
    )
    axes.plot(curve.fractions, [e.mean for e in estimates], color=_ACCENT, marker="o", linewidth=2)
    axes.set_xticks(curve.fractions, [f"{fraction:+g}" if fraction else "0" for fraction in curve.fractions])
    axes.set_xlabel("strength (1 = the coherence budget)")
    axes.set_ylabel("change of propensity, nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_dependency("The report", "plot", error) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(colors=_INK)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
