"""Judges of what a model writes: what `tune(judge=...)` takes, and the scores that it gets, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from rotalabs_steer.errors import DatasetError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rotalabs_steer.datasets.pairs import ContrastPair


class Judge(Protocol):
    """Scores texts: a function, a `TextJudge`, or what an `LLMJudge` becomes once it has seen a behaviour's pairs."""

    def __call__(self, texts: Sequence[str], /) -> Sequence[float] | NDArray[np.floating[Any]] | torch.Tensor:
        """One finite number for each text, in their order, higher for more of the behaviour."""
        ...


class LearningJudge(Protocol):
    """Does not know the behaviour by itself and learns it from pairs, as an `LLMJudge` does."""

    def learn(self, pairs: Sequence[ContrastPair], /) -> Judge:
        """The judge of the behaviour that the positive responses of these pairs show."""
        ...


def judge_of(judge: Judge | LearningJudge, pairs: Sequence[ContrastPair]) -> Judge:
    """The judge of the behaviour that pairs show: the one that is given, or what it learns from the pairs.

    Raises:
        OptionError: it is neither a function of a list of texts nor a judge that learns.
    """
    learn: Any = getattr(judge, "learn", None)
    found: Any = learn(pairs) if callable(learn) and not isinstance(judge, type) else judge
    if isinstance(found, type) or not callable(found):
        raise OptionError(
            f"The judge is {judge!r:.80}. Give a function that returns one number for each text of a list, a TextJudge "
            "or an LLMJudge."
        )
    learned: Judge = found
    return learned


def judge_texts(judge: Judge, texts: Sequence[str]) -> tuple[float, ...]:
    """The judge's score of each text.

    Args:
        judge: returns a list, tuple, array or tensor with one number for each text.

    Raises:
        OptionError: it returned something else, another number of scores, or one that is not finite.
    """
    returned: Any = judge(texts)
    if isinstance(returned, torch.Tensor):
        returned = returned.detach().cpu().float().numpy()
    try:
        given = np.asarray(returned)
        if given.dtype.kind not in "biufO" or any(isinstance(score, str) for score in given.flat):
            raise TypeError("scores are real numbers, not text")
        scores = given.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise OptionError(_message(texts, f"{type(returned).__name__} {returned!r:.80}")) from error
    if scores.shape != (len(texts),):
        raise OptionError(_message(texts, f"{type(returned).__name__} of shape {list(scores.shape)}"))
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise OptionError(_message(texts, f"{scores[bad[0]]} for {texts[bad[0]]!r:.60}"))
    return tuple(scores.tolist())


def judge_accuracy(judge: Judge, pairs: Sequence[ContrastPair]) -> float:
    """The share of pairs whose positive response the judge scores above the negative one: 0.5 is chance.

    Raises:
        OptionError: the judge's scores are not one finite number for each text.
    """
    scores = judge_texts(judge, [text for pair in pairs for text in (pair.positive, pair.negative)])
    return float(np.mean(np.greater(scores[0::2], scores[1::2])))


def differing(pairs: Sequence[ContrastPair]) -> list[ContrastPair]:
    """The pairs whose responses differ, from which a judge can learn.

    Raises:
        DatasetError: there are none, as where pairs differ in their prompts only.
    """
    found = [pair for pair in pairs if pair.positive.strip() != pair.negative.strip()]
    if not found:
        raise DatasetError("The responses of these pairs do not differ, so no judge can learn from them: pass one.")
    return found


def judge_name(judge: Judge) -> str:
    """What a report calls the judge."""
    described = type(judge).__str__ is not object.__str__
    return str(judge) if described else str(getattr(judge, "__qualname__", type(judge).__name__))


def _message(texts: Sequence[str], returned: str) -> str:
    return (
        f"The judge was asked for scores of {len(texts)} texts and returned {returned}. It must return one finite "
        "number for each text, in their order: a list, tuple, array or tensor."
    )
