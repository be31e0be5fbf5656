"""What a judge says of texts, checked: whatever holds one finite number for each text is taken as such."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rotalabs_steer.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Judge = Callable[[Sequence[str]], Sequence[float] | NDArray[np.floating[Any]] | torch.Tensor]


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


def _message(texts: Sequence[str], returned: str) -> str:
    return (
        f"The judge was asked for scores of {len(texts)} texts and returned {returned}. It must return one finite "
        "number for each text, in their order: a list, tuple, array or tensor."
    )
