"""What the built-in behaviours do on the sample model: writes docs/behaviors.md and its picture.

    python benchmarks/behaviors.py --output docs

Each behaviour's vector comes from its training pairs, its layer from first-order scores on validation pairs, its
strength from a KL of 0.2 nats per token on neutral text. Every vector's effect is then measured on the test pairs of
every behaviour: high on the diagonal is what should be, low beside it shows that behaviours are told apart. The figures
are kept in a JSON file (`--records`), from which the page is written anew with `--only-write`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from efficacy import BUDGET, Behavior, Bench, built_in, spread
from rotalabs_steer import ActivationInjector
from rotalabs_steer.datasets import behavior_names
from rotalabs_steer.datasets.pairs import ContrastPairDataset
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.evaluation.first_order import FirstOrder
from rotalabs_steer.evaluation.intervals import Estimate, bootstrap_mean
from rotalabs_steer.evaluation.propensity import pair_propensities
from rotalabs_steer.extraction import extract_caa_vectors

OTHER_PAIRS = 8
PAGE = """# The built-in behaviours on SmolLM2-135M

What each vector does to pairs of topics that made no vector, at one coherence cost: a KL of {budget} nats per token on
neutral text. Vectors are mean differences over the responses of {train} training pairs; the layer has the best
first-order score on validation pairs. Written by `python benchmarks/behaviors.py`.

- **strength**: of the stored vector, at that cost.
- **effect**: half the difference between the log-odds (nats per token) of positive over negative responses at plus and
  at minus that strength, on {test} test pairs, with its 95 % bootstrap interval.
- **E/sd**: the same in standard deviations of the unsteered log-odds.
- **wrong way**: share of pairs whose log-odds move against the vector.

| behaviour | layer | strength | effect | E/sd | wrong way | |
|---|---|---|---|---|---|---|---|
{rows}

A model of this size shows what its interval shows and no more; larger models follow instructions that this one cannot.
Log-odds of given responses are also not what a model writes: [methods](methods.md) judges that.

![Effect of each behaviour's vector on each behaviour's test pairs](images/behaviors.svg)

Rows are vectors, columns the test pairs they are measured on, {others} of each other behaviour; numbers are E/sd.
{reading}
"""


def measure(bench: Bench, behaviors: list[Behavior]) -> list[dict]:
    tests = {b.name: [render_pair(bench.tokenizer, pair) for pair in b.test] for b in behaviors}
    others = {name: spread(pairs, OTHER_PAIRS) for name, pairs in tests.items()}
    unsteered = {name: pair_propensities(bench.model, pairs) for name, pairs in tests.items()}
    records = []
    for behavior in behaviors:
        train = ContrastPairDataset(behavior.name, behavior.train)
        vectors = extract_caa_vectors(bench.model, bench.tokenizer, train, bench.layers, show_progress=False)
        rendered = [render_pair(bench.tokenizer, pair) for pair in behavior.validation]
        vector = FirstOrder.measure(bench.model, rendered, bench.layers, bench.cost).best(vectors)
        injector = ActivationInjector(bench.model, [vector])
        unit = bench.probe.strength_at(injector, bench.cost.strength_at(vector, BUDGET), BUDGET)
        effects = {}
        for name, pairs in (others | {behavior.name: tests[behavior.name]}).items():
            at = []
            for sign in (1.0, -1.0):
                injector.strength = sign * unit
                with injector:
                    at.append(pair_propensities(bench.model, pairs))
            effects[name] = ((at[0] - at[1]) / 2).tolist()
        records.append({"behavior": behavior.name, "layer": vector.layer_index, "unit": unit, "effects": effects,
                        "spread": {name: float(values.std()) for name, values in unsteered.items()},
                        "train": len(behavior.train), "test": len(behavior.test)})  # fmt: skip
        own = bootstrap_mean(effects[behavior.name])
        print(f"{behavior.name:22s} layer {vector.layer_index:2d}  {own}", flush=True)
    return records


def matrix(records: list[dict]) -> np.ndarray:
    """`[vectors, behaviours]`: mean effect in standard deviations of the unsteered log-odds."""
    names = [record["behavior"] for record in records]
    return np.array([[np.mean(r["effects"][name]) / r["spread"][name] for name in names] for r in records])


def page(records: list[dict]) -> str:
    rows = []
    for record in records:
        name = record["behavior"]
        values = record["effects"][name]
        effect: Estimate = bootstrap_mean(values)
        remark = "" if effect.low > 0 else "does not steer here: the interval includes zero"
        cells = [name, record["layer"], f"{record['unit']:.2f}", effect, f"{effect.mean / record['spread'][name]:+.2f}"]
        rows.append(f"| {' | '.join(map(str, cells))} | {np.mean(np.less(values, 0)):.0%} | {remark} |")
    grid = matrix(records)
    diagonal, beside = np.diag(grid), np.abs(grid[~np.eye(len(grid), dtype=bool)])
    first = sum(int(np.argmax(np.abs(column)) == index) for index, column in enumerate(grid.T))
    reading = (
        f"On the diagonal the median is {np.median(diagonal):+.2f}, beside it the median size is "
        f"{np.median(beside):.2f};\non the test pairs of {first} of {len(grid)} behaviours their own vector moves most."
    )
    return PAGE.format(budget=BUDGET, rows="\n".join(rows), others=OTHER_PAIRS, reading=reading,
                       train=records[0]["train"], test=records[0]["test"])  # fmt: skip


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs"))
    parser.add_argument("--records", type=Path, default=Path("behaviors.json"))
    parser.add_argument("--only-write", action="store_true", help="from the records of an earlier run")
    options = parser.parse_args()
    if not options.only_write:
        torch.manual_seed(0)
        records = measure(Bench(options.records.parent), [built_in(name) for name in behavior_names()])
        options.records.write_text(json.dumps(records))
    records = json.loads(options.records.read_text())
    draw(records, options.output / "images" / "behaviors.svg")
    (options.output / "behaviors.md").write_text(page(records))


if __name__ == "__main__":
    main()
