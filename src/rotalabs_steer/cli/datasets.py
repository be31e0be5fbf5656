"""The verbs of `rotalabs-steer datasets`: list, show, check and convert contrast pairs."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from rotalabs_steer.cli.consoles import notes, output, print_json
from rotalabs_steer.cli.dataset_report import Checked, print_checked
from rotalabs_steer.cli.options import Columns, Json, Quiet
from rotalabs_steer.cli.pairs import pairs_file, parse_columns, read_pairs_of
from rotalabs_steer.errors import DatasetError, OptionError

if TYPE_CHECKING:
    from rotalabs_steer.datasets.loading import PairReading
    from rotalabs_steer.datasets.quality import QualityReport

app = typer.Typer(name="datasets", help="List, show, check and convert contrast pairs.", no_args_is_help=True)

Tokenizer = Annotated[
    str | None,
    typer.Option(help="Tokenizer folder or Hugging Face id: lengths are counted in its tokens instead of words."),
]
FileOrName = Annotated[str, typer.Argument(metavar="FILE_OR_NAME", help="A file, or a built-in behaviour.")]


class FileKind(StrEnum):
    """The kinds of files that `convert` writes."""

    JSONL = "jsonl"
    CSV = "csv"
    JSON = "json"


@app.command("list")
def list_behaviors(
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure lengths, and how well single words tell the sides apart.")
    ] = False,
    tokenizer: Tokenizer = None,
    as_json: Json = False,
) -> None:
    """List the built-in behaviours."""
    from rotalabs_steer.datasets import behavior_names, describe_behavior, load_behavior

    counter = _load_tokenizer(tokenizer)
    found: list[dict[str, Any]] = []
    for name in behavior_names():
        about, pairs = describe_behavior(name), load_behavior(name)
        row = {"name": name, "pairs": len(pairs), "categories": len({pair.category for pair in pairs})}
        if measure or counter is not None:
            report = _measure(_built_in(name), about["markers"], counter)
            assert report.bag_of_words is not None
            row[f"length_ratio_in_{report.length_unit}"] = round(report.length_ratio or 0.0, 2)
            row["bag_of_words"] = round(report.bag_of_words.accuracy, 2)
        else:
            row["title"] = about["title"]
        found.append(row)
    if as_json:
        print_json(found)
        return
    table = Table(box=None, pad_edge=False)
    for column in found[0]:
        table.add_column(
            column.replace("_", " "),
            justify="left" if column in {"name", "title"} else "right",
            no_wrap=column == "name",
        )
    for row in found:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    output().print(table)


@app.command()
def show(
    name: FileOrName,
    split: Annotated[str | None, typer.Option(help="Only the pairs of this split: train, validation or test.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many pairs to print; 0 for all.")] = 5,
    column: Columns = None,
    as_json: Json = False,
) -> None:
    """Show a dataset and its first pairs."""
    from rotalabs_steer.chat.conversations import prompt_text
    from rotalabs_steer.datasets.saving import columns_of

    reading = _read(name, column)
    if not reading.pairs:
        raise DatasetError(
            f"None of the {len(reading.problems):,} rows of {name} makes a pair: "
            f"`rotalabs-steer datasets check {name}` says why."
        )
    numbered = list(zip(reading.rows, reading.pairs, strict=True))
    chosen = [(row, pair) for row, pair in numbered if split is None or pair.metadata.get("split") == split]
    if not chosen:
        splits = sorted({str(pair.metadata.get("split")) for pair in reading.pairs} - {"None"})
        raise OptionError(f"{reading.name} has no pairs in the split {split!r}. It has: {', '.join(splits) or 'none'}.")
    shown = chosen[:limit] if limit else chosen
    if as_json:
        rows = [columns_of(pair) for _, pair in shown]
        document = {"behavior": reading.behavior, "description": reading.description, "pairs": rows}
        print_json(document)
        return
    console = output()
    console.print(f"[bold]{escape(reading.behavior)}[/]  {escape(reading.description)}", highlight=False)
    if reading.problems:
        console.print(f"{len(reading.problems):,} rows cannot be used: `rotalabs-steer datasets check` says why.")
    console.print(f"{len(chosen):,} pairs{f', {len(shown)} shown' if len(shown) < len(chosen) else ''}")
    for row, pair in shown:
        console.rule(f"{row}  {escape(pair.category)}", align="left")
        for field, value in columns_of(pair).items():
            if field != "category":
                text = prompt_text(value) if field in {"prompt", "negative_prompt"} else str(value)
                console.print(f"[cyan]{escape(field)}:[/] {escape(text)}", highlight=False)


@app.command()
def check(
    name: FileOrName,
    markers: Annotated[
        list[str] | None,
        typer.Option(help="Words that are the behaviour itself, with commas between them; * stands for any letters."),
    ] = None,
    column: Columns = None,
    tokenizer: Tokenizer = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure pairs and name the faulty rows. Exit code 1 if there are any."""
    from rotalabs_steer.datasets import describe_behavior

    reading = _read(name, column)
    about = describe_behavior(name) if reading.name == name and _is_built_in(name) else {}
    words = [word.strip() for option in markers or () for word in option.split(",")]
    counter = _load_tokenizer(tokenizer)
    with notes(quiet).status("measuring"):
        report = _measure(reading, words or about.get("markers", []), counter) if reading.pairs else None
    checked = Checked.of(reading, report, about.get("unavoidable_cue", ""))
    if as_json:
        print_json(checked.as_json())
    else:
        print_checked(output(), checked)
    if checked.findings:
        sys.exit(1)


@app.command()
def convert(
    source: FileOrName,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    to: Annotated[FileKind | None, typer.Option(help="Kind of file; by default what the name of OUT says.")] = None,
    column: Columns = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write pairs as JSON Lines, CSV or JSON. A row that makes no pair is an error, and nothing is written."""
    from rotalabs_steer.datasets import save_csv, save_jsonl

    suffix = target.suffix.lower().removeprefix(".")
    if to is None and suffix not in set(FileKind):
        raise OptionError(
            f"The name {target} does not say which kind of file to write. Use .jsonl, .csv or .json, or --to."
        )
    pairs = read_pairs_of(source, columns=parse_columns(column))
    kind = to or FileKind(suffix)
    if kind is FileKind.JSON:
        pairs.save(target)
    else:
        (save_jsonl if kind is FileKind.JSONL else save_csv)(pairs, target)
    if as_json:
        print_json({"behavior": pairs.behavior, "pairs": len(pairs), "kind": kind.value, "file": str(target)})
    notes(quiet).print(f"{len(pairs):,} pair{'' if len(pairs) == 1 else 's'} written to {target}")


def _read(name: str, column: list[str] | None) -> PairReading:
    from rotalabs_steer.datasets.loading import read_pairs

    columns = parse_columns(column)
    if not _is_built_in(name):
        return read_pairs(pairs_file(name), columns=columns)
    if columns:
        raise OptionError(f"--column is for files; {name} is a built-in behaviour, which has no columns.")
    return _built_in(name)


def _is_built_in(name: str) -> bool:
    from rotalabs_steer.datasets import behavior_names

    return name in behavior_names()


def _built_in(name: str) -> PairReading:
    from rotalabs_steer.datasets import load_behavior
    from rotalabs_steer.datasets.loading import PairReading

    dataset = load_behavior(name)
    return PairReading(name, name, dataset.description, tuple(dataset), tuple(range(1, len(dataset) + 1)), ())


def _measure(reading: PairReading, markers: list[str], tokenizer: Any) -> QualityReport:
    from rotalabs_steer.datasets import check_pairs

    return check_pairs(reading.pairs, tokenizer, markers, reading.rows)


def _load_tokenizer(name: str | None) -> Any:
    if name is None:
        return None
    from transformers import AutoTokenizer

    from rotalabs_steer.model.loading import resolve_source

    return AutoTokenizer.from_pretrained(resolve_source(name))
