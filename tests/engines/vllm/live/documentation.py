"""The code blocks of docs/vllm.md, and of the tutorial on it."""

from __future__ import annotations

import re
from pathlib import Path

from rotalabs_steer.sample_model import sample_model_path

SMALL = "dtype='float32', max_model_len=512, max_num_seqs=8, enforce_eager=True"
_DOCS = Path(__file__).parents[4] / "docs"


def blocks(page="vllm.md"):
    """The guide's are the request, the program that steers, and the one that extracts."""
    text = (_DOCS / page).read_text("utf-8").replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(sample_model_path()))
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)
