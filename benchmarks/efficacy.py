"""Which directions steer what the model writes: methods compared at one coherence cost.

    python benchmarks/efficacy.py --data FOLDER --output FOLDER [--behaviors …] [--methods …]

For every behaviour and method: vectors from the training pairs; the layer by first-order score on validation pairs; the
strength whose KL on neutral text is 0.2 nats per token; then the effect on test pairs, and, deciding, the answers to
held-out prompts at plus and minus that strength, scored by a judge that knows nothing of the pairs (judges.py). FOLDER
has the sentiment and refusal pairs. Finished measurements are kept in `efficacy.jsonl` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from judges import JUDGES
from rotalabs_steer import ActivationInjector, SteeringVector, SteeringVectorSet
from rotalabs_steer.datasets import ContrastPair, behavior_names, load_behavior
from rotalabs_steer.datasets.pairs import ContrastPairDataset
from rotalabs_steer.datasets.rendering import RenderedPair, render_pair
from rotalabs_steer.datasets.splits import spread
from rotalabs_steer.extraction import METHODS, ActivationStatistics, read_statistics
from rotalabs_steer.extraction.gradients import pair_gradients
from rotalabs_steer.generation.continuation import generate_texts
from rotalabs_steer.intervals import mean_interval
from rotalabs_steer.measures.coherence import CoherenceProbe
from rotalabs_steer.measures.propensity import pair_propensities
from rotalabs_steer.model.decoder import decoder_layers
from rotalabs_steer.sample_model import sample_model_path
from rotalabs_steer.tuning.first_order import FirstOrder, NeutralCost

BUDGET = 0.2
PLAIN, DEFAULT = "mean_difference@last", "mean_difference@response"
TRAIN, VALIDATION, TEST, PROMPTS, NEW_TOKENS = 40, 12, 12, 20, 40

REVIEW_PROMPTS = [
    f"Write one sentence from a review of {place}."
    for place in ("a restaurant", "a hotel", "a phone", "a film", "a coffee shop", "a dentist", "a concert", "a museum",
                  "a vacuum cleaner", "a sandwich bar", "a gym", "a campsite", "a car repair shop", "a book shop",
                  "a language course", "a bakery")
]  # fmt: skip


@dataclass(frozen=True)
class Behavior:
    name: str
    train: list[ContrastPair]
    validation: list[ContrastPair]
    test: list[ContrastPair]
    prompts: list[str]


def built_in(name: str) -> Behavior:
    train, validation, test = (list(load_behavior(name, split)) for split in ("train", "validation", "test"))
    prompts = [pair.prompt for pair in spread(test, PROMPTS)]
    return Behavior(name, spread(train, TRAIN), spread(validation, VALIDATION), spread(test, TEST), prompts)


def from_folder(name: str, folder: Path) -> Behavior:
    """Sentiment of reviews, or openings of refusals on everyday requests."""
    rows = _pairs(folder / "sentiment_train.jsonl" if name == "sentiment" else folder / "refusal_train.jsonl")
    if name == "sentiment":
        test = _pairs(folder / "sentiment_test.jsonl")
        return Behavior(name, rows[:TRAIN], rows[TRAIN : TRAIN + VALIDATION], test[:TEST], REVIEW_PROMPTS)
    train, validation, test = rows[:26], rows[26:38], rows[38:]
    used = {pair.prompt for pair in (*train, *validation)}
    harmless = [json.loads(line)["prompt"] for line in (folder / "prompts_harmless.jsonl").read_text().splitlines()]
    prompts = [prompt for prompt in harmless if prompt not in used and len(prompt) < 300]
    return Behavior(name, train, validation, test, prompts[:PROMPTS])


def _pairs(path: Path) -> list[ContrastPair]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [ContrastPair(row["positive"], row["negative"], prompt=row["prompt"]) for row in rows]


class Bench:
    """The model, what neutral text costs it, and the records so far."""

    def __init__(self, output: Path) -> None:
        path = sample_model_path()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.layers = list(range(len(decoder_layers(self.model)) - 1))
        self.cost = NeutralCost.measure(self.model, self.tokenizer, self.layers)
        self.probe = CoherenceProbe(self.model, self.tokenizer)
        self.records = output / "efficacy.jsonl"
        output.mkdir(parents=True, exist_ok=True)

    def run(self, behavior: Behavior, methods: list[str]) -> None:
        done = {(row["behavior"], row["method"]) for row in self.read()}
        methods = [method for method in methods if (behavior.name, method) not in done]
        if not methods:
            return
        rendered = {split: [render_pair(self.tokenizer, pair) for pair in getattr(behavior, split)]
                    for split in ("validation", "test")}  # fmt: skip
        names = sorted({method.partition("@")[0] for method in methods} & set(METHODS))
        positions = sorted({"response", "last", *(method.partition("@")[2] for method in methods)} - {""})
        train = ContrastPairDataset(behavior.name, behavior.train)
        read = {"methods": [*names, "logistic"], "token_positions": positions, "show_progress": False}
        statistics = read_statistics(self.model, self.tokenizer, train, self.layers, **read)
        first_order = FirstOrder.measure(self.model, rendered["validation"], self.layers, self.cost)
        unsteered = self.judged(behavior)
        propensities = pair_propensities(self.model, rendered["test"])
        for method in methods:
            started = time.perf_counter()
            name, _, position = method.partition("@")
            if name in VARIANTS:
                vectors = VARIANTS[name](self, behavior, statistics, first_order)
            else:
                vectors = statistics.vectors(name, position)
            vector = max(vectors, key=first_order.score)
            injector = ActivationInjector(self.model, [vector])
            unit = self.probe.calibrate(injector, self.cost.strength_at(vector, BUDGET), BUDGET).strength
            effects, judged = [], []
            for sign in (1.0, -1.0):
                injector.strength = sign * unit
                with injector:
                    effects.append(pair_propensities(self.model, rendered["test"]))
                    judged.append(self.judged(behavior))
            row = {
                "behavior": behavior.name,
                "method": method,
                "layer": vector.layer_index,
                "unit": unit,
                "spread": float(propensities.std()),
                "effects": ((effects[0] - effects[1]) / 2).tolist(),
                "unsteered": unsteered,
                "plus": judged[0],
                "minus": judged[1],
                "seconds": time.perf_counter() - started,
            }
            with self.records.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"{behavior.name:16s} {method:36s} layer {row['layer']:2d}  pairs "
                f"{np.mean(row['effects']):+.2f}  answers "
                + "  ".join(f"{np.mean(row[key]):+7.2f}" for key in ("minus", "unsteered", "plus")),
                flush=True,
            )

    def judged(self, behavior: Behavior) -> list[float]:
        answers = generate_texts(self.model, self.tokenizer, behavior.prompts, NEW_TOKENS)
        return [JUDGES[behavior.name](answer) for answer in answers]

    def read(self) -> list[dict]:
        return [json.loads(line) for line in self.records.read_text().splitlines()] if self.records.exists() else []


def gradients(bench: Bench, rendered: list[RenderedPair]) -> dict[int, torch.Tensor]:
    """The mean gradient of pairs, by layer."""
    found = pair_gradients(bench.model, rendered, bench.layers).mean(dim=1)
    return dict(zip(bench.layers, found, strict=True))


def opening_gradient(bench: Bench, behavior: Behavior, *_: object) -> SteeringVectorSet:
    """The gradient of the first four tokens of the responses: those that decide how an answer goes on."""
    rendered = [render_pair(bench.tokenizer, pair) for pair in behavior.train]
    openings = []
    for pair in rendered:
        sides = (replace(side, ids=side.ids[: side.response_start + 4]) for side in (pair.positive, pair.negative))
        openings.append(RenderedPair(*sides))
    return vector_set(behavior, gradients(bench, openings))


def blended_gradient(
    bench: Bench, behavior: Behavior, statistics: ActivationStatistics, *_: object
) -> SteeringVectorSet:
    """The opening gradient and the mean difference, each of length one, added."""
    means = statistics.vectors("mean_difference", "response")
    openings = opening_gradient(bench, behavior)
    return vector_set(
        behavior,
        {layer: openings[layer].normalize().vector + means[layer].normalize().vector for layer in bench.layers},
    )


def confined_gradient(
    bench: Bench, behavior: Behavior, statistics: ActivationStatistics, *_: object
) -> SteeringVectorSet:
    """The gradient within the span of the pairs' 16 largest directions of difference."""
    rendered = [render_pair(bench.tokenizer, pair) for pair in behavior.train]
    found = {}
    for layer, gradient in gradients(bench, rendered).items():
        samples = statistics.layers["residual", "response"][layer].samples
        assert samples is not None
        basis = torch.linalg.svd(samples[:, 0] - samples[:, 1], full_matrices=False).Vh[:16]
        found[layer] = basis.T @ (basis @ gradient)
    return vector_set(behavior, found)


def sampled_gradient(
    bench: Bench, behavior: Behavior, statistics: ActivationStatistics, first_order: FirstOrder
) -> SteeringVectorSet:
    """The gradient for answers of the model's own, steered both ways by the mean difference."""
    vector = max(statistics.vectors("mean_difference", "response"), key=first_order.score)
    injector = ActivationInjector(bench.model, [vector])
    unit = bench.probe.calibrate(injector, bench.cost.strength_at(vector, BUDGET), BUDGET).strength
    prompts = [pair.prompt or "" for pair in behavior.train[:PROMPTS]]
    answers = []
    for sign in (1.0, -1.0):
        injector.strength = sign * unit
        with injector:
            answers.append(generate_texts(bench.model, bench.tokenizer, prompts, NEW_TOKENS))
    pairs = [
        ContrastPair(positive, negative, prompt=prompt)
        for prompt, positive, negative in zip(prompts, *answers, strict=True)
        if positive.strip() and negative.strip() and positive != negative
    ]
    return vector_set(behavior, gradients(bench, [render_pair(bench.tokenizer, pair) for pair in pairs]))


def largest_norm(_: Bench, behavior: Behavior, statistics: ActivationStatistics, *__: object) -> SteeringVectorSet:
    """Plain CAA at the layer where its vector is longest: what rotalabs-steer 1.2 chose."""
    vectors = statistics.vectors("mean_difference", "last")
    return SteeringVectorSet(behavior.name, [max(vectors, key=lambda vector: vector.norm)])


VARIANTS = {
    function.__name__: function
    for function in (largest_norm, opening_gradient, blended_gradient, confined_gradient, sampled_gradient)
}


def vector_set(behavior: Behavior, directions: dict[int, torch.Tensor]) -> SteeringVectorSet:
    return SteeringVectorSet(
        behavior.name, [SteeringVector(behavior.name, layer, direction, "") for layer, direction in directions.items()]
    )


def report(rows: list[dict]) -> str:
    """Tables in Markdown: change of the answers by method and behaviour, in standard deviations of the judge."""
    behaviors = list(dict.fromkeys(row["behavior"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = {(row["behavior"], row["method"]): row for row in rows}
    spread_of = {
        name: np.std([value for row in rows if row["behavior"] == name
                      for key in ("plus", "minus", "unsteered") for value in row[key]]) or 1.0
        for name in behaviors
    }  # fmt: skip

    def both(row: dict) -> np.ndarray:
        return (np.subtract(row["plus"], row["minus"]) / 2) / spread_of[row["behavior"]]

    def up(row: dict) -> np.ndarray:
        return np.subtract(row["plus"], row["unsteered"]) / spread_of[row["behavior"]]

    summary = "mean, both ways | mean, upwards | × plain, both ways | × plain, upwards"
    lines = [f"| method | {' | '.join(behaviors)} | {summary} |", "|" + "---|" * (len(behaviors) + 5)]
    for method in methods:
        here = [name for name in behaviors if (name, method) in cells]
        row = [str(mean_interval(both(cells[name, method]).tolist())) for name in here]
        means = [f"{np.mean([change(cells[name, method]).mean() for name in here]):+.2f}" for change in (both, up)]
        ratios = [_ratio([(change(cells[n, method]), change(cells[n, PLAIN])) for n in here]) for change in (both, up)]
        lines.append(f"| {method} | {' | '.join([*row, *means, *ratios])} |")
    lines += ["", f"| method | {' | '.join(behaviors)} | mean E/sd |", "|" + "---|" * (len(behaviors) + 2)]
    for method in methods:
        here = [cells[name, method] for name in behaviors if (name, method) in cells]
        ratio = [np.mean(row["effects"]) / row["spread"] for row in here]
        row = [f"{e:+.2f} ({np.mean(np.less(r['effects'], 0)):.0%}, layer {r['layer']})"
               for e, r in zip(ratio, here, strict=True)]  # fmt: skip
        lines.append(f"| {method} | {' | '.join(row)} | {np.mean(ratio):+.2f} |")
    return "\n".join(lines)


def _ratio(changes: list[tuple[np.ndarray, np.ndarray]], resamples: int = 2000) -> str:
    """Ratio of the mean changes over behaviours, with the bootstrap interval over prompts."""
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(resamples):
        drawn = [generator.integers(0, len(ours), len(ours)) for ours, _ in changes]
        ours = np.mean([pair[0][index].mean() for pair, index in zip(changes, drawn, strict=True)])
        plain = np.mean([pair[1][index].mean() for pair, index in zip(changes, drawn, strict=True)])
        ratios.append(ours / plain if plain > 0 else np.inf)
    low, high = np.quantile(ratios, [0.025, 0.975], method="nearest")
    middle = np.mean([ours.mean() for ours, _ in changes]) / np.mean([plain.mean() for _, plain in changes])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with further pairs; without it, built-in behaviours only")
    parser.add_argument("--output", type=Path, default=Path("efficacy"))
    parser.add_argument("--behaviors", nargs="*", default=list(JUDGES))
    parser.add_argument(
        "--methods", nargs="*", default=[PLAIN, *(f"{method}@response" for method in METHODS), *VARIANTS]
    )
    options = parser.parse_args()
    bench = Bench(options.output)
    for name in options.behaviors:
        if name in behavior_names():
            bench.run(built_in(name), options.methods)
        elif options.data is not None:
            bench.run(from_folder(name, options.data), options.methods)
    page = report(bench.read())
    (options.output / "efficacy.md").write_text(page + "\n")
    print(page)


if __name__ == "__main__":
    main()
