"""What `rotalabs-steer datasets check` says about a dataset."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from rotalabs_steer.datasets.loading import name_rows, rows_by_reason
from rotalabs_steer.datasets.quality import Finding

if TYPE_CHECKING:
    from rich.console import Console

    from rotalabs_steer.datasets.loading import PairReading
    from rotalabs_steer.datasets.quality import QualityReport

_SHOWN = 10
_CUE_MEASURES = ("length", "words")


@dataclass(frozen=True)
class Checked:
    """Measures of a dataset and its findings. `known` are the findings that a built-in behaviour's card declares."""

    name: str
    rows: int
    report: QualityReport | None
    findings: tuple[Finding, ...]
    known: tuple[Finding, ...]
    unavoidable_cue: str

    @classmethod
    def of(cls, reading: PairReading, report: QualityReport | None, unavoidable_cue: str) -> Self:
        """Lists rows that make no pair first, then the findings on all others."""
        faults = [Finding("row", reason, tuple(rows)) for reason, rows in rows_by_reason(reading.problems).items()]
        measured = report.findings if report else ()
        known = [finding for finding in measured if unavoidable_cue and finding.measure in _CUE_MEASURES]
        findings = faults + [finding for finding in measured if finding not in known]
        total = len(reading.rows) + len(reading.problems)
        return cls(reading.name, total, report, tuple(findings), tuple(known), unavoidable_cue)

    def as_json(self) -> dict[str, Any]:
        """Measures and findings as JSON values."""
        measures = dataclasses.asdict(self.report) if self.report else {"pairs": 0}
        measures.pop("findings", None)
        return {
            "source": self.name,
            "rows": self.rows,
            **measures,
            "unavoidable_cue": self.unavoidable_cue,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "known": [dataclasses.asdict(finding) for finding in self.known],
        }


def print_checked(console: Console, checked: Checked) -> None:
    """Prints the measures, then the findings by kind, with their rows."""

    def say(text: str = "", style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    pairs = checked.report.pairs if checked.report else 0
    say(f"{checked.name}: {checked.rows:,} row{_s(checked.rows)}, {pairs:,} pair{_s(pairs)}", "bold")
    for label, value in _measures(checked.report):
        say(f"  {label:11} {value}")
    for finding in checked.known:
        say(f"  known: {finding.reason}")
    if checked.known:
        say(f"  The card of the behaviour names the cue: {checked.unavoidable_cue}.")
    if not checked.findings:
        say("No findings.", "green")
        return
    say(f"{len(checked.findings):,} finding{_s(len(checked.findings))}:", "bold red")
    for measure in dict.fromkeys(finding.measure for finding in checked.findings):
        found = [finding for finding in checked.findings if finding.measure == measure]
        for finding in found[:_SHOWN]:
            say(f"  {name_rows(finding.rows, _SHOWN) if finding.rows else 'all rows'}: {finding.reason}")
        if len(found) > _SHOWN:
            say(f"  and {len(found) - _SHOWN:,} more about {measure}; --json prints them all.")


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _measures(report: QualityReport | None) -> list[tuple[str, str]]:
    if report is None:
        return []
    splits = ", ".join(f"{name} {count:,}" for name, count in report.splits.items())
    lengths = "no responses"
    if report.length_ratio is not None:
        lengths = (
            f"{report.positive_length:.1f} {report.length_unit} positive, {report.negative_length:.1f} negative, "
            f"ratio {report.length_ratio:.2f}"
        )
    words = "not measured: fewer than ten pairs with different responses, or no words besides the markers"
    bag = report.bag_of_words
    if bag is not None:
        words = (
            f"tell the sides apart with accuracy {bag.accuracy:.2f} ({bag.low:.2f} to {bag.high:.2f}); {bag.method}, "
            f"{bag.tested_pairs:,} pairs tested"
        )
    return [
        ("splits", splits or "none named"),
        ("categories", f"{len(report.categories):,}" if report.categories else "none named"),
        ("length", lengths),
        ("words", words),
    ]
