"""The main job from end to end: pairs in; layer, strength, steered text, vectors and a report out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from rotalabs_steer.chat.conversations import prompt_text
from rotalabs_steer.cli.loading import load_model
from rotalabs_steer.datasets import ContrastPairDataset, behavior_names, describe_behavior, load_behavior
from rotalabs_steer.datasets.splits import split_pairs, spread
from rotalabs_steer.extraction import extract_caa_vectors
from rotalabs_steer.generation.continuation import generate_texts, generate_tokens
from rotalabs_steer.measures.coherence import CoherenceProbe
from rotalabs_steer.model.decoder import decoder_layers
from rotalabs_steer.reporting.extra_measurements import gather_evidence
from rotalabs_steer.reporting.html_report import write_report
from rotalabs_steer.steering.injection import ActivationInjector, MultiVectorInjector
from rotalabs_steer.tuning.tuner import tune
from rotalabs_steer.vectors import SteeringVectorSet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console
    from torch import nn

    from rotalabs_steer.chat.conversations import Prompt
    from rotalabs_steer.tuning.result import TunedSteering

_PAIRS = {"train": 60, "validation": 10, "test": 20}
_PROMPTS = 8
_PROMPTS_SHOWN = 3
_NEW_TOKENS = 40


def run_demo(
    console: Console, model_name: str, behavior: str, output: Path, template: Sequence[str] | None = None
) -> None:
    """Runs the demo, printing as it goes."""
    about = describe_behavior(behavior)  # an unknown behaviour is an error before a model is loaded
    started = time.perf_counter()

    console.rule("[bold]1  The model")
    loaded = load_model(model_name, template)
    model, tokenizer = loaded.network, loaded.chat
    console.print(f"{loaded}: {len(decoder_layers(model))} layers", highlight=False)

    console.rule(f"[bold]2  Vectors of [cyan]{behavior}[/], their layer and their strength")
    console.print(f"positive: {about['positive']}\nnegative: {about['negative']}", highlight=False)
    splits = split_pairs(load_behavior(behavior))
    pairs = [pair for split, count in _PAIRS.items() for pair in spread(splits[split], count)]
    folder = output / behavior
    tuned = tune(
        model, tokenizer, ContrastPairDataset(behavior, pairs), folder, prompts=_PROMPTS, max_new_tokens=_NEW_TOKENS
    )
    print_candidates(console, tuned)

    console.rule("[bold]3  The effect, on pairs used for nothing else")
    console.print(
        f"Layer {tuned.layer_index} at strength ±1 shifts the log-odds of a positive response by "
        f"[bold]{tuned.curve.effect}[/] nats per token (mean and 95 % interval, {len(tuned.curve.effects)} pairs), a "
        f"random direction of the same cost by {tuned.control.effect}; "
        f"{tuned.curve.anti_steerable:.0%} of the pairs move the wrong way.",
        highlight=False,
    )
    if not tuned.steers:
        console.print(f"[bold yellow]{escape(str(tuned))}")

    console.rule("[bold]4  What the model writes, on held-out prompts")
    _print_side_by_side(console, tuned)

    console.rule("[bold]5  Saved, loaded, the same tokens")
    prompts = tuned.answers.prompts[:1]
    same = _same_tokens(model, tokenizer, tuned.vectors, SteeringVectorSet.load(folder), prompts)
    console.print(f"{folder}: the loaded set gives {'the same' if same else '[bold red]OTHER[/]'} tokens")

    console.rule("[bold]6  Two behaviours at once, one changed while it runs")
    other = next(name for name in ("formality", "uncertainty", *behavior_names()) if name != behavior)
    _two_behaviors(console, model, tokenizer, tuned.vectors, other, prompts[0])

    report = output / "report.html"
    with console.status("measuring what the model still knows, and which tokens carry the behaviour"):
        evidence = gather_evidence(model, tokenizer, tuned, [p for p in pairs if p.metadata["split"] == "test"])
    evidence.save(folder)
    write_report(report, tuned, about, evidence)
    console.rule()
    console.print(
        f"Report: [bold]{report.resolve()}[/]  ({time.perf_counter() - started:.0f} s)", highlight=False, soft_wrap=True
    )


def print_candidates(console: Console, tuned: TunedSteering) -> None:
    """A table of the layers that were steered, with the change of log-odds at each strength."""
    table = Table(title=f"change of log-odds (nats per token) at equal coherence cost, KL = {tuned.budget}")
    table.add_column("layer", justify="right")
    table.add_column("strength of the budget", justify="right")
    for fraction in tuned.compared_fractions:
        table.add_column(f"{fraction:+g}" if fraction else "0", justify="right")
    table.add_column("effect, 95 % interval")
    table.add_column("answers (decides)")
    by_layer = tuned.compared_changes()
    for candidate in tuned.candidates:
        chosen = candidate.layer_index == tuned.layer_index
        changes = [f"{change.mean:+.2f}" for change in by_layer[candidate.layer_index]]
        written = str(candidate.answers.change) + (" ←" if chosen else "")
        row = [str(candidate.layer_index), f"{candidate.calibrated_strength:.2f}", *changes]
        table.add_row(*row, str(candidate.curve.effect), written, style="bold" if chosen else "")
    console.print(table)


def _print_side_by_side(console: Console, tuned: TunedSteering) -> None:
    answers = tuned.answers
    table = Table(show_lines=True, expand=True)
    for heading in ("prompt", "strength −1", "unsteered", "strength +1"):
        table.add_column(heading, ratio=2 if heading == "prompt" else 3)
    for row in zip(answers.prompts[:_PROMPTS_SHOWN], *(answers.texts[sign] for sign in (-1.0, 0.0, 1.0)), strict=False):
        table.add_row(*(escape(prompt_text(text)) for text in row))
    console.print(table)


def _same_tokens(
    model: nn.Module, tokenizer: Any, saved: SteeringVectorSet, loaded: SteeringVectorSet, prompts: Sequence[Prompt]
) -> bool:
    tokens = []
    for vectors in (saved, loaded):
        with ActivationInjector(model, [vectors.get_best()]):
            tokens.append(generate_tokens(model, tokenizer, prompts, _NEW_TOKENS))
    return tokens[0] == tokens[1]


def _two_behaviors(
    console: Console, model: nn.Module, tokenizer: Any, first: SteeringVectorSet, other: str, prompt: Prompt
) -> None:
    layer = first.get_best().layer_index
    vectors = extract_caa_vectors(model, tokenizer, load_behavior(other, "train")[:16], [layer])
    calibration = CoherenceProbe(model, tokenizer).calibrate(ActivationInjector(model, vectors), 1.0)
    strengths = {first.behavior: 0.7, other: 0.7 * calibration.strength}
    injector = MultiVectorInjector(model, {first.behavior: first, other: vectors}, strengths)
    console.print(f"[bold]{escape(prompt_text(prompt))}")
    with injector:
        for strength in (0.7, -0.7):
            injector.set_strength(other, strength * calibration.strength)
            text = generate_texts(model, tokenizer, [prompt], _NEW_TOKENS)[0]
            console.print(f"[cyan]{first.behavior} +0.7, {other} {strength:+}[/]  {escape(text)}", highlight=False)
