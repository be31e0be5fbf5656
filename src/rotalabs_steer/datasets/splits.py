"""Pairs to learn from, to choose on and to test on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rotalabs_steer.datasets.pairs import ContrastPairDataset
from rotalabs_steer.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rotalabs_steer.datasets.pairs import ContrastPair

SPLITS = ("train", "validation", "test")
_FEWEST_PAIRS = 10


def split_pairs(dataset: ContrastPairDataset) -> dict[str, ContrastPairDataset]:
    """The pairs by split: as their metadata say, else three fifths to train on and a fifth each for the others.

    Raises:
        DatasetError: fewer than ten pairs, pairs without prompts, or a split that would be empty.
    """
    if len(dataset) < _FEWEST_PAIRS or any(pair.prompt is None for pair in dataset):
        raise DatasetError(
            f"Tuning needs at least {_FEWEST_PAIRS} pairs, all with prompts, to choose on some and test on others; "
            f"{dataset.behavior!r} has {len(dataset)}, {sum(pair.prompt is None for pair in dataset)} without a prompt."
        )
    named = [pair.metadata.get("split") for pair in dataset]
    if not set(SPLITS) <= set(named):
        groups = list(dict.fromkeys(pair.category for pair in dataset))
        of_group = {group: _turn(number) for number, group in enumerate(groups)}
        few = len(groups) < len(SPLITS) + 2
        named = [_turn(number) if few else of_group[pair.category] for number, pair in enumerate(dataset)]
    found = {split: [pair for pair, name in zip(dataset, named, strict=True) if name == split] for split in SPLITS}
    return {split: ContrastPairDataset(dataset.behavior, pairs, dataset.description) for split, pairs in found.items()}


def _turn(number: int) -> str:
    return ("train", "train", "validation", "train", "test")[number % 5]


def spread(pairs: Iterable[ContrastPair], count: int) -> list[ContrastPair]:
    """About `count` pairs taken evenly, so that every topic has its share."""
    every = list(pairs)
    count = min(count, len(every))
    return [every[index * len(every) // count] for index in range(count)]
