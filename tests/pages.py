"""Pages of the documentation, followed as a reader would: files written, code run, and what is printed compared.

`python pages.py PAGE...` follows pages in the present folder with what is installed, and nothing of the test suite.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

SAMPLE = "HuggingFaceTB/SmolLM2-135M-Instruct"
_ALIKE = 0.85  # a near-tie between two tokens may fall the other way on another processor


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; with a title it is a file."""

    language: str
    title: str
    text: str


def blocks(page):
    found = re.findall(
        r'^```(\w*)(?: title="([^"\n]+)")?\n(.*?)^```$', page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return [Block(*parts) for parts in found]


def follow(page, run_line, given=None):
    """Writes a page's files, runs its Python and `bash` blocks, and compares what they print with the `text` below.

    Args:
        run_line: takes a line of a `bash` block, gives what it printed.
        given: names that the page's Python finds; it adds its own.
    """
    from rotalabs_steer.sample_model import sample_model_path

    given, printed = {} if given is None else given, None
    for block in blocks(page):
        text = block.text.replace(SAMPLE, str(sample_model_path()))
        if block.title:
            Path(block.title).write_text(text, "utf-8")
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(text, str(page), "exec"), given)
            printed = output.getvalue()
        elif block.language == "bash":
            printed = "".join(map(run_line, text.replace("\\\n", " ").splitlines()))
        elif block.language == "text" and printed is not None:
            assert alike(printed, block.text), f"{page} says\n{block.text}\nbut printed was\n{printed}"
        else:
            printed = None  # a block that only shows; so is what it printed
    return given


def alike(printed, expected):
    return SequenceMatcher(None, printed.split(), expected.split(), autojunk=False).ratio() >= _ALIKE


if __name__ == "__main__":
    for name in sys.argv[1:]:
        start = time.perf_counter()
        follow(Path(name), lambda line: subprocess.check_output(line, shell=True, text=True))
        print(f"{name}: {time.perf_counter() - start:.0f} s")
