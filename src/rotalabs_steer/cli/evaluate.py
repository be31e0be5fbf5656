"""The verb `evaluate`: what saved vectors do to a model, and what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from rotalabs_steer.cli.consoles import notes, output, print_json, progress
from rotalabs_steer.cli.layers import layers_of, name_layers
from rotalabs_steer.cli.named_vectors import layers_to_act, load_named, say_not_steering
from rotalabs_steer.cli.options import ActingLayers, Columns, Json, Model, NewTokens, Pairs, Quiet, Template, Vectors
from rotalabs_steer.cli.pairs import parse_columns, read_pairs_of
from rotalabs_steer.errors import OptionError
from rotalabs_steer.steering.strengths_in_text import parse_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from rotalabs_steer.evaluation.vector_evaluation import StrengthEvaluation, VectorEvaluation
    from rotalabs_steer.intervals import Estimate

_REFUSAL = "refusal"
_COLUMNS = 2
"""Strengths in one table, so that it fits 80 columns."""


def evaluate(
    model: Model,
    vectors: Vectors,
    pairs: Pairs = None,
    column: Columns = None,
    strength: Annotated[list[float] | None, typer.Option(help="Repeatable; by default −1 and 1.")] = None,
    layers: ActingLayers = None,
    refusal: Annotated[
        bool | None, typer.Option(help="Answer refusal prompts, too; by default where the behaviour is refusal.")
    ] = None,
    max_new_tokens: NewTokens = 40,
    template: Template = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure what vectors do, and what they cost.

    The effect on held-out pairs, the coherence cost, what the model still knows, and the vector as a detector. The
    pairs are the test pairs of --pairs, by default those of the vectors' own behaviour.

    Example: `rotalabs-steer evaluate sample vectors/formality --strength -1 --strength 1`
    """
    from rotalabs_steer.datasets import load_evaluation
    from rotalabs_steer.evaluation.vector_evaluation import check_strengths, evaluate_vector
    from rotalabs_steer.generation.answers import Sampling

    named = layers_to_act(parse_vectors(vectors), layers_of(layers))
    if named.strength is not None and strength:
        raise OptionError("VECTORS names a strength and --strength does, too. Give one of them.")
    found = load_named(named)
    say_not_steering([found])
    held_out = read_pairs_of(pairs or found.behavior, "test", parse_columns(column))
    strengths = check_strengths(strength or ((-1.0, 1.0) if named.strength is None else (named.strength,)))
    sampling = Sampling(max_new_tokens=max_new_tokens)
    prompts = None
    if refusal or (refusal is None and found.behavior == _REFUSAL):
        examples = load_evaluation(_REFUSAL)
        prompts = tuple([e.prompt for e in side] for side in (examples.positive_examples, examples.negative_examples))
    from rotalabs_steer.cli.loading import load_model

    console = notes(quiet)
    loaded = load_model(model, template, console)
    acting = name_layers(found.acting_layers)
    console.print(f"{loaded}; {found.behavior}: {acting}, {len(held_out)} pairs, scope all")
    with progress(console, "measuring the unsteered model"):
        evaluation = evaluate_vector(
            loaded.network,
            loaded.chat,
            found,
            held_out,
            strengths,
            refusal_prompts=prompts,  # type: ignore[arg-type]
            sampling=sampling,
        )
    if as_json:
        print_json(loaded.facts | {"layers": found.acting_layers, "scope": "all"} | evaluation.to_dict())
    else:
        _print(output(), evaluation)


def _print(console: Console, found: VectorEvaluation) -> None:
    console.print(
        f"{found.behavior}, {name_layers(found.acting_layers)}, {found.pairs} pairs. As a detector: AUROC "
        f"{_rate(found.detection.auroc)}; the positive side scores higher in {found.detection.paired.mean:.0%} of the "
        f"pairs. Perplexity of neutral text, unsteered: {found.unsteered.perplexity:.1f}.",
        highlight=False,
        markup=False,
    )
    for start in range(0, len(found.strengths), _COLUMNS):
        console.print(_table(found.strengths[start : start + _COLUMNS]))


def _table(rows: Sequence[StrengthEvaluation]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("strength", no_wrap=True)
    for row in rows:
        table.add_column(f"{row.strength:+g}", no_wrap=True)
    table.add_row("change of log-odds, nats a token", *(str(row.effect.difference) for row in rows))
    table.add_row("  p value", *(f"{row.effect.p_value:.4f}" for row in rows))
    table.add_row("  pairs that move the wrong way", *(f"{row.wrong_way:.0%}" for row in rows))
    table.add_row("KL, nats a token", *(f"{row.cost.kl:.3f}" for row in rows))
    table.add_row("perplexity", *(f"{row.cost.perplexity:.1f}" for row in rows))
    table.add_row("capability", *(_rate(row.capability.accuracy) for row in rows))
    table.add_row("  unsteered", *(_rate(row.capability.unsteered, interval=False) for row in rows))
    refusals = [row.refusal for row in rows if row.refusal is not None]
    if refusals:
        table.add_row("harmful prompts refused", *(_rate(one.harmful_interval) for one in refusals))
        table.add_row("harmless prompts refused", *(_rate(one.benign_interval) for one in refusals))
    return table


def _rate(rate: Estimate | None, *, interval: bool = True) -> str:
    if rate is None:
        return "–"
    if not interval or rate.low is None:
        return f"{rate.mean:.2f}"
    return f"{rate.mean:.2f} [{rate.low:.2f}, {rate.high:.2f}]"
