"""What a judge is, and the scores that it gives, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rotalabs_steer.arguments import as_real, plain_value
from rotalabs_steer.errors import DatasetError, OptionError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from rotalabs_steer.datasets.pairs import ContrastPair


class Judge(Protocol):
    """Scores what a model writes by how much each text shows one behavior. `tune` chooses layers by these scores.

    There are three kinds of judges:

    - A function of the user's that takes a list of texts and returns one number for each of them.
    - A `TextJudge`, a classifier of words that is fitted to contrast pairs. `tune` makes one if it is given no judge.
    - A `BehaviorJudge`, a language model that is shown a few contrast pairs. `LLMJudge.learn` makes it.

    Scores are only compared with scores of the same judge, so they may have any scale. `judge_accuracy` tells how often
    a judge ranks the two sides of a pair rightly. A function that says yes or no of one text, such as `is_refusal`, is
    not a judge in this sense.
    """

    def __call__(self, texts: Sequence[str], /) -> Sequence[float] | NDArray[np.floating[Any]] | torch.Tensor:
        """One finite number for each text, in their order, higher for more of the behavior."""
        ...


class LearningJudge(Protocol):
    """Learns the behavior to judge from contrast pairs, as an `LLMJudge` does."""

    def learn(self, pairs: Sequence[ContrastPair], /) -> Judge:
        """The judge of the behavior that the positive responses of these pairs show."""
        ...


def judge_of(judge: Judge | LearningJudge, pairs: Sequence[ContrastPair]) -> Judge:
    """The judge to use for the behavior of these pairs: the given one, or what it learns from the pairs.

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

    Raises:
        OptionError: the judge returned something other than a list, tuple, array or tensor with one finite number for
            each text.
    """
    returned = judge(texts)
    given = plain_value(returned)
    if not isinstance(given, Sequence) or isinstance(given, str | bytes) or len(given) != len(texts):
        raise OptionError(_message(texts, f"{type(returned).__name__} {returned!r:.80}"))
    scores: list[float] = []
    for text, value in zip(texts, map(plain_value, given), strict=True):
        score = float(value) if isinstance(value, bool) else as_real(value)
        if score is None:
            raise OptionError(_message(texts, f"{value!r:.80} for {text!r:.60}"))
        scores.append(score)
    return tuple(scores)


def judge_accuracy(judge: Judge, pairs: Sequence[ContrastPair]) -> float:
    """The share of pairs whose positive response the judge scores above the negative one: 0.5 is chance.

    Raises:
        OptionError: as in `judge_texts`.
    """
    scores = judge_texts(judge, [text for pair in pairs for text in (pair.positive, pair.negative)])
    sides = zip(scores[0::2], scores[1::2], strict=True)
    return sum(positive > negative for positive, negative in sides) / len(pairs)


def differing(pairs: Sequence[ContrastPair]) -> list[ContrastPair]:
    """The pairs whose responses differ. A judge can learn from no others.

    Raises:
        DatasetError: there are none, for example because the pairs differ only in their prompts.
    """
    found = [pair for pair in pairs if pair.positive.strip() != pair.negative.strip()]
    if not found:
        raise DatasetError("The responses of these pairs do not differ, so no judge can learn from them. Pass a judge.")
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
