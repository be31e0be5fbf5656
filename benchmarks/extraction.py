"""What extracting steering vectors costs: this package, its predecessor, its peers and a single pass written by hand.

    python benchmarks/extraction.py --make-venvs              # once: the peers' environments, one each
    python benchmarks/extraction.py --plot extraction.svg     # time, memory and tokens/s, everybody in turn
    python benchmarks/extraction.py --memory                  # our memory for 100, 1,000 and 10,000 pairs

Every contestant is a process of its own with the model in memory, idle while another one runs. In each round all take
their turn on the same pairs; printed are medians of the ratios to the hand-written pass of the same round. Whoever
would take longer than --longest seconds gets fewer pairs, and is compared with the hand-written pass on just those.
An extraction begins with texts, so tokenising them counts. Memory is what it adds, at its peak, to what the process
holds before it (Linux only).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from peers.contestants import CONTESTANTS, OURS, YARDSTICK, Contestant, make_venvs
from peers.process import Worker, WorkerError
from peers.workloads import Workload, multiple_choice, ordinary, short, spread
from rotalabs_steer.sample_model import sample_model_path

AGREEMENT = 0.999
WARM_UP_PAIRS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, help="JSONL with positive, negative, maybe prompt (default: built in)")
    parser.add_argument("--multiple-choice", type=Path, help="JSONL with prompt, and letters as positive and negative")
    parser.add_argument("--count", type=int, default=100, help="pairs of each kind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--longest", type=float, default=60, help="seconds that one measurement may take")
    parser.add_argument("--model", type=Path, help="folder of a Llama-like model (default: the sample model)")
    parser.add_argument("--venvs", type=Path, default=Path(".venv-peers"), help="folder of the peers' environments")
    parser.add_argument("--make-venvs", action="store_true", help="build them and stop")
    parser.add_argument("--memory", type=int, nargs="*", metavar="PAIRS", help="only our memory, for so many pairs")
    parser.add_argument("--json", type=Path, help="where to write every measurement")
    parser.add_argument("--plot", type=Path, help="where to write the picture (SVG)")
    options = parser.parse_args()
    if options.make_venvs:
        make_venvs(options.venvs)
        return
    options.model = options.model or sample_model_path()
    if options.memory is not None:
        our_memory(options)
    else:
        comparison(options)


@dataclass(frozen=True)
class Job:
    """A workload and the layers to extract."""

    workload: Workload
    title: str
    layers: list[int]


class Field:
    """The contestants that run, and why the others do not."""

    def __init__(self, options: argparse.Namespace, stack: ExitStack) -> None:
        self.workers: dict[Contestant, Worker] = {}
        self.absent: dict[str, str] = {}
        for contestant in CONTESTANTS:
            try:
                worker = Worker(contestant.python(options.venvs), contestant.adapter, options.model, options.threads)
            except WorkerError as error:
                self._drop(contestant, error)
            else:
                self.workers[contestant] = stack.enter_context(worker)

    def measure(self, contestant: Contestant, job: Job, count: int) -> dict[str, Any] | None:
        """One measurement; None once the contestant has failed."""
        if contestant not in self.workers:
            return None
        print(
            f"{job.workload.name}, {job.title}: {contestant.name}, {count} pairs",
            end=" … ",
            file=sys.stderr,
            flush=True,
        )
        try:
            reply = self.workers[contestant].measure(spread(job.workload.pairs, count), job.layers)
        except WorkerError as error:
            del self.workers[contestant]
            print("failed", file=sys.stderr)
            self._drop(contestant, error)
            return None
        print(f"{reply['seconds']:.2f} s", file=sys.stderr)
        return reply

    def _drop(self, contestant: Contestant, error: WorkerError) -> None:
        if contestant is YARDSTICK:
            raise SystemExit(f"The hand-written pass does not run, so nothing can be compared with it: {error}")
        self.absent[contestant.name] = str(error)


def comparison(options: argparse.Namespace) -> None:
    """Measures everybody and reports after the last round."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    workloads = [ordinary(options.pairs, options.count), multiple_choice(options.multiple_choice, options.count)]
    texts = {
        workload.name: {
            "pairs": len(workload.pairs),
            "tokens": workload.tokens(tokenizer),
            "distinct_tokens": workload.distinct_tokens(tokenizer),
        }
        for workload in workloads
    }
    with ExitStack() as stack:
        field = Field(options, stack)
        about = {contestant.name: worker.about for contestant, worker in field.workers.items()}
        depth = about[YARDSTICK.name]["layers"]
        choices = {"3 middle layers": [depth // 2 - 1, depth // 2, depth // 2 + 1], "all layers": list(range(depth))}
        jobs = [Job(workload, title, layers) for workload in workloads for title, layers in choices.items()]
        counts = [warm_up(field, job, options.longest) for job in jobs]
        runs: list[dict[str, Any]] = []
        for number in range(options.rounds):
            for job, count in zip(jobs, counts, strict=True):
                for run in one_round(field, job, count, number):
                    tokens = job.workload.tokens(tokenizer, run["pairs"])
                    runs.append({"round": number, **run, "tokens": tokens})
            rows = summary(runs)
            if options.json:  # after every round: a long run may be interrupted
                found = {
                    "contestants": about,
                    "absent": field.absent,
                    "workloads": texts,
                    "summary": rows,
                    "runs": runs,
                }
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    print_table(rows, texts, about, field.absent)
    if options.plot:
        from peers.chart import draw

        draw(rows, options.plot)
    if wrong := [row["contestant"] for row in rows if row["cosine"] is not None and row["cosine"] < AGREEMENT]:
        raise SystemExit(
            f"These do not compute the mean difference at the last token: {', '.join(sorted(set(wrong)))}."
        )


def warm_up(field: Field, job: Job, longest: float) -> dict[Contestant, int]:
    """Runs everybody once on a few pairs, and says on how many they can be measured within `longest` seconds."""
    available = len(job.workload.pairs)
    few = min(WARM_UP_PAIRS, available)
    counts = {}
    for contestant in CONTESTANTS:
        if reply := field.measure(contestant, job, few):
            counts[contestant] = max(few, min(available, int(few * longest / reply["seconds"])))
    return counts


def one_round(field: Field, job: Job, counts: dict[Contestant, int], number: int) -> list[dict[str, Any]]:
    """Everybody once. Who follows whom changes from round to round."""
    order = [contestant for contestant in counts if contestant is not YARDSTICK]
    turn = number % max(1, len(order))
    yardsticks: dict[int, dict[str, Any]] = {}  # by number of pairs
    runs = []
    for contestant in [YARDSTICK, *order[turn:], *order[:turn]]:
        count = counts[contestant]
        if count not in yardsticks:
            yardsticks[count] = field.measure(YARDSTICK, job, count) or {}
        yardstick = yardsticks[count]
        reply = yardstick if contestant is YARDSTICK else field.measure(contestant, job, count)
        if reply is None:
            continue
        runs.append(
            {
                "workload": job.workload.name,
                "layers": job.title,
                "contestant": contestant.name,
                "yardstick": contestant is YARDSTICK,
                "pairs": count,
                "ratio": reply["seconds"] / yardstick["seconds"],
                "cosine": cosine(reply["vectors"], yardstick["vectors"]) if contestant.mean_difference else None,
                **{name: value for name, value in reply.items() if name != "vectors"},
            }
        )
    return runs


def cosine(vectors: dict[str, list[float]], reference: dict[str, list[float]]) -> float:
    """The smallest cosine similarity at any layer."""
    pairs = [(torch.tensor(vectors[layer]), torch.tensor(reference[layer])) for layer in reference]
    return min(float(torch.cosine_similarity(a.double(), b.double(), dim=0)) for a, b in pairs)


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the rounds, in the order of `CONTESTANTS`."""
    grouped: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    names = [contestant.name for contestant in CONTESTANTS]
    for run in sorted(runs, key=lambda run: names.index(run["contestant"])):
        grouped.setdefault((run["workload"], run["layers"], run["contestant"]), []).append(run)
    return [
        {
            **{name: same[0][name] for name in ("workload", "layers", "contestant", "yardstick", "pairs", "tokens")},
            "ratio": statistics.median(run["ratio"] for run in same),
            "low": min(run["ratio"] for run in same),
            "high": max(run["ratio"] for run in same),
            "seconds": statistics.median(run["seconds"] for run in same),
            "tokens_per_second": statistics.median(run["tokens"] / run["seconds"] for run in same),
            "tokens_run": same[-1]["tokens_run"],
            "extra_bytes": statistics.median(run["extra_bytes"] for run in same),
            "cosine": None if same[0]["cosine"] is None else min(run["cosine"] for run in same),
            "rounds": len(same),
        }
        for same in grouped.values()
    ]


def print_table(
    rows: list[dict[str, Any]], texts: dict[str, dict[str, int]], about: dict[str, Any], absent: dict[str, str]
) -> None:
    print("\nversions")
    for name, facts in about.items():
        libraries = ", ".join(f"{library} {number}" for library, number in facts["versions"].items())
        print(f"  {name:36} {libraries}; threads: {facts['threads']}")
    for workload, layers in dict.fromkeys((row["workload"], row["layers"]) for row in rows):
        text = texts[workload]
        print(
            f"\n{workload}, {layers}: {text['pairs']} pairs, {text['tokens']:,} tokens, "
            f"{text['distinct_tokens']:,} of them distinct (shared beginnings counted once)"
        )
        print(
            f"  {'':36} {'× by hand (min–max)':>23} {'tokens/s':>9} {'tokens run':>11} {'memory, MB':>11} {'pairs':>6} "
            f"{'cosine':>8}"
        )
        for row in rows:
            if (row["workload"], row["layers"]) == (workload, layers):
                spread_of_ratios = f"{row['ratio']:.2f} ({row['low']:.2f}–{row['high']:.2f})"
                agreement = "–" if row["cosine"] is None else f"{row['cosine']:.5f}"
                print(
                    f"  {row['contestant']:36} {spread_of_ratios:>23} {row['tokens_per_second']:9,.0f} "
                    f"{row['tokens_run']:11,} {row['extra_bytes'] / 1e6:11.1f} {row['pairs']:6} {agreement:>8}"
                )
    for name, reason in absent.items():
        print(f"\n{name} does not run: {reason}")


def our_memory(options: argparse.Namespace) -> None:
    """Peak memory of extracting all layers, a fresh process for every number of pairs."""
    runs = []
    for count in options.memory or (100, 1_000, 10_000):
        with Worker(OURS.python(options.venvs), OURS.adapter, options.model, options.threads) as worker:
            layers = list(range(worker.about["layers"]))
            worker.measure(short(WARM_UP_PAIRS), layers)
            reply = worker.measure(short(count), layers)
        runs.append({"pairs": count, **{name: value for name, value in reply.items() if name != "vectors"}})
        print(f"{count:7,} pairs, all layers: {reply['extra_bytes'] / 1e6:7.1f} MB more, {reply['seconds']:.1f} s")
    if options.json:
        options.json.write_text(json.dumps({"our_memory": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
