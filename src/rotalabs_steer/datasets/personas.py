"""Pairs that differ in the system message only: a persona against its opposite.

The contrast is in what the model is told to be, not in what it says. It follows the stimulus templates of
representation engineering (Zou et al. 2023, arXiv:2310.01405, section 3.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rotalabs_steer.datasets.pairs import ContrastPair, ContrastPairDataset
from rotalabs_steer.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def persona_pairs(
    prompts: Iterable[str],
    positive_system: str,
    negative_system: str,
    responses: Sequence[str] | Callable[[str], str] | None = None,
    behavior: str = "persona",
) -> ContrastPairDataset:
    """One pair for each prompt, which both sides share: one with a system message, the other with its opposite.

    Args:
        positive_system: the system message that asks for the behaviour; "" for none on that side.
        negative_system: its opposite; "" for none on that side.
        responses: the response to each prompt, the same on both sides, as a list or as a function of the prompt. None
            means no response; the last token of the prompt is then read.

    Raises:
        DatasetError: no prompts, an empty prompt or response, equal system messages, or one response too many or few.
    """
    if isinstance(prompts, str):
        raise DatasetError(f"Prompts must be a list of strings, got one string ({prompts!r:.40}). Put it into a list.")
    prompts = list(prompts)
    if not prompts:
        raise DatasetError("There are no prompts: persona pairs need at least one.")
    if positive_system.strip() == negative_system.strip():
        raise DatasetError(
            f"Both system messages are {positive_system!r:.40}, so the sides would not differ. Give two different ones."
        )
    if responses is None:
        answers = [""] * len(prompts)
    elif callable(responses):
        answers = [responses(prompt) for prompt in prompts]
    else:
        answers = [responses] if isinstance(responses, str) else list(responses)
        if len(answers) != len(prompts):
            raise DatasetError(
                f"There are {len(answers)} responses for {len(prompts)} prompts. Give one for each, or a function of "
                "the prompt."
            )
    pairs = []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), 1):
        if responses is not None and (not isinstance(answer, str) or not answer.strip()):
            raise DatasetError(
                f"The response to prompt {number} ({prompt!r:.40}) is empty or not a string ({answer!r:.40}). Give a "
                "string for every prompt."
            )
        try:
            pairs.append(
                ContrastPair(
                    answer, answer, prompt=prompt, system=positive_system or None, negative_system=negative_system
                )
            )
        except DatasetError as error:
            raise DatasetError(f"Prompt {number}: {error}") from error
    return ContrastPairDataset(behavior, pairs, positive_system)
