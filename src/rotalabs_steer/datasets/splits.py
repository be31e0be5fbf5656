"""Splits: pairs to train on, to choose layers and strengths on (validation), and to test on."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from rotalabs_steer.datasets.pairs import ContrastPairDataset
from rotalabs_steer.errors import DatasetError, SteeringWarning

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rotalabs_steer.datasets.pairs import ContrastPair

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
_NAMES = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "val", "valid", "dev", "development", "eval"),
    TEST: ("test", "testing", "holdout", "heldout"),
}
_SPLIT_OF_NAME = {name: split for split, names in _NAMES.items() for name in names}
_FEWEST_PAIRS = 10


def split_of(pair: ContrastPair) -> str | None:
    """The split that a pair's metadata name: "train", "validation" or "test", or None where they name none.

    The names that other datasets use are understood, in any case: "training", "val", "dev", "eval", "holdout" and more.

    Raises:
        DatasetError: the name is not known.
    """
    name = pair.metadata.get("split")
    if name is None or name == "":
        return None
    found = _SPLIT_OF_NAME.get(str(name).strip().lower().replace("-", "").replace("_", ""))
    if found is None:
        known = "; ".join(f"{split}: {', '.join(names)}" for split, names in _NAMES.items())
        raise DatasetError(
            f"A pair is in the split {name!r}, whose purpose is unknown. Rename the split to one of these "
            f"({known}), or leave its pairs out. The pair's positive side is {pair.positive!r:.60}."
        )
    return found


def split_pairs(dataset: ContrastPairDataset) -> dict[str, ContrastPairDataset]:
    """The pairs by split, as their metadata name it (see `split_of`).

    Pairs that name no split are pairs to train on. If no pair names the validation or the test split, pairs to train on
    are moved there: a fifth of them to each if both are missing, a quarter if one is. Whole categories are moved if
    there are enough of them, and pairs with the same prompt stay together. Every pair is in exactly one split.

    A `SteeringWarning` is given if the metadata put identical pairs into two splits.

    Raises:
        DatasetError: fewer than ten pairs, pairs without prompts, an unknown split, or too few pairs to train on.
    """
    if len(dataset) < _FEWEST_PAIRS or any(pair.prompt is None for pair in dataset):
        raise DatasetError(
            f"Tuning needs at least {_FEWEST_PAIRS} pairs, all with prompts, to choose on some and test on others; "
            f"{dataset.behavior!r} has {len(dataset)}, {sum(pair.prompt is None for pair in dataset)} without a prompt."
        )
    named = [split_of(pair) or TRAIN for pair in dataset]
    _check_apart(dataset, named)
    missing = [split for split in SPLITS[1:] if split not in named]
    if missing:
        own = [index for index, split in enumerate(named) if split == TRAIN]
        for index, split in zip(own, _shared_out([dataset[index] for index in own], missing), strict=True):
            named[index] = split
    counts = {split: named.count(split) for split in SPLITS}
    if not all(counts.values()):
        raise DatasetError(
            f"Tuning needs pairs to train on, to choose on and to test on. The {len(dataset)} pairs of "
            f"{dataset.behavior!r} would be split into {', '.join(f'{n} for {split}' for split, n in counts.items())}. "
            "A split that no pair names is taken from the pairs to train on: put more pairs there."
        )
    found = {split: [pair for pair, name in zip(dataset, named, strict=True) if name == split] for split in SPLITS}
    return {split: ContrastPairDataset(dataset.behavior, pairs, dataset.description) for split, pairs in found.items()}


def _shared_out(pairs: Sequence[ContrastPair], missing: Sequence[str]) -> list[str]:
    """A split for each pair: every fifth pair or category goes to each of two missing splits, every fourth to one."""
    turns = (TRAIN, TRAIN, missing[0], TRAIN, *missing[1:])
    keys = [pair.category for pair in pairs]
    if len(set(keys)) < len(turns):
        keys = [_asked(pair) for pair in pairs]
    else:  # a prompt in two categories joins them for this purpose
        first: dict[str, str] = {}
        keys = [first.setdefault(_asked(pair), pair.category) for pair in pairs]
    of_key = {key: turns[number % len(turns)] for number, key in enumerate(dict.fromkeys(keys))}
    return [of_key[key] for key in keys]


def _asked(pair: ContrastPair) -> str:
    """What a pair's responses answer. Pairs that have it in common are kept in one split."""
    return repr((pair.system, pair.prompt, pair.negative_prompt))


def _check_apart(dataset: ContrastPairDataset, splits: Sequence[str]) -> None:
    """Warns if the user has put a pair into two splits: the test would then reward memorising it."""
    seen: dict[str, str] = {}
    shared: list[str] = []
    for pair, split in zip(dataset, splits, strict=True):
        if seen.setdefault(f"{_asked(pair)} {pair.positive!r} {pair.negative!r}", split) != split:
            shared.append(f"{pair.positive!r:.60} ({split})")
    if shared:
        warnings.warn(
            f"{len(shared)} pairs of {dataset.behavior!r} are in two splits, so a measurement on one split uses pairs "
            f"that were seen in the other: {', '.join(shared[:3])}. Remove them from one of the splits.",
            SteeringWarning,
            stacklevel=3,
        )


def spread(pairs: Iterable[ContrastPair], count: int) -> list[ContrastPair]:
    """`count` pairs, or all if there are fewer, taken at even distances so that every topic has its share."""
    every = list(pairs)
    count = min(count, len(every))
    return [every[index * len(every) // count] for index in range(count)]
