"""The verb `report`: the evidence of a saved tuning as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rotalabs_steer.cli.consoles import notes, print_json, progress
from rotalabs_steer.cli.options import Columns, Json, Pairs, Quiet
from rotalabs_steer.cli.pairs import parse_columns, read_pairs_of


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a tuning, as `rotalabs-steer tune` wrote it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path("report.html"),
    model: Annotated[
        str | None,
        typer.Option(
            help="Model folder, Hugging Face id, or `sample`: also measures which tokens carry the behaviour and what "
            "the model still knows. Kept beside the tuning, for the next report."
        ),
    ] = None,
    pairs: Pairs = None,
    column: Columns = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the evidence of a tuning as a page. It is one HTML file that needs no other.

    With --model, the report also shows how well the vector tells the test pairs of --pairs apart.

    Example: `rotalabs-steer report tuned/formality --output report.html`
    """
    from rotalabs_steer.datasets import behavior_names, describe_behavior
    from rotalabs_steer.errors import OptionError
    from rotalabs_steer.reporting.extra_measurements import Evidence, gather_evidence
    from rotalabs_steer.reporting.html_report import report_records, write_report
    from rotalabs_steer.tuning.result import TunedSteering

    if pairs is not None and model is None:
        raise OptionError("--pairs are told apart by a model: give --model too.")
    if output.is_dir():
        raise OptionError(f"{output} is a folder; give the name of the HTML file to write.")
    if column and pairs is None:
        raise OptionError("--column is for a file of pairs: give --pairs, too.")
    console = notes(quiet)
    tuned = TunedSteering.load(folder)
    evidence = Evidence.load(folder)
    if model is not None:
        given = None if pairs is None else read_pairs_of(pairs, "test", parse_columns(column))
        from rotalabs_steer.cli.loading import load_model

        loaded = load_model(model, console=console)
        console.print(f"{loaded}; {tuned.behavior}: layer {tuned.layer_index}")
        with progress(console, "measuring what the report shows"):
            evidence = gather_evidence(loaded.network, loaded.chat, tuned, given)
        evidence.save(folder)
    sides = describe_behavior(tuned.behavior) if tuned.behavior in behavior_names() else None
    write_report(output, tuned, sides, evidence)
    if as_json:
        print_json(report_records(tuned, evidence))
    console.print(f"{tuned}\nReport: {output.resolve()}")
