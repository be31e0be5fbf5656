import pytest
import torch

from rotalabs_steer.errors import ArchitectureError
from rotalabs_steer.layer_outputs import first_tensor, with_first_tensor


def test_the_hidden_state_is_found_and_replaced_in_every_kind_of_output():
    old, new = torch.zeros(1), torch.ones(1)
    for output in (old, (old, "cache"), [old, "cache"]):
        assert first_tensor(output) is old
        replaced = with_first_tensor(output, new)
        assert type(replaced) is type(output)
        assert first_tensor(replaced) is new
        assert len(replaced) == len(output)
    with pytest.raises(ArchitectureError, match="A layer returned str"):
        first_tensor("nothing")
