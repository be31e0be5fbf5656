"""The HTML report of a tuning: one self-contained file."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.chat.conversations import prompt_text
from rotalabs_steer.errors import missing_dependency
from rotalabs_steer.files.atomic import write_atomically
from rotalabs_steer.files.names import shown_model_name
from rotalabs_steer.files.records import to_json
from rotalabs_steer.measures.projected_text import ColorScale, color_of
from rotalabs_steer.measures.text_statistics import measure_texts
from rotalabs_steer.reporting import plots

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from rotalabs_steer.intervals import Estimate
    from rotalabs_steer.measures.coherence import CoherenceCost
    from rotalabs_steer.reporting.extra_measurements import Evidence, ProjectedAnswers
    from rotalabs_steer.tuning.result import TunedSteering

_SIGNS = (-1.0, 0.0, 1.0)
_STRENGTH_NAMES = {-1.0: "strength −1", 0.0: "unsteered", 1.0: "strength +1"}


def write_report(
    path: str | os.PathLike[str],
    tuned: TunedSteering,
    sides: Mapping[str, str] | None = None,
    evidence: Evidence | None = None,
) -> None:
    """Writes the report. Missing folders are made.

    Args:
        sides: what "positive" and "negative" mean, in a sentence each.
        evidence: what `gather_evidence` measured; without it the report says how to add it.

    Raises:
        MissingDependencyError: matplotlib or jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise missing_dependency("The report", "plot", error) from error

    template = files("rotalabs_steer.reporting").joinpath("data/report.html.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["signed"] = _signed
    environment.filters["interval"] = _interval
    model = shown_model_name(str(tuned.provenance.get("model") or tuned.vectors.model_name))
    tuned = dataclasses.replace(tuned, provenance={**tuned.provenance, "model": model})
    page = environment.from_string(template).render(
        tuned=tuned,
        model=model,
        sides=sides or {},
        evidence=evidence,
        figures=_figures(tuned),
        answers=_side_by_side(tuned),
        measures={_STRENGTH_NAMES[sign]: measure_texts(tuned.answers.texts[sign]) for sign in _SIGNS},
        costs={_STRENGTH_NAMES[sign]: cost_at(tuned, sign) for sign in _SIGNS},
        projected=_projected(evidence.projected) if evidence else [],
        legend=[color_of(step / 2) for step in (-2, -1, 0, 1, 2)],
        provenance=_flat(tuned.provenance),
        records=json.dumps(report_records(tuned, evidence), indent=1, ensure_ascii=False),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.encode())


def report_records(tuned: TunedSteering, evidence: Evidence | None = None) -> dict[str, Any]:
    """Every number of the report as JSON has it."""
    return tuned.to_record() | {"evidence": to_json(evidence)}


def cost_at(tuned: TunedSteering, strength: float) -> CoherenceCost:
    """What a measured strength costs on neutral text, at the chosen layer."""
    return tuned.curve.costs[tuned.curve.fractions.index(strength)]


def _figures(tuned: TunedSteering) -> list[dict[str, str]]:
    """The pictures as SVG, each with its title, what it shows and what a reader who does not see it should know."""
    effect, control = tuned.curve.effect, tuned.control.effect
    layers = ", ".join(str(finalist.layer_index) for finalist in tuned.finalists)
    rows = [
        (
            plots.propensity_figure,
            "Effect on held-out pairs",
            f"Log-odds of a positive response over a negative one, change against the unsteered model on "
            f"{len(tuned.curve.effects)} test pairs, with 95 % intervals. Dashed: a random direction of the "
            "same cost.",
            f"Line chart. Effect at strength 1: {effect} nats per token; of a random direction: {control}.",
        ),
        (
            plots.tradeoff_figure,
            "Effect against coherence cost",
            "Half the difference of the log-odds at plus and minus a strength, against what that strength costs on "
            "neutral text. The star is strength 1.",
            f"Line chart. The chosen layer reaches {effect.mean:+.2f} nats per token at a cost of "
            f"{(cost_at(tuned, 1.0).kl + cost_at(tuned, -1.0).kl) / 2:.2f}; the budget is {tuned.budget:g}.",
        ),
        (
            plots.heat_map_figure,
            "Layer by strength",
            "Mean change of the validation pairs' log-odds at the layers that were steered. What the model writes "
            "decides between them, not this.",
            f"Heat map of layers {layers} at strengths {', '.join(f'{f:g}' for f in tuned.compared_fractions)}.",
        ),
        (
            plots.first_order_figure,
            "Where to look: all layers to first order",
            "Gain in log-odds for a given cost, from one backward pass. Dark: layers that were then steered.",
            f"Bar chart of {len(tuned.first_order_scores)} layers. Steered were layers {layers}; chosen was "
            f"{tuned.layer_index}.",
        ),
    ]
    return [
        {"title": title, "caption": caption, "svg": _svg(draw(tuned), label)} for draw, title, caption, label in rows
    ]


def _svg(figure: Figure, label: str) -> str:
    """The figure as an element of the page: its letters are text, its ids do not clash with another's."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": label, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def _side_by_side(tuned: TunedSteering) -> list[dict[str, Any]]:
    answers = tuned.answers
    return [
        {
            "prompt": prompt_text(prompt),
            "sides": [
                {
                    "name": _STRENGTH_NAMES[sign],
                    "text": answers.texts[sign][number],
                    "score": answers.scores[sign][number],
                }
                for sign in _SIGNS
            ],
        }
        for number, prompt in enumerate(answers.prompts)
    ]


def _projected(answers: Sequence[ProjectedAnswers]) -> list[dict[str, Any]]:
    """The coloured texts of each strength."""
    texts = {row.strength: row.texts for row in answers}
    scale = ColorScale.of(texts[0.0], [text for sign in _SIGNS if sign for text in texts[sign]])
    return [{"name": _STRENGTH_NAMES[sign], "texts": list(map(scale.color_tokens, texts[sign]))} for sign in _SIGNS]


def _interval(estimate: Estimate) -> str:
    """An interval in words, or that there is none."""
    if estimate.low is None or estimate.high is None:
        return "no interval: the values are too few or too much alike"
    return f"95 % interval {_signed(estimate.low)} to {_signed(estimate.high)}"


def _signed(value: float, digits: int = 2) -> str:
    rounded = round(value, digits) + 0.0  # no minus before a zero
    return f"{rounded:+.{digits}f}".replace("-", "−")


def _flat(record: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Nested facts as one table."""
    rows: dict[str, str] = {}
    for name, value in record.items():
        label = f"{before}{name.replace('_', ' ')}"
        if isinstance(value, dict):
            rows |= _flat(value, f"{label}: ")
        else:
            rows[label] = "default" if value is None else str(value)
    return rows
