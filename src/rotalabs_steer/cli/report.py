"""The verb `report`: a saved tuning as a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rotalabs_steer.cli.pairs import Columns, parse_columns, read_pairs_of


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a tuning, as `rotalabs-steer tune` wrote it.")],
    output: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    model: Annotated[
        str | None,
        typer.Option(
            help="Model folder, Hugging Face id, or `sample`: also measures which tokens carry the behaviour and what "
            "the model still knows. Kept beside the tuning, for the next report."
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(help="With --model: a built-in behaviour or a file; its test pairs are told apart by the vector."),
    ] = None,
    column: Columns = None,
    as_json: Annotated[bool, typer.Option("--json", help="Also print every number as JSON.")] = False,
) -> None:
    """One self-contained HTML file with the evidence of a tuning."""
    import json

    from rotalabs_steer.datasets import behavior_names, describe_behavior
    from rotalabs_steer.errors import OptionError
    from rotalabs_steer.evaluation.evidence import Evidence, gather_evidence
    from rotalabs_steer.evaluation.report import report_records, write_report
    from rotalabs_steer.evaluation.tuned import TunedSteering

    if pairs is not None and model is None:
        raise OptionError("--pairs are told apart by a model: give --model too.")
    if output.is_dir():
        raise OptionError(f"{output} is a folder; give the name of the HTML file to write.")
    if column and pairs is None:
        raise OptionError("--column is for a file of pairs: give --pairs, too.")
    tuned = TunedSteering.load(folder)
    evidence = Evidence.load(folder)
    if model is not None:
        given = None if pairs is None else read_pairs_of(pairs, "test", parse_columns(column))
        from rotalabs_steer.cli.loading import load_model

        with Console(stderr=True).status("measuring"):
            evidence = gather_evidence(*load_model(model), tuned, given)
        evidence.save(folder)
    sides = describe_behavior(tuned.behavior) if tuned.behavior in behavior_names() else None
    write_report(output, tuned, sides, evidence)
    if as_json:
        typer.echo(json.dumps(report_records(tuned, evidence), indent=2, ensure_ascii=False))
    Console(stderr=True).print(f"{tuned}\nReport: {output.resolve()}", highlight=False, markup=False, soft_wrap=True)
