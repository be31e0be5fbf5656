import torch
from hypothesis import given
from hypothesis import strategies as st

from rotalabs_steer.model.prefix_sharing import PrefixTree, group_into_trees, tree_tensors

texts_of_few_tokens = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8)


@given(texts_of_few_tokens)
def test_a_tree_has_a_node_for_each_distinct_prefix(texts):
    tree = PrefixTree(texts)
    assert len(tree.ids) == len({tuple(text[:end]) for text in texts for end in range(1, len(text) + 1)})
    assert [[tree.ids[node] for node in path] for path in tree.paths] == texts


@given(texts_of_few_tokens, st.integers(1, 8))
def test_units_stay_together_and_sizes_are_those_of_the_trees(texts, batch_size):
    units = [list(range(start, min(start + 2, len(texts)))) for start in range(0, len(texts), 2)]
    groups = group_into_trees(texts, units, batch_size, 0.1)
    assert sorted(index for group, _ in groups for index in group) == list(range(len(texts)))
    for group, size in groups:
        assert size == len(PrefixTree(texts[index] for index in group).ids)
        assert len(group) <= max(batch_size, 2)
        assert all(set(unit) <= set(group) or not set(unit) & set(group) for unit in units)


def test_a_large_tree_is_begun_anew_where_nothing_is_shared():
    texts = [[first, *range(10, 300)] for first in (1, 2)]
    assert group_into_trees(texts, [[0], [1]], None, 0.1) == [([0], 291), ([1], 291)]
    assert group_into_trees(texts, [[0], [1]], None, 0.0) == [([0, 1], 582)]


def test_tokens_see_their_ancestors_and_padding_sees_itself():
    ids, positions, sees = tree_tensors([PrefixTree([[5, 6], [5, 7]]), PrefixTree([[8]])])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert positions.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert sees.int().tolist() == [[[1, 0, 0], [1, 1, 0], [1, 0, 1]], torch.eye(3).int().tolist()]
