"""Writes docs/architectures.md: `python tests/architectures/table.py`, from the repository's root."""

from __future__ import annotations

import collections
import os
import re
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "architectures.md"

_INTRODUCTION = """# Architectures

What works on which model. A tiny random instance of every text-generating architecture in transformers {version} is
built and checked by `tests/architectures`; this page is written by `python tests/architectures/table.py`.

- **shapes**: as many decoder layers are found as are configured, and `hidden_size` is the width of what they return.
- **capture**: captured activations are what the layers return, and what `output_hidden_states` shows (all layers but
  the last, which transformers shows after the final norm).
- **parts**: the stream before a layer plus what `component="attn"` and `"mlp"` capture (and what further parts add,
  such as cross-attention) is the stream after it. Where a layer is not such a sum, its parts are refused.
- **extraction**: texts read in batches have the mean activations that each has alone, at every layer.
- **injection**: the vector arrives at the tokens of modes `all`, `first` and `last`, exactly, and at no padding.
- **restore**: after leaving, the logits are the same bit for bit and no hook is left.
- **cache**: steered generation with the KV cache has the logits of generation without it, in each mode.
- **left / right padding**: a row in a padded batch has the logits that it has alone, in each mode, steered.

"n/a" has its reason below. Where it says "unsteered", the model itself lacks the property, which is measured each time;
most of these in *left padding* have learned absolute positions and take no `position_ids`. "Not tested" is a limit of
the test: its inputs do not suit that model's `generate`.

What the tests do not show: trained weights, images and sounds (image-text models get text, and images only where they
insist), batches in *cache* (one row). They take liberties with two models: BLT's layers see patches of bytes, so
positions are patches and padding is not told apart, and mode `last` need not change logits; HRM runs its layers in one
cycle, because with more of them the vector is added in each.

"""


def architectures_in(page: str) -> list[tuple[str, str, str]]:
    """Group, model type and class of each row of the page."""
    rows = re.findall(r"^\| (\S+) \| `(\S+)` \| `(\S+)` \|", page, flags=re.MULTILINE)
    return [tuple(row) for row in rows]


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path.insert(0, str(HERE.parent))
    warnings.simplefilter("ignore")
    import torch
    import transformers

    from architectures.checks import CHECKS
    from architectures.tiny_instances import ARCHITECTURES

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    results = {architecture: _results(architecture) for architecture in ARCHITECTURES}
    page = _INTRODUCTION.format(version=transformers.__version__) + _summary(results, list(CHECKS))
    page += f"\n| group | model type | class | layers | {' | '.join(CHECKS)} |\n|{'---|' * (4 + len(CHECKS))}\n"
    notes: dict[str, int] = {}
    for each, (path, answers) in results.items():
        cells = " | ".join(_cell(answer, notes) for answer in answers.values())
        page += f"| {each.group} | `{each.model_type}` | `{each.class_name}` | {path} | {cells} |\n"
    page += "\n" + "".join(f"{number}. {note}\n" for note, number in notes.items())
    PAGE.write_text(page)


def _results(architecture) -> tuple[str, dict[str, str]]:
    """Where the layers were found, and "yes", "n/a: reason" or "no: reason" for each check."""
    from architectures.checks import CHECKS, NotApplicable, Subject
    from architectures.tiny_instances import DRAFTS, build
    from rotalabs_steer.model.decoder import decoder_layers

    if architecture.model_type in DRAFTS:
        return "", dict.fromkeys(CHECKS, "n/a: drafts for a target model and does not run without it")
    subject = Subject(build(architecture))
    layers = decoder_layers(subject.model)
    path = next(name for name, module in subject.model.named_modules() if module is layers)
    answers = {}
    for name, check in CHECKS.items():
        try:
            check(subject)
            answers[name] = "yes"
        except NotApplicable as reason:
            answers[name] = f"n/a: {reason}"
        except Exception as error:  # the page says so
            answers[name] = f"no: {type(error).__name__}: {error}".splitlines()[0]
    return f"`{path}`", answers


def _cell(answer: str, notes: dict[str, int]) -> str:
    """The answer with the number of its reason among the notes."""
    word, _, reason = answer.partition(": ")
    return f"{word} [{notes.setdefault(reason, len(notes) + 1)}]" if reason else word


def _summary(results, names: list[str]) -> str:
    page = f"| group | architectures | {' | '.join(names)} | every check that applies |\n|{'---|' * (3 + len(names))}\n"
    for group in dict.fromkeys(each.group for each in results):
        answers = [answer for each, (_, answer) in results.items() if each.group == group]
        cells = []
        for name in names:
            counts = collections.Counter(answer[name].partition(":")[0] for answer in answers)
            cells.append(", ".join(f"{count} {word}" for word, count in counts.most_common()))
        words = [{a.partition(":")[0] for a in answer.values()} for answer in answers]
        passed = sum("yes" in each and "no" not in each for each in words)
        page += f"| {group} | {len(answers)} | {' | '.join(cells)} | {passed} |\n"
    return page


if __name__ == "__main__":
    main()
