"""rotalabs-steer, whichever version the venv has: this one, or 1.2.0."""

from __future__ import annotations

from typing import Any

from rotalabs_steer.extraction import extract_caa_vectors


def extract(model: Any, tokenizer: Any, pairs: list[tuple[str, str]], layers: list[int]) -> dict[int, Any]:
    rows = [{"positive": positive, "negative": negative} for positive, negative in pairs]
    vectors = extract_caa_vectors(model, tokenizer, rows, layers, token_position="last", show_progress=False)
    return {layer: vectors[layer].vector for layer in layers}
