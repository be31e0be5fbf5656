"""Behaviours tuned side by side, in processes that have a model each."""

from __future__ import annotations

import functools
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING

from rotalabs_steer.chat.conversations import prompt_text
from rotalabs_steer.cli.loading import load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rotalabs_steer.datasets import ContrastPairDataset
    from rotalabs_steer.tuning.options import TuningOptions
    from rotalabs_steer.tuning.result import TunedSteering
    from rotalabs_steer.tuning.tuner import Tuner


def tune_side_by_side(
    model: str,
    options: TuningOptions,
    datasets: Sequence[ContrastPairDataset],
    output: Path,
    processes: int,
    finished: Callable[[TunedSteering], None],
) -> list[TunedSteering]:
    """Tunes each behaviour into its folder under `output`, to the same result as one process after another.

    Args:
        model: a folder or Hugging Face id, as `resolve_model` gives it.
        finished: is called with each result.
    """
    from rotalabs_steer.tuning.result import TunedSteering

    tuned = {}
    quiet_end = (signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends every process at once; only this one says so
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), signal.signal, quiet_end) as pool:
        waiting = {
            pool.submit(_tune, model, options, processes, dataset, output / dataset.behavior): dataset.behavior
            for dataset in sorted(datasets, key=_length, reverse=True)  # the longest first, so that none is left alone
        }
        try:
            for done in as_completed(waiting):
                done.result()
                behavior = waiting[done]
                tuned[behavior] = TunedSteering.load(output / behavior)
                finished(tuned[behavior])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [tuned[dataset.behavior] for dataset in datasets]


def _tune(model: str, options: TuningOptions, processes: int, dataset: ContrastPairDataset, folder: Path) -> None:
    _tuner(model, options, processes).tune(dataset, folder)


@functools.cache
def _tuner(model: str, options: TuningOptions, processes: int) -> Tuner:
    """The tuner of this process, made for its first behaviour."""
    import torch

    from rotalabs_steer.tuning.tuner import Tuner

    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    loaded = load_model(model, options.template_options)
    return Tuner(loaded.network, loaded.chat, options, show_progress=False)


def _length(dataset: ContrastPairDataset) -> int:
    texts = ((prompt_text(pair.prompt), pair.system, pair.positive, pair.negative) for pair in dataset)
    return sum(len(text or "") for row in texts for text in row)
