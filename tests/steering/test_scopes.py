import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rotalabs_steer.errors import OptionError, PositionError
from rotalabs_steer.model.positions import forward_call
from rotalabs_steer.steering.scopes import SCOPES, AfterMarker, TokenRange, select

# A row of a batch: pads before, prompt tokens, pads between prompt and generated tokens, generated tokens.
rows = st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(0, 3))


def as_tensor(selection, batch, columns):
    return selection.clone() if isinstance(selection, torch.Tensor) else torch.full((batch, columns), selection)


def expected(scope, mask, prompt_columns):
    """Token by token, from the definition of the scopes."""
    chosen = torch.zeros_like(mask, dtype=torch.bool)
    for row in range(mask.shape[0]):
        real = [column for column in range(mask.shape[1]) if mask[row, column]]
        prompt = [column for column in real if column < prompt_columns]
        generated = [column for column in real if column >= prompt_columns]
        picked = {
            "all": real,
            "first": real[:1],
            "last": prompt[-1:] + generated,
            "generated": prompt[-1:] + generated,
            "prompt": prompt,
        }[scope]
        chosen[row, picked] = True
    return chosen


@given(st.lists(rows, min_size=1, max_size=3), st.integers(0, 4), st.data())
def test_scopes_mean_the_same_tokens_in_one_call_and_in_many(shape, generated, data):
    prompt_columns = max(sum(row) for row in shape)
    mask = torch.zeros(len(shape), prompt_columns + generated, dtype=torch.long)
    for number, (before, tokens, _) in enumerate(shape):
        mask[number, before : before + tokens] = 1
    mask[:, prompt_columns:] = 1
    total = mask.shape[1]
    padded_right = any(prompt_columns > before + tokens for before, tokens, _ in shape)
    cuts = data.draw(st.lists(st.integers(prompt_columns if padded_right else 0, total), max_size=4))
    cuts = sorted({0, total, *cuts})
    for scope in SCOPES:
        pieces = []
        for start, end in itertools.pairwise(cuts):
            call = forward_call(len(shape), end - start, mask=mask[:, :end], prompt_columns=prompt_columns)
            pieces.append(as_tensor(select(call, scope), len(shape), end - start))
        assert torch.equal(torch.cat(pieces, dim=1), expected(scope, mask, prompt_columns)), scope


def test_a_call_on_its_own_is_all_prompt():
    call = forward_call(2, 3)
    assert select(call, "all") is True
    assert select(call, "prompt") is True
    assert select(call, "last").tolist() == [[False, False, True]] * 2
    assert select(call, "first").tolist() == [[True, False, False]] * 2


def test_one_column_behind_a_cache_is_a_generated_token():
    call = forward_call(1, 1, offset=5)
    assert select(call, "last") is True
    assert select(call, "prompt") is False
    assert select(call, "first") is False


def test_the_last_real_token_of_a_call():
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert forward_call(2, 3, mask=mask).last_real().tolist() == [[False, True, False], [False, False, True]]
    assert forward_call(2, 1, offset=3).last_real() is True


def test_an_unknown_scope_is_an_error():
    with pytest.raises(OptionError, match=r"Unknown scope 'lats'. Use one of: all, .*generated, a TokenRange"):
        select(forward_call(1, 1), "lats")


@pytest.mark.parametrize(("first", "second"), [(3, 2), (2, 3)])
def test_a_right_padded_prompt_in_chunks_is_an_error(first, second):
    mask = torch.tensor([[1, 1, 0, 0, 0]])

    def both():
        for start, end in ((0, first), (first, first + second)):
            select(forward_call(1, end - start, mask=mask[:, :end], prompt_columns=5), "last")

    with pytest.raises(PositionError, match=r"padded on the right comes in chunks.*padding_side = 'left'"):
        both()


def test_a_range_counts_real_tokens():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    call = forward_call(2, 5, mask=mask)
    assert select(call, TokenRange(1, 3)).int().tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]]
    assert select(call, TokenRange(2)).int().tolist() == [[0, 0, 0, 0, 1], [0, 0, 1, 1, 0]]
    assert select(forward_call(1, 1, offset=7), TokenRange(5)) is True
    assert select(forward_call(1, 1, offset=7), TokenRange(0, 7)) is False
    for start, stop in ((-1, None), (3, 3)):
        with pytest.raises(OptionError, match="A token range runs from 0 or more"):
            TokenRange(start, stop)


def test_after_a_marker_the_markers_last_token_counts():
    ids = torch.tensor([[1, 7, 8, 2, 7, 8], [1, 2, 7, 3, 7, 8], [1, 2, 3, 4, 5, 6]])
    after = AfterMarker((7, 8))
    expected = [[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]
    assert select(forward_call(3, 6, ids=ids), after).int().tolist() == expected
    assert select(forward_call(3, 2, offset=4, ids=ids), after).int().tolist() == [row[4:] for row in expected]
    assert select(forward_call(1, 1, ids=torch.tensor([[7]])), after) is False
    with pytest.raises(PositionError, match=r"a marker cannot be found. Use model.generate with input_ids"):
        select(forward_call(1, 1, offset=3, ids=ids[:1, :1]), after)
    with pytest.raises(OptionError, match="at least one token"):
        AfterMarker(())


def test_a_mask_that_does_not_fit_is_an_error():
    with pytest.raises(PositionError, match=r"mask of shape \[1, 2\] does not fit a call of 1 rows and 3 columns"):
        forward_call(1, 3, mask=torch.ones(1, 2))
