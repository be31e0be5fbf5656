"""What the built-in behaviours do on the sample model: writes docs/behaviors.md and its picture.

    rotalabs-steer tune sample --output FOLDER
    python benchmarks/behaviors.py --tuned FOLDER --output docs --models src/rotalabs_steer/model/data/models.json

The page shows what tuning found. Every tuned vector's effect is then measured on the test pairs of every other
behaviour too: high on the diagonal is what should be, low beside it shows that behaviours are told apart. The layers of
behaviours that steer go into the table of models. Figures are kept in FOLDER and not measured twice.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from rotalabs_steer import ActivationInjector
from rotalabs_steer.datasets import behavior_names, load_behavior
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.datasets.splits import spread
from rotalabs_steer.evaluation import TunedSteering
from rotalabs_steer.measures.propensity import pair_propensities
from rotalabs_steer.sample_model import sample_model_path

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
OTHER_PAIRS = 4
PAGE = """# The built-in behaviours on SmolLM2-135M

Every behaviour was tuned by `rotalabs-steer tune`: vectors from its training pairs, the layer by what the model
writes on validation prompts, the strength by a coherence budget: a KL of {budget} nats per token on neutral text.
The figures are of the test split, whose topics are in neither of the others. Tuned on {date}; this page is written
by `benchmarks/behaviors.py`.

- **log-odds**: half the difference between the log-odds (nats per token) of positive over negative responses at
  plus and at minus that strength, mean over the test pairs with its 95 % interval.
- **E/sd**: the same in standard deviations of the unsteered log-odds.
- **wrong way**: share of pairs whose log-odds move against the vector.
- **answers**: the same half difference between what a judge of wording (`TextJudge`, made of the training pairs)
  says of the model's own answers to the test prompts, in its log-odds. Behind it, how often the judge tells the two
  sides of a test pair apart: 50 % is guessing.
- **random**: the log-odds for a random direction at that layer, at the same cost.

| behaviour | layer | log-odds | E/sd | wrong way | answers | judge | random | steers |
|---|---|---|---|---|---|---|---|---|
{rows}

{verdict}

A model of this size shows what its intervals show and no more; larger models follow instructions that this one
cannot. The judge knows words, not meaning: where it tells the sides apart badly, its verdict on answers says
little.

![Effect of each behaviour's vector on each behaviour's test pairs](images/behaviors.svg)

Rows are vectors, columns the test pairs they are measured on, {others} of each other behaviour; numbers are E/sd.
{reading}
"""


def measure(tuned: list[TunedSteering]) -> list[dict]:
    """Each vector on each behaviour's test pairs."""
    path = sample_model_path()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    pairs = {
        name: [render_pair(tokenizer, pair) for pair in spread(load_behavior(name, "test"), OTHER_PAIRS)]
        for name in behavior_names()
    }
    spreads = {one.behavior: float(one.curve.at(0.0).std()) for one in tuned}
    records = []
    for one in tuned:
        injector = ActivationInjector(model, [one.vectors.get_best()])
        effects = {one.behavior: one.curve.effects.tolist()}
        for name in sorted(pairs.keys() - {one.behavior}):
            at = []
            for injector.strength in (1.0, -1.0):
                with injector:
                    at.append(pair_propensities(model, pairs[name]))
            effects[name] = ((at[0] - at[1]) / 2).tolist()
        records.append({"behavior": one.behavior, "effects": effects, "spread": spreads})
        print(one, flush=True)
    return records


def matrix(records: list[dict]) -> np.ndarray:
    """`[vectors, behaviours]`: mean effect in standard deviations of the unsteered log-odds."""
    names = [record["behavior"] for record in records]
    return np.array([[np.mean(r["effects"][name]) / r["spread"][name] for name in names] for r in records])


def page(tuned: list[TunedSteering], records: list[dict]) -> str:
    rows = []
    for one in tuned:
        curve, judge = one.curve, "" if one.judge_accuracy is None else f"{one.judge_accuracy:.0%}"
        deviation = float(curve.at(0.0).std())
        in_sd = f"{curve.effect.mean / deviation:+.2f}" if deviation > 0 else "–"
        cells = [one.behavior, one.layer_index, curve.effect, in_sd,
                 f"{curve.anti_steerable:.0%}", one.answers.change, judge, one.control.effect,
                 one.verdict if one.steers else f"**{one.verdict}**"]  # fmt: skip
        rows.append(f"| {' | '.join(map(str, cells))} |")
    steered = [one.behavior for one in tuned if one.steers]
    failed = [one.behavior for one in tuned if not one.steers]
    verdict = f"{len(steered)} of {len(tuned)} behaviours steer: both intervals lie above zero." + (
        f" Not shown to steer on this model: {', '.join(failed)}." if failed else ""
    )
    grid = matrix(records)
    diagonal, beside = np.diag(grid), np.abs(grid[~np.eye(len(grid), dtype=bool)])
    first = sum(int(np.argmax(np.abs(column)) == index) for index, column in enumerate(grid.T))
    reading = (
        f"On the diagonal the median is {np.median(diagonal):+.2f}, beside it the median size is "
        f"{np.median(beside):.2f};\non the test pairs of {first} of {len(grid)} behaviours their own vector moves most."
    )
    return PAGE.format(budget=tuned[0].budget, date=max(one.provenance["date"] for one in tuned), rows="\n".join(rows),
                       verdict=verdict, others=OTHER_PAIRS, reading=reading)  # fmt: skip


def draw(records: list[dict], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    names = [record["behavior"].replace("_", " ") for record in records]
    grid = matrix(records)
    figure, axes = plt.subplots(figsize=(8.4, 7.4), layout="constrained")
    limit = float(np.abs(grid).max())
    axes.imshow(grid, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("measured on the test pairs of")
    axes.set_ylabel("vector of")
    for row, column in np.ndindex(*grid.shape):
        value = grid[row, column]
        shade = "white" if abs(value) > 0.55 * limit else "#222222"
        weight = "bold" if row == column else "normal"
        axes.text(column, row, f"{value:+.2f}", ha="center", va="center", color=shade, fontsize=8.5, fontweight=weight)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("Effect in standard deviations (E/sd) at KL 0.2, SmolLM2-135M", loc="left", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def recommend(tuned: list[TunedSteering], path: Path) -> None:
    """Puts the layers of behaviours that steer into the table of models."""
    table = json.loads(path.read_text("utf-8"))
    (entry,) = (entry for entry in table["models"] if entry["name"] == MODEL)
    entry["recommended_layers"] = {
        one.behavior: {
            "layers": [one.layer_index],
            "provenance": "measured",
            "source": f"rotalabs-steer tune, {one.provenance['date']}: log-odds {one.curve.effect} nats per token, "
            f"answers {one.answers.change}, at KL {one.budget:g}",
        }
        for one in tuned
        if one.steers
    }
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuned", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("docs"))
    parser.add_argument("--models", type=Path, help="table of models to record the layers in")
    options = parser.parse_args()
    tuned = [TunedSteering.load(options.tuned / name) for name in behavior_names()]
    kept = options.tuned / "matrix.json"
    if not kept.exists():
        kept.write_text(json.dumps(measure(tuned)))
    records = json.loads(kept.read_text())
    draw(records, options.output / "images" / "behaviors.svg")
    (options.output / "behaviors.md").write_text(page(tuned, records))
    if options.models:
        recommend(tuned, options.models)


if __name__ == "__main__":
    main()
