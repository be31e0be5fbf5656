from collections import deque

import numpy as np
import pytest
import torch

from rotalabs_steer.errors import OptionError
from rotalabs_steer.judging.scoring import judge_texts

TEXTS = ["w20 w21", "w22", ""]
SCORES = (2.0, 1.0, 0.0)


@pytest.mark.parametrize("kind", [
    list, tuple, np.array, torch.tensor, lambda scores: torch.tensor(scores, dtype=torch.bfloat16, requires_grad=True),
    lambda scores: [np.float32(score) for score in scores], lambda scores: [int(score) for score in scores],
    lambda scores: [torch.tensor(score) for score in scores], deque,
])  # fmt: skip
def test_whatever_holds_a_number_for_each_text_is_taken(kind):
    found = judge_texts(lambda texts: kind([float(len(text.split())) for text in texts]), TEXTS)
    assert found == SCORES
    assert {type(score) for score in found} == {float}


@pytest.mark.parametrize(("returned", "said"), [
    ([1.0, 2.0], r"returned list \[1.0, 2.0\]"),
    (0.5, "returned float 0.5"),
    ("123", "returned str '123'"),
    (b"123", "returned bytes b'123'"),
    (np.zeros((3, 1)), r"returned \[0.0\] for 'w20 w21'"),
    ([0.1, float("nan"), 0.2], "returned nan for 'w22'"),
    ([0.1, 0.2, float("inf")], "returned inf for ''"),
    (["high", "low", "low"], "returned 'high' for 'w20 w21'"),
    (["1", "2", "3"], "returned '1' for 'w20 w21'"),
    (np.array(["1", "2", "3"]), "returned '1' for 'w20 w21'"),
    (np.array([1, "2", 3], dtype=object), "returned '2' for 'w22'"),
    (np.array([1 + 0j, 2, 3]), r"returned \(1\+0j\) for 'w20 w21'"),
    ({"w20 w21": 1.0}, "returned dict"),
    (None, "returned NoneType"),
])  # fmt: skip
def test_what_is_not_a_number_for_each_text_is_an_error(returned, said):
    with pytest.raises(OptionError, match=f"scores of 3 texts and {said}.*one finite number for each text"):
        judge_texts(lambda texts: returned, TEXTS)
