"""The pairs of texts that are extracted from."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rotalabs_steer.datasets.builtin import behavior_names, load_behavior

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from rotalabs_steer.datasets import ContrastPair

Pair = tuple[str, str]


@dataclass(frozen=True)
class Workload:
    """Pairs of plain texts, positive and negative."""

    name: str
    pairs: list[Pair]

    def tokens(self, tokenizer: Any, count: int | None = None) -> int:
        """Tokens in all texts, or in those of `count` pairs spread over them."""
        return sum(len(ids) for ids in self._ids(tokenizer, spread(self.pairs, count or len(self.pairs))))

    def distinct_tokens(self, tokenizer: Any) -> int:
        """Tokens that are left when every beginning that texts share is counted once."""
        texts = {tuple(ids) for ids in self._ids(tokenizer, self.pairs)}
        return len({text[:length] for text in texts for length in range(1, len(text) + 1)})

    def _ids(self, tokenizer: Any, pairs: list[Pair]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer([text for pair in pairs for text in pair])["input_ids"]
        return ids


def ordinary(path: Path | None, count: int) -> Workload:
    """Prompt, line break, response; the texts themselves where there is no prompt.

    Args:
        path: JSONL with `positive`, `negative` and maybe `prompt`; None for the built-in behaviours in turn.
    """
    rows = (
        read(path)
        if path
        else ({"prompt": p.prompt, "positive": p.positive, "negative": p.negative} for p in builtin())
    )
    return Workload("ordinary pairs", [render(row, "\n") for row in itertools.islice(rows, count)])


def multiple_choice(path: Path | None, count: int) -> Workload:
    """Question with its options, then the letter of one of them: the texts of a pair differ in that letter.

    Args:
        path: JSONL with `prompt`, and letters as `positive` and `negative`; None to make questions of the built-in
            behaviours.
    """
    rows = read(path) if path else map(question, itertools.count(), builtin())
    return Workload("multiple choice", [render(row, " ") for row in itertools.islice(rows, count)])


def short(count: int) -> list[Pair]:
    """Any number of short pairs that share nothing but the number at their beginning."""
    ends = [tuple(" ".join(text.split()[-8:]) for text in (pair.positive, pair.negative)) for pair in builtin()]
    different = itertools.cycle(end for end in ends if end[0] != end[1])
    return [(f"{number}: {a}", f"{number}: {b}") for number, (a, b) in enumerate(itertools.islice(different, count))]


def spread(pairs: list[Pair], count: int) -> list[Pair]:
    """`count` of the pairs, evenly spaced."""
    return [pairs[number * len(pairs) // count] for number in range(count)]


def builtin() -> Iterator[ContrastPair]:
    """Pairs with one prompt and no system message, of each behaviour in turn."""
    behaviors = [list(load_behavior(name)) for name in behavior_names()]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*behaviors))
    return (pair for pair in turns if pair and pair.prompt and pair.system is None and not pair.asks_differently)


def question(number: int, pair: ContrastPair) -> dict[str, str]:
    """A pair as a question. The positive response is (A) in every other one."""
    first, second = (pair.positive, pair.negative)[:: 1 if number % 2 == 0 else -1]
    letters = ("(A)", "(B)") if number % 2 == 0 else ("(B)", "(A)")
    prompt = f"{pair.prompt}\n\nChoices:\n (A) {first}\n (B) {second}\n\nAnswer:"
    return {"prompt": prompt, "positive": letters[0], "negative": letters[1]}


def render(row: dict[str, Any], separator: str) -> Pair:
    positive, negative = (
        f"{row['prompt']}{separator}{row[side]}" if row.get("prompt") else row[side]
        for side in ("positive", "negative")
    )
    return positive, negative


def read(path: Path) -> Iterable[dict[str, Any]]:
    return map(json.loads, path.read_text("utf-8").splitlines())
