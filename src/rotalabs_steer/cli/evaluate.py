"""The verb `evaluate`: what saved vectors do to a model, and what that costs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from rotalabs_steer.cli.pairs import Columns, parse_columns, read_pairs_of
from rotalabs_steer.cli.template_options import Template  # noqa: TC001 - typer reads the annotation
from rotalabs_steer.integrations.template_options import parse_template_options

if TYPE_CHECKING:
    from rotalabs_steer.evaluation.vector_evaluation import VectorEvaluation
    from rotalabs_steer.intervals import Estimate

_REFUSAL = "refusal"


def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder, Hugging Face id, or `sample`.")],
    vectors: Annotated[
        str, typer.Argument(help="A vector set: a path, or OWNER/NAME or OWNER/NAME@REVISION on the Hub.")
    ],
    pairs: Annotated[
        str | None,
        typer.Option(
            "--pairs",
            "--behavior",
            help="A built-in behaviour, or a file: of either the test pairs. By default the vectors' own behaviour.",
        ),
    ] = None,
    column: Columns = None,
    strength: Annotated[list[float] | None, typer.Option(help="Repeatable; by default −1 and 1.")] = None,
    layer: Annotated[
        int | None, typer.Option(help="The one layer that acts, in place of the set's acting layers.")
    ] = None,
    refusal: Annotated[
        bool | None, typer.Option(help="Answer refusal prompts, too; by default where the behaviour is refusal.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="An answer is cut there.")] = 40,
    template: Template = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Effect on held-out pairs, coherence cost, what the model still knows, and the vector as a detector."""
    from rotalabs_steer.acting import at_layer
    from rotalabs_steer.datasets import load_evaluation
    from rotalabs_steer.evaluation.answers import Sampling
    from rotalabs_steer.evaluation.vector_evaluation import check_strengths, evaluate_vector
    from rotalabs_steer.integrations.vector_sources import load_vectors

    found = load_vectors(vectors)
    chosen = at_layer(found, layer)
    held_out = read_pairs_of(pairs or found.behavior, "test", parse_columns(column))
    strengths = check_strengths(strength or (-1.0, 1.0))
    sampling = Sampling(max_new_tokens=max_new_tokens)
    prompts = None
    if refusal if refusal is not None else found.behavior == _REFUSAL:
        examples = load_evaluation(_REFUSAL)
        prompts = tuple([e.prompt for e in side] for side in (examples.positive_examples, examples.negative_examples))
    from rotalabs_steer.cli.loading import load_model

    with Console(stderr=True).status("measuring"):
        evaluation = evaluate_vector(
            *load_model(model, parse_template_options(template)),
            chosen,
            held_out,
            strengths,
            refusal_prompts=prompts,  # type: ignore[arg-type]
            sampling=sampling,
        )
    if as_json:
        typer.echo(json.dumps(evaluation.to_dict(), indent=2, ensure_ascii=False))
    else:
        _print(Console(), evaluation)


def _print(console: Console, found: VectorEvaluation) -> None:
    console.print(
        f"{found.behavior}, {_layers(found.acting_layers)}, {found.pairs} pairs. As a detector: AUROC "
        f"{_rate(found.detection.auroc)}; the positive side scores higher in {found.detection.paired.mean:.0%} of the "
        f"pairs. Perplexity of neutral text, unsteered: {found.unsteered.perplexity:.1f}.",
        highlight=False,
        markup=False,
    )
    refusals = any(row.refusal for row in found.strengths)
    columns = ["strength", "change of log-odds, nats per token", "p", "wrong way", "KL", "perplexity", "capability"]
    table = Table(box=None, pad_edge=False)
    for column in [*columns, "refused: harmful", "harmless"] if refusals else columns:
        table.add_column(column)
    for row in found.strengths:
        cells = [
            f"{row.strength:+g}",
            str(row.effect.difference),
            f"{row.effect.p_value:.4f}",
            f"{row.wrong_way:.0%}",
            f"{row.cost.kl:.3f}",
            f"{row.cost.perplexity:.1f}",
            f"{_rate(row.capability.accuracy)}, unsteered {_rate(row.capability.unsteered, interval=False)}",
        ]
        if row.refusal is not None:
            cells += [_rate(row.refusal.harmful_interval), _rate(row.refusal.benign_interval)]
        table.add_row(*cells)
    console.print(table)


def _layers(acting: tuple[int, ...]) -> str:
    return f"layer {acting[0]}" if len(acting) == 1 else f"layers {', '.join(map(str, acting))} together"


def _rate(rate: Estimate | None, *, interval: bool = True) -> str:
    if rate is None:
        return "–"
    if not interval or rate.low is None:
        return f"{rate.mean:.2f}"
    return f"{rate.mean:.2f} [{rate.low:.2f}, {rate.high:.2f}]"
