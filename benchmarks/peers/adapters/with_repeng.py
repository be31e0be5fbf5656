"""repeng: the first principal component of the differences, so its vectors are not comparable to a mean difference."""

from __future__ import annotations

from typing import Any

from repeng import ControlVector, DatasetEntry


def extract(model: Any, tokenizer: Any, pairs: list[tuple[str, str]], layers: list[int]) -> dict[int, Any]:
    dataset = [DatasetEntry(positive, negative) for positive, negative in pairs]
    return ControlVector.train(model, tokenizer, dataset, hidden_layers=layers).directions
