"""Candidate layers side by side, in the demo's table and the report's heat map: each cell under its own strength."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from made_up_tuning import tuned_steering
from rotalabs_steer.cli.demo import print_candidates
from rotalabs_steer.reporting import plots
from rotalabs_steer.reporting.html_report import write_report


def only(curve, *fractions):
    """A curve as it is where only some of its fractions were measured."""
    kept = [curve.fractions.index(fraction) for fraction in fractions]
    return dataclasses.replace(
        curve, fractions=fractions, propensities=curve.propensities[kept], costs=tuple(curve.costs[n] for n in kept)
    )


@pytest.fixture
def tuned():
    """A tuning one of whose layers was measured at more strengths than the other."""
    made = tuned_steering()
    first, second = made.candidates
    coarse, fine = only(first.curve, -1.0, 0.0, 1.0), only(second.curve, -1.0, -1.0, 0.0, 1.0, 1.0)
    fine = dataclasses.replace(fine, fractions=(-1.0, -0.25, 0.0, 0.25, 1.0))
    candidates = (dataclasses.replace(first, curve=coarse), dataclasses.replace(second, curve=fine))
    return dataclasses.replace(made, candidates=candidates)


def means(tuned):
    return [
        [float((candidate.curve.at(f) - candidate.curve.at(0.0)).mean()) for f in (-1.0, 0.0, 1.0)]
        for candidate in tuned.candidates
    ]


def test_layers_are_compared_at_the_strengths_that_all_were_measured_at(tuned):
    assert tuned.compared_fractions == (-1.0, 0.0, 1.0)
    changes = tuned.compared_changes()
    assert list(changes) == [candidate.layer_index for candidate in tuned.candidates]
    assert [[change.mean for change in row] for row in changes.values()] == [
        pytest.approx(row, abs=1e-6) for row in means(tuned)
    ]


def test_the_cells_of_the_demos_table_stand_under_their_headings(tuned):
    console = Console(file=io.StringIO(), width=200)
    print_candidates(console, tuned)
    lines = [line for line in console.file.getvalue().splitlines() if re.search(r"[│┃]", line)]
    head, *rows = ([cell.strip() for cell in re.split(r"[│┃]", line)[1:-1]] for line in lines)
    assert head[:5] == ["layer", "strength of the budget", "-1", "0", "+1"]
    assert head[5:] == ["effect, 95 % interval", "answers (decides)"]
    for row, candidate, expected in zip(rows, tuned.candidates, means(tuned), strict=True):
        assert row[0] == str(candidate.layer_index)
        assert [float(cell) for cell in row[2:5]] == pytest.approx(expected, abs=0.0051)
        assert row[5] == str(candidate.curve.effect)


def test_the_heat_map_says_and_shows_the_strengths_it_has(tuned, tmp_path):
    axes = plots.heat_map_figure(tuned).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["−1", "0", "+1"]
    assert len(axes.texts) == 6
    write_report(tmp_path / "report.html", tuned)
    page = (tmp_path / "report.html").read_text("utf-8")
    layers = ", ".join(str(candidate.layer_index) for candidate in tuned.candidates)
    assert f"Heat map of layers {layers} at strengths -1, 0, 1." in page
