"""The verb `extract`: contrast pairs in, a vector for each layer out."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from rotalabs_steer.cli.consoles import notes, print_json, progress
from rotalabs_steer.cli.failures import if_stopped
from rotalabs_steer.cli.layers import layers_of, name_layers
from rotalabs_steer.cli.options import Columns, Json, Model, Pairs, Quiet, Template, layers_option
from rotalabs_steer.cli.pairs import parse_columns, read_pairs_of
from rotalabs_steer.errors import OptionError

METHODS = (
    "mean_difference, mean_centred, pca, pca_differences, lda, logistic, gradient, natural_gradient or "
    "mean_difference_per_cost"
)


def extract(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the vector set.")],
    pairs: Annotated[
        str | None, typer.Argument(help="A built-in behaviour, or a file of pairs; the training pairs are used.")
    ] = None,
    named_pairs: Pairs = None,
    column: Columns = None,
    layers: Annotated[
        list[str] | None, layers_option("0-based decoder layers, such as 10,12 or 8-16; by default all.")
    ] = None,
    method: Annotated[str, typer.Option("--method", "-m", help=f"Extraction method: {METHODS}.")] = "mean_difference",
    position: Annotated[
        str | None,
        typer.Option(help="last, first, mean, response, last_prompt or span; by default the response, else last."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of texts in a batch; by default their tokens decide.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="File for the state of an extraction that is stopped; the next call continues it."),
    ] = None,
    template: Template = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a steering vector for each layer. One pass over contrast pairs reads all layers.

    Example: `rotalabs-steer extract sample formality --output vectors/formality`
    """
    if (pairs is None) is (named_pairs is None):
        raise OptionError("Name the pairs once: a built-in behaviour or a file, after the model or with --pairs.")
    dataset = read_pairs_of(pairs or named_pairs or "", "train", parse_columns(column))
    chosen = layers_of(layers)
    from rotalabs_steer.cli.loading import load_model
    from rotalabs_steer.extraction.extract import check_number_of_pairs, extract_vectors
    from rotalabs_steer.extraction.methods import get_method
    from rotalabs_steer.extraction.readout import check_readout
    from rotalabs_steer.files.formats import check_target

    check_number_of_pairs(dataset)  # mistakes that need no model are found before it is loaded
    get_method(method)
    if position is not None:
        check_readout(position)
    check_target(output)

    console = notes(quiet)
    loaded = load_model(model, template, console)
    console.print(f"{loaded}; {dataset.behavior}: {len(dataset)} pairs, {method}")
    hint = "Run the same command again to go on." if resume else "No vectors were saved; --resume FILE can continue."
    bars = console.is_terminal and not quiet
    with if_stopped(hint), contextlib.nullcontext() if bars else progress(console, "reading activations"):
        vectors = extract_vectors(
            loaded.network,
            loaded.chat,
            dataset,
            chosen,
            method=method,
            token_position=position,
            batch_size=batch_size,
            resume=resume,
            show_progress=bars,
        )
    vectors.save(output)
    if as_json:
        about = {"behavior": vectors.behavior, "pairs": len(dataset), "method": method}
        places = {"layers": vectors.layers, "acting_layers": vectors.acting_layers, "folder": str(output)}
        print_json(loaded.facts | about | places)
    acting = vectors.acting_layers
    acts = f"{name_layers(acting).capitalize()} {'acts' if len(acting) == 1 else 'act'}"
    console.print(
        f"{len(vectors)} vector{'' if len(vectors) == 1 else 's'} of {vectors.behavior} from {len(dataset)} pairs "
        f"({name_layers(vectors.layers)}) saved in {output}. {acts} "
        f"unless you name another, as in --steer {output}:{acting[0]}=1. The set is raw: neither layer nor strength "
        "was chosen by what the model writes, as rotalabs-steer tune does."
    )
