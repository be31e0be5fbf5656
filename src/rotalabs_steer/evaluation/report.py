"""The HTML report of a tuning: one self-contained file."""

from __future__ import annotations

import io
import json
from importlib.resources import files
from typing import TYPE_CHECKING

from rotalabs_steer.errors import missing_dependency
from rotalabs_steer.files.atomic import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rotalabs_steer.evaluation.curves import LayerCurve
    from rotalabs_steer.evaluation.tuned import TunedSteering

_INK, _ACCENT, _GRID = "#1f2933", "#0b6e69", "#d5dbe1"


def write_report(path: Path, tuned: TunedSteering, sides: Mapping[str, str]) -> None:
    """Writes the report.

    Args:
        sides: what "positive" and "negative" mean.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    from jinja2 import Environment

    template = files("rotalabs_steer.evaluation").joinpath("data/report.html.jinja").read_text("utf-8")
    answers = tuned.answers
    page = (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            tuned=tuned,
            sides=sides,
            generations=list(zip(answers.prompts, *(answers.texts[sign] for sign in (-1.0, 0.0, 1.0)), strict=True)),
            heat_map=_svg(_heat_map(tuned)),
            curve=_svg(_curve(tuned.curve)),
            records=json.dumps(tuned.to_record(), indent=1),
        )
    )
    write_atomically(path, page.encode())


def _heat_map(tuned: TunedSteering) -> Figure:
    """Mean change of propensity for each layer and strength."""
    rows = sorted((finalist.curve for finalist in tuned.finalists), key=lambda curve: -curve.layer_index)
    changes = [[change.mean for change in curve.changes()] for curve in rows]
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
    best = [curve.layer_index for curve in rows].index(tuned.layer_index)
    axes.get_yticklabels()[best].set_fontweight("bold")
    axes.get_yticklabels()[best].set_color(_ACCENT)
    axes.spines[:].set_visible(False)
    return figure


def _curve(curve: LayerCurve) -> Figure:
    """Propensity change against strength, with 95 % intervals."""
    estimates = curve.changes()
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
