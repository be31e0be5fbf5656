"""The verb `tune`: behaviours in, vectors at a calibrated strength out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from rotalabs_steer.cli.consoles import notes, print_json, progress
from rotalabs_steer.cli.consoles import output as results
from rotalabs_steer.cli.extraction import METHODS
from rotalabs_steer.cli.failures import if_stopped
from rotalabs_steer.cli.options import Columns, Json, Model, NewTokens, Quiet, SeveralPairs, Template
from rotalabs_steer.cli.pairs import parse_columns, read_pairs_of
from rotalabs_steer.errors import OptionError
from rotalabs_steer.files.names import check_behavior_folder, folded
from rotalabs_steer.integrations.template_options import parse_template_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rotalabs_steer.datasets import ContrastPairDataset
    from rotalabs_steer.tuning.result import TunedSteering


def tune(
    model: Model,
    pairs: Annotated[
        list[str] | None,
        typer.Argument(help="Built-in behaviours, or files of pairs with prompts; by default all built-in behaviours."),
    ] = None,
    named_pairs: SeveralPairs = None,
    column: Columns = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder; each behaviour gets one of its own in it.")
    ] = Path("tuned"),
    budget: Annotated[
        float,
        typer.Option(help="Coherence budget: the most KL on neutral text that strength 1 costs, nats per token."),
    ] = 0.2,
    candidates: Annotated[
        int,
        typer.Option("--candidates", "--finalists", help="How many candidate layers to steer before choosing one."),
    ] = 3,
    method: Annotated[str, typer.Option("--method", "-m", help=f"Extraction method: {METHODS}.")] = "mean_difference",
    position: Annotated[
        str | None, typer.Option(help="Tokens to read: last, response, … By default both of these are tried.")
    ] = None,
    refine: Annotated[
        bool, typer.Option(help="Also try the chosen vector turned towards the model's gradient.")
    ] = True,
    judge: Annotated[
        str,
        typer.Option(help="The answers' judge: meaning (sentence embeddings), words, or auto (meaning if installed)."),
    ] = "auto",
    prompts: Annotated[int, typer.Option(help="How many prompts of a split to answer.")] = 12,
    max_new_tokens: NewTokens = 32,
    processes: Annotated[
        int, typer.Option(help="Behaviours tuned at once, each with a model of its own; for processor cores.", min=1)
    ] = 1,
    template: Template = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Choose a layer and a strength that steer.

    What the model writes decides, and pairs that were used for nothing else check the choice. If it is stopped, the
    same command continues it.

    Example: `rotalabs-steer tune sample formality --output tuned`
    """
    from rotalabs_steer.extraction.methods import get_method
    from rotalabs_steer.extraction.readout import check_readout
    from rotalabs_steer.tuning.options import TuningOptions
    from rotalabs_steer.tuning.tuner import Tuner

    get_method(method)
    if position is not None:
        check_readout(position)
    options = TuningOptions(
        method=method,
        token_position=position,
        refine=refine,
        judge_by=judge,
        budget=budget,
        candidates=candidates,
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        template_options=parse_template_options(template),
    )
    datasets = _datasets([*(pairs or ()), *(named_pairs or ())], parse_columns(column))
    if output.exists() and not output.is_dir():
        raise OptionError(f"{output} is a file; each behaviour gets a folder of its own in --output. Name a folder.")
    from rotalabs_steer.cli.loading import load_model
    from rotalabs_steer.cli.tuning_processes import tune_side_by_side
    from rotalabs_steer.model.loading import resolve_model

    console = notes(quiet)

    def say(tuned: TunedSteering) -> None:
        console.print(str(tuned))

    processes = min(processes, len(datasets))
    facts: dict[str, Any] = {"model": model}
    found: list[TunedSteering] = []
    with if_stopped("Run the same command again to go on from the last finished step."):
        if processes > 1:
            place = resolve_model(model)  # two processes must not make the sample model at once
            with progress(console, f"tuning {len(datasets)} behaviours on {model}, {processes} at once"):
                found = tune_side_by_side(place, options, datasets, output, processes, say)
        else:
            loaded = load_model(model, options.template_options, console)
            facts = loaded.facts
            console.print(f"{loaded}; tuning {', '.join(dataset.behavior for dataset in datasets)}")
            tuner = Tuner(loaded.network, loaded.chat, options, show_progress=False)
            for dataset in datasets:
                step = partial(_step, dataset.behavior)
                with progress(console, step("extracting the vectors of all layers"), step):
                    found.append(tuner.tune(dataset, output / dataset.behavior))
                say(found[-1])
    if as_json:
        print_json([facts | _summary(tuned, output) for tuned in found])
    else:
        print_table(found)
        console.print(f"Saved in {output}. Look at one with: rotalabs-steer report {output / found[0].behavior}")


_STEPS = {
    "scores": "scoring the layers",
    "refinement": "turning the vector towards the model's gradient",
    "safe range": "finding the safe strengths",
    "test": "measuring the chosen layer on the test pairs",
    "control": "measuring a random direction",
    "answers": "answering the test prompts",
    "judge accuracy": "measuring the judge",
}


def _step(behavior: str, name: str) -> str:
    """The line for a step of the tuner."""
    steering = name.replace("layer", "steering layer") if name.startswith("layer ") else name
    return f"{behavior}: {_STEPS.get(name, steering)}"


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
    acting = {"layers": tuned.vectors.acting_layers, "scope": "all", "seed": 0}  # what the tuner steers and draws with
    return {name: record[name] for name in names} | acting | {"folder": str(output / tuned.behavior)}


def print_table(found: Sequence[TunedSteering]) -> None:
    """A table that fits 80 columns."""
    table = Table(box=None, pad_edge=False)
    for column in ("behaviour", "layer", "log-odds a token", "answers", "steers"):
        table.add_column(column, no_wrap=True)
    for tuned in found:
        effects = (tuned.curve.effect, tuned.answers.change)
        table.add_row(tuned.behavior, str(tuned.layer_index), *map(str, effects), tuned.verdict)
    console = results()
    console.print(table)
    controls = [tuned.control.effect.mean for tuned in found]
    console.print(f"Random directions at the same cost: {min(controls):+.2f} to {max(controls):+.2f} nats a token.")
