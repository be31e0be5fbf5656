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
    from rotalabs_steer.reporting.extra_measurements import Evidence, ProjectedAnswers
    from rotalabs_steer.tuning.result import TunedSteering

_STRENGTHS = {-1.0: "strength −1", 0.0: "unsteered", 1.0: "strength +1"}


def write_report(
    path: str | os.PathLike[str],
    tuned: TunedSteering,
    sides: Mapping[str, str] | None = None,
    evidence: Evidence | None = None,
) -> None:
    """Writes the report. Missing folders are made.

    Args:
        sides: a sentence each that says what "positive" and "negative" mean.
        evidence: what `gather_evidence` measured. Without it the report says how to add it.

    Raises:
        MissingDependencyError: matplotlib or jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise missing_dependency("The report", "plot", error) from error

    template = files("rotalabs_steer.reporting").joinpath("data/report.html.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"signed": _signed, "interval": _interval, "svg": _svg, "prompt_text": prompt_text}
    environment.filters["plain"] = "{:g}".format
    model = shown_model_name(str(tuned.provenance.get("model") or tuned.vectors.model_name))
    tuned = dataclasses.replace(tuned, provenance={**tuned.provenance, "model": model})
    page = environment.from_string(template).render(
        tuned=tuned,
        model=model,
        sides=sides or {},
        evidence=evidence,
        plots=plots,
        strengths=_STRENGTHS,
        texts={strength: measure_texts(tuned.answers.texts[strength]) for strength in _STRENGTHS},
        projected=_projected(evidence.projected) if evidence else [],
        legend=[color_of(step / 2) for step in (-2, -1, 0, 1, 2)],
        provenance=_flat(tuned.provenance),
        records=json.dumps(report_records(tuned, evidence), indent=1, ensure_ascii=False),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.encode())


def report_records(tuned: TunedSteering, evidence: Evidence | None = None) -> dict[str, Any]:
    """Every number of the report, as JSON values."""
    return tuned.to_record() | {"evidence": to_json(evidence)}


def _svg(figure: Figure, label: str) -> str:
    """The figure as an element of the page, with text as text and with ids that no other figure has."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": label, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    # Without the XML header, and without the groups' ids, which are the same in every figure.
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def _projected(answers: Sequence[ProjectedAnswers]) -> list[dict[str, Any]]:
    """The coloured texts of each strength."""
    texts = {row.strength: row.texts for row in answers}
    scale = ColorScale.of(texts[0.0], [*texts[-1.0], *texts[1.0]])
    return [
        {"name": name, "texts": list(map(scale.color_tokens, texts[strength]))} for strength, name in _STRENGTHS.items()
    ]


def _interval(estimate: Estimate) -> str:
    """An interval in words, or that there is none."""
    if estimate.low is None or estimate.high is None:
        return "no interval: the values are too few or too much alike"
    return f"95 % interval {_signed(estimate.low)} to {_signed(estimate.high)}"


def _signed(value: float, digits: int = 2) -> str:
    rounded = round(value, digits) + 0.0  # no minus before a zero
    return f"{rounded:+.{digits}f}".replace("-", "−")


def _flat(record: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """A nested record as one table, with the names of the levels joined by colons."""
    rows: dict[str, str] = {}
    for name, value in record.items():
        label = f"{before}{name.replace('_', ' ')}"
        if isinstance(value, dict):
            rows |= _flat(value, f"{label}: ")
        else:
            rows[label] = "default" if value is None else str(value)
    return rows
