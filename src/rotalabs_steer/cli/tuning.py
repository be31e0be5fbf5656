"""The verb `tune`: behaviours in, vectors at a strength that is known to work out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rotalabs_steer.cli.pairs import Columns, parse_columns, read_pairs_of
from rotalabs_steer.cli.template_options import Template  # noqa: TC001 - typer reads the annotation
from rotalabs_steer.errors import OptionError
from rotalabs_steer.files.names import check_behavior_folder, folded
from rotalabs_steer.integrations.template_options import parse_template_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rotalabs_steer.datasets import ContrastPairDataset
    from rotalabs_steer.evaluation.tuned import TunedSteering


def tune(
    model: Annotated[str, typer.Argument(help="Model folder, Hugging Face id, or `sample`.")],
    behavior: Annotated[
        list[str] | None,
        typer.Option(help="A built-in behaviour, or a file of pairs with prompts. Repeatable; default: all built in."),
    ] = None,
    column: Columns = None,
    output: Annotated[Path, typer.Option(help="Folder; each behaviour gets one of its own in it.")] = Path("tuned"),
    budget: Annotated[float, typer.Option(help="KL on neutral text that strength 1.0 may cost, nats per token.")] = 0.2,
    finalists: Annotated[int, typer.Option(help="Layers that are steered to choose between them.")] = 3,
    prompts: Annotated[int, typer.Option(help="Prompts of a split that are answered.")] = 12,
    max_new_tokens: Annotated[int, typer.Option(help="An answer is cut there.")] = 32,
    processes: Annotated[
        int, typer.Option(help="Behaviours tuned at once, each with a model of its own; for processor cores.", min=1)
    ] = 1,
    template: Template = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Chooses layer and strength by what the model writes, and checks the choice on pairs used for nothing else.

    Stopped, it goes on where it was when it is called again.
    """
    from rotalabs_steer.evaluation.tuning import Tuner, TuningOptions

    options = TuningOptions(
        budget=budget,
        finalists=finalists,
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        template_options=parse_template_options(template),
    )
    datasets = _datasets(behavior, parse_columns(column))
    if output.exists() and not output.is_dir():
        raise OptionError(f"{output} is a file; each behaviour gets a folder of its own in --output. Name a folder.")
    from rotalabs_steer.cli.loading import load_model
    from rotalabs_steer.cli.tuning_processes import tune_side_by_side

    console = Console(stderr=True)

    def say(tuned: TunedSteering) -> None:
        console.print(str(tuned), highlight=False, markup=False)

    processes = min(processes, len(datasets))
    if processes > 1:
        found = tune_side_by_side(model, options, datasets, output, processes, say)
    else:
        tuner, found = Tuner(*load_model(model, options.template_options), options), []
        for dataset in datasets:
            found.append(tuner.tune(dataset, output / dataset.behavior))
            say(found[-1])
    if as_json:
        typer.echo(json.dumps([_summary(tuned, output) for tuned in found], indent=2, ensure_ascii=False))
    else:
        print_table(found)
        console.print(f"Saved in {output}. Look at one with: rotalabs-steer report {output / found[0].behavior}")


def _datasets(names: Sequence[str] | None, columns: Mapping[str, str] | None = None) -> list[ContrastPairDataset]:
    """The pairs of each behaviour, if they can be tuned and each can have a folder of its own."""
    from rotalabs_steer.datasets import behavior_names
    from rotalabs_steer.datasets.splits import split_pairs

    datasets = [read_pairs_of(name, columns=columns) for name in names or behavior_names()]
    folders: dict[str, str] = {}
    for dataset in datasets:
        split_pairs(dataset)  # pairs that cannot be tuned are an error before a model is loaded
        folder = folded(check_behavior_folder(dataset.behavior))
        if folder in folders:
            raise OptionError(
                f"Two of the behaviours are called {', '.join(dict.fromkeys((folders[folder], dataset.behavior)))}; "
                "each needs a folder of its own."
            )
        folders[folder] = dataset.behavior
    return datasets


def _summary(tuned: TunedSteering, output: Path) -> dict[str, Any]:
    record = tuned.to_record()
    names = ("behavior", "steers", "verdict", "layer", "effect", "answers_change", "budget_kl", "judge_accuracy")
    return {name: record[name] for name in names} | {"folder": str(output / tuned.behavior)}


def print_table(found: Sequence[TunedSteering]) -> None:
    """A table that fits 80 columns."""
    table = Table(box=None, pad_edge=False)
    for column in ("behaviour", "layer", "log-odds a token", "answers", "steers"):
        table.add_column(column, no_wrap=True)
    for tuned in found:
        effects = (tuned.curve.effect, tuned.answers.change)
        table.add_row(tuned.behavior, str(tuned.layer_index), *map(str, effects), tuned.verdict)
    console = Console()
    console.print(table)
    controls = [tuned.control.effect.mean for tuned in found]
    console.print(f"Random directions at the same cost: {min(controls):+.2f} to {max(controls):+.2f} nats a token.")
