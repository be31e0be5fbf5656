"""Text that has nothing to do with any behaviour, which steering should therefore leave unchanged."""

from __future__ import annotations

import json
from importlib.resources import files


def neutral_passages() -> list[str]:
    """The neutral passages that come with the package."""
    lines = files("rotalabs_steer.datasets").joinpath("data/neutral.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]
