"""The main job from end to end: pairs in; layer, strength, steered text, vectors and a report out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.markup import escape
from rich.table import Table

import rotalabs_steer
from rotalabs_steer.datasets import behavior_names, describe_behavior, load_behavior
from rotalabs_steer.decoder import decoder_layers
from rotalabs_steer.errors import ModelNameError
from rotalabs_steer.evaluation.coherence import CoherenceProbe
from rotalabs_steer.evaluation.generation import generate_texts, generate_tokens
from rotalabs_steer.evaluation.layer_search import calibrated_set, candidate_layers, search_layers
from rotalabs_steer.evaluation.report import SideBySide, write_report
from rotalabs_steer.extraction import extract_caa_vectors
from rotalabs_steer.injection import ActivationInjector, MultiVectorInjector
from rotalabs_steer.sample_model import SAMPLE_MODEL, sample_model_path
from rotalabs_steer.vectors import SteeringVectorSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from torch import nn

    from rotalabs_steer.datasets import ContrastPair

_LAYERS = 4
_VALIDATION_PAIRS = 10
_TEST_PAIRS = 20
_PROMPTS = 3
_NEW_TOKENS = 40


def run_demo(console: Console, model_name: str | None, behavior: str, output: Path) -> None:
    """Runs the demo, printing as it goes."""
    about = describe_behavior(behavior)  # an unknown behaviour is an error before a model is loaded
    started = time.perf_counter()

    console.rule("[bold]1  The model")
    model, tokenizer = _load(console, model_name)
    shown_name = model_name or f"{SAMPLE_MODEL} (dequantised to fp32)"
    console.print(f"{shown_name}: {len(decoder_layers(model))} layers", highlight=False)

    console.rule(f"[bold]2  Vectors of [cyan]{behavior}[/] for every layer, in one pass")
    train, validation, test = (load_behavior(behavior, split) for split in ("train", "validation", "test"))
    console.print(f"positive: {about['positive']}\nnegative: {about['negative']}", highlight=False)
    vectors = extract_caa_vectors(model, tokenizer, train)
    console.print(f"{len(vectors)} vectors from {len(train)} pairs", highlight=False)

    console.rule("[bold]3  Layer and strength, on pairs that made no vector")
    chosen_on = type(validation)(behavior, _spread(list(validation), _VALIDATION_PAIRS))
    layers = candidate_layers(len(decoder_layers(model)), _LAYERS)
    search = search_layers(model, tokenizer, vectors, chosen_on, layers)
    calibrated = calibrated_set(vectors, search)
    _print_search(console, search)
    best = calibrated.get_best()

    console.rule("[bold]4  The effect, on pairs used for nothing else")
    confirmed_on = type(test)(behavior, _spread(list(test), _TEST_PAIRS))
    confirmed = search_layers(model, tokenizer, calibrated, confirmed_on, [best.layer_index], fractions=()).best
    console.print(
        f"Layer {best.layer_index} at strength ±1 shifts the log-odds of a positive response by "
        f"[bold]{confirmed.effect}[/] nats per token (mean and 95 % interval, {len(confirmed_on)} pairs); "
        f"{confirmed.anti_steerable:.0%} of the pairs move the wrong way.",
        highlight=False,
    )
    if not confirmed.effect.excludes_zero:
        console.print("[bold yellow]The interval includes zero: this behaviour does not steer on this model.")

    console.rule("[bold]5  What the model writes, on held-out prompts")
    prompts = [pair.prompt or "" for pair in _spread(list(test), _PROMPTS)]
    generations = _side_by_side(model, tokenizer, calibrated, prompts)
    _print_side_by_side(console, generations)

    console.rule("[bold]6  Saved, loaded, the same tokens")
    folder = output / behavior
    calibrated.save(folder)
    same = _same_tokens(model, tokenizer, calibrated, SteeringVectorSet.load(folder), prompts[:1])
    console.print(f"{folder}: the loaded set gives {'the same' if same else '[bold red]OTHER[/]'} tokens")

    console.rule("[bold]7  Two behaviours at once, one changed while it runs")
    other = next(name for name in ("formality", "uncertainty", *behavior_names()) if name != behavior)
    _two_behaviors(console, model, tokenizer, calibrated, other, prompts[0])

    report = output / "report.html"  # the folder is there: the vectors are in it
    facts = {
        "model": shown_name,
        "positive": about["positive"],
        "negative": about["negative"],
        "saved_to": str(folder),
        "pairs": f"{len(train)} train, {len(chosen_on)} validation, {len(confirmed_on)} test",
        "rotalabs-steer": rotalabs_steer.__version__,
        "torch": torch.__version__,
    }
    write_report(report, search, confirmed, generations, facts)
    console.rule()
    console.print(
        f"Report: [bold]{report.resolve()}[/]  ({time.perf_counter() - started:.0f} s)", highlight=False, soft_wrap=True
    )


def _load(console: Console, model_name: str | None) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if model_name is None:
        with console.status("making the sample model (first time only)"):
            model_name = str(sample_model_path())
    if model_name.startswith((".", "/", "~")) and not Path(model_name).expanduser().is_dir():
        raise ModelNameError(f"There is no folder {model_name}. Give a model folder or a Hugging Face id.")
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype="auto")
    return model, AutoTokenizer.from_pretrained(model_name)


def _spread(pairs: Sequence[ContrastPair], count: int) -> list[ContrastPair]:
    """About `count` pairs taken evenly over the file, so that every topic has its share."""
    count = min(count, len(pairs))
    return [pairs[index * len(pairs) // count] for index in range(count)]


def _print_search(console: Console, search: Any) -> None:
    table = Table(title=f"change of log-odds (nats per token) at equal coherence cost, KL = {search.budget}")
    table.add_column("layer", justify="right")
    table.add_column("strength of the budget", justify="right")
    for fraction in search.best.fractions:
        table.add_column(f"{fraction:+g}" if fraction else "0", justify="right")
    table.add_column("effect, 95 % interval")
    for curve in search.curves:
        chosen = curve is search.best
        changes = [f"{change:+.2f}" for change in curve.mean_change()]
        row = [str(curve.layer_index), f"{curve.unit:.2f}", *changes, str(curve.effect) + (" ←" if chosen else "")]
        table.add_row(*row, style="bold" if chosen else "")
    console.print(table)


def _side_by_side(
    model: nn.Module, tokenizer: Any, vectors: SteeringVectorSet, prompts: Sequence[str]
) -> list[SideBySide]:
    injector = ActivationInjector(model, [vectors.get_best()])
    answers = []
    for strength in (-1.0, 0.0, 1.0):
        injector.strength = strength
        with injector:
            answers.append(generate_texts(model, tokenizer, prompts, _NEW_TOKENS))
    return [SideBySide(*row) for row in zip(prompts, *answers, strict=True)]


def _print_side_by_side(console: Console, generations: Sequence[SideBySide]) -> None:
    table = Table(show_lines=True, expand=True)
    for heading in ("prompt", "strength −1", "unsteered", "strength +1"):
        table.add_column(heading, ratio=2 if heading == "prompt" else 3)
    for row in generations:
        table.add_row(*(escape(text) for text in (row.prompt, row.negative, row.unsteered, row.positive)))
    console.print(table)


def _same_tokens(
    model: nn.Module, tokenizer: Any, saved: SteeringVectorSet, loaded: SteeringVectorSet, prompts: Sequence[str]
) -> bool:
    tokens = []
    for vectors in (saved, loaded):
        with ActivationInjector(model, [vectors.get_best()]):
            tokens.append(generate_tokens(model, tokenizer, prompts, _NEW_TOKENS))
    return tokens[0] == tokens[1]


def _two_behaviors(
    console: Console, model: nn.Module, tokenizer: Any, first: SteeringVectorSet, other: str, prompt: str
) -> None:
    pairs = load_behavior(other, "train")
    layer = first.get_best().layer_index
    vectors = extract_caa_vectors(model, tokenizer, pairs[:16], [layer])
    unit = CoherenceProbe(model, tokenizer).strength_at(ActivationInjector(model, vectors), 1.0)
    second = SteeringVectorSet(
        other, [type(vector)(other, layer, vector.vector * unit, vector.model_name) for vector in vectors]
    )
    injector = MultiVectorInjector(
        model, {first.behavior: first, other: second}, strengths={first.behavior: 0.7, other: 0.7}
    )
    console.print(f"[bold]{escape(prompt)}")
    with injector:
        for strength in (0.7, -0.7):
            injector.set_strength(other, strength)
            text = generate_texts(model, tokenizer, [prompt], _NEW_TOKENS)[0]
            console.print(f"[cyan]{first.behavior} +0.7, {other} {strength:+}[/]  {escape(text)}", highlight=False)
