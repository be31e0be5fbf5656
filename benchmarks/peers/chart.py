"""The picture of a comparison: time relative to the hand-written pass, one panel a workload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

INK, GRID = "#1f2933", "#d5dbe1"
COLORS = ("#b5690f", "#0b6e69")
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
BAR = 0.36


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes an SVG file of the table's rows. Bars begin at 1, the yardstick: to the left is faster."""
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    contestants = list(dict.fromkeys(row["contestant"] for row in rows if not row["yardstick"]))
    figure = Figure(figsize=(11, 1.6 + 0.72 * len(contestants)), layout="constrained")
    panels = figure.subplots(1, len(workloads), sharey=True, sharex=True, squeeze=False)[0]
    panels[0].set_xlim(min(0.4, *(row["low"] * 0.5 for row in rows)), max(row["high"] for row in rows) * 4)
    panels[0].set_ylim(len(contestants) - 0.5, -0.5)
    for panel, workload in zip(panels, workloads, strict=True):
        draw_panel(panel, [row for row in rows if row["workload"] == workload], contestants)
        panel.set_title(workload, loc="left", color=INK, fontweight="bold")
    panels[0].set_yticks(range(len(contestants)), contestants)
    figure.supxlabel("time relative to a single pass written by hand (= 1; log scale)", color=INK, fontsize=10)
    with mpl.rc_context({"svg.hashsalt": "extraction"}):  # the same numbers give the same file
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw_panel(panel: Axes, rows: Sequence[dict[str, Any]], contestants: Sequence[str]) -> None:
    choices = list(dict.fromkeys(row["layers"] for row in rows))
    panel.set_xscale("log")
    panel.axvline(1, color=INK, linewidth=1)
    for row in rows:
        if row["yardstick"]:
            continue
        which = choices.index(row["layers"])
        color, ratio = COLORS[which], row["ratio"]
        place = contestants.index(row["contestant"]) + (which - (len(choices) - 1) / 2) * BAR
        panel.barh(place, ratio - 1, left=1, height=BAR * 0.92, color=color)
        panel.plot([row["low"], row["high"]], [place, place], color=INK, linewidth=1)
        named = f" · {row['layers']}" if row["contestant"] == contestants[0] else ""
        panel.annotate(
            f"{ratio:.{2 if ratio < 10 else 0}f}×{named}",
            (max(1, row["high"]), place),  # right of the line even where the bar points left: room for words
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=color,
        )
    panel.xaxis.set_major_locator(FixedLocator(TICKS))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter("{x:g}×")
    panel.tick_params(colors=INK, length=0)
    panel.grid(axis="x", color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left", "bottom"]].set_visible(False)
