import numpy as np
import pytest
import torch

from rotalabs_steer.errors import OptionError
from rotalabs_steer.evaluation import Sampling, evaluate_steering_strength, generate_response
from rotalabs_steer.evaluation.strength_measurement import outcomes


def test_a_detector_that_asks_the_model_itself_asks_it_unsteered(llama, words, naming):
    vector, _ = naming(llama)
    plain, verdicts = generate_response(llama, words, "w40", 4), []

    def shows(text):
        verdicts.append(generate_response(llama, words, "w40", 4))
        return True

    evaluate_steering_strength(llama, words, ["w30"], vector, shows, [50.0], False, sampling=Sampling(2))
    assert verdicts == [plain] * 2


@pytest.mark.parametrize("returned", [
    None, "no", b"no", np.str_("no"), 0.7, np.float32(0.5), torch.tensor(0.3), float("nan"), torch.tensor(float("nan")),
    2, -1, 10**5, [], [1], (False,), np.array([0, 1]), {"a": 1},
])  # fmt: skip
def test_what_is_neither_yes_nor_no_is_an_error(returned):
    with pytest.raises(OptionError, match=r"returned .* for 'w20'; it must return True or False"):
        outcomes(["w20"], lambda text: returned)


@pytest.mark.parametrize(("returned", "outcome"), [
    (True, True), (0, False), (1.0, True), (np.bool_(False), False), (torch.tensor(True), True), (np.float32(1), True),
    (torch.tensor(0.0), False), (np.int64(1), True),
])  # fmt: skip
def test_yes_and_no_may_be_numbers(returned, outcome):
    assert outcomes(["w20"], lambda text: returned) == (outcome,)
