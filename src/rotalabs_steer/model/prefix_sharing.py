"""Texts as trees of tokens, in which a prefix that several texts share appears once.

The two sides of a contrast pair share their prompt, all pairs share the system message, and the options of a
multiple-choice question differ in one token. One row of model input can hold a whole tree: its attention mask lets
every token see only its own ancestors, and a token's position is its depth. The model then computes each distinct
token once, with the same result as text by text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SMALL_TREE = 256  # in a tree of up to so many tokens, attending to all of them costs less than padding would
_LARGEST_TREE = 4_096  # the mask of a tree holds a number for every two of its tokens


class PrefixTree:
    """Texts merged from their first token on: one node for each distinct prefix.

    Attributes:
        ids: the token id of each node.
        paths: the nodes of each text, from its first token to its last.
    """

    def __init__(self, texts: Iterable[Sequence[int]] = ()) -> None:
        self.ids: list[int] = []
        self.paths: list[list[int]] = []
        self._children: dict[tuple[int, int], int] = {}
        self.extend(texts)

    def extend(self, texts: Iterable[Sequence[int]]) -> None:
        """Merges further texts into the tree."""
        for text in texts:
            node, path = -1, []  # -1 is the root, which holds no token
            for token in text:
                node = self._children.setdefault((node, token), len(self.ids))
                if node == len(self.ids):
                    self.ids.append(token)
                path.append(node)
            self.paths.append(path)


def group_into_trees(
    texts: Sequence[Sequence[int]], units: Sequence[list[int]], batch_size: int | None, attention_cost: float
) -> list[tuple[list[int], int]]:
    """Groups texts that share much. Returns each group's text indices and the number of nodes of its tree.

    Args:
        units: indices of texts that must stay in one group.
        batch_size: maximum number of texts in a group.
        attention_cost: cost of attending to one token, where computing a token costs 1.
    """

    def cost(size: int) -> float:
        # The mask hides tokens, but they are computed: each token of a tree attends to all others.
        return size + attention_cost * size**2

    groups: list[tuple[list[int], int]] = []
    group: list[int] = []
    tree = PrefixTree()
    # In lexicographic order, the texts that share the longest prefixes are neighbours.
    for unit in sorted(units, key=lambda unit: [texts[index] for index in unit]):
        unit_tree = PrefixTree(texts[index] for index in unit)
        size, alone = len(tree.ids), len(unit_tree.ids)
        tree.extend(texts[index] for index in unit)
        grown = len(tree.ids)
        is_dearer = grown > _SMALL_TREE and cost(grown) > cost(size) + cost(alone)
        is_full = batch_size is not None and len(group) + len(unit) > batch_size
        if group and (is_dearer or is_full or grown > _LARGEST_TREE):
            groups.append((group, size))
            group, tree = [], unit_tree
        group = [*group, *unit]
    return [*groups, (group, len(tree.ids))]


def tree_tensors(trees: Sequence[PrefixTree]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows that hold one tree each, padded on the right.

    Returns:
        Token ids and positions `[rows, columns]`, and which tokens each token sees `[rows, columns, columns]`.
    """
    length = max(len(tree.ids) for tree in trees)
    ids = torch.zeros(len(trees), length, dtype=torch.long)
    positions = torch.zeros(len(trees), length, dtype=torch.long)
    # Padding sees itself: the softmax over a row of the mask that hides everything would be NaN.
    sees = torch.eye(length, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        ids[row, : len(tree.ids)] = torch.tensor(tree.ids)
        for path in tree.paths:
            nodes = torch.tensor(path)
            positions[row, nodes] = torch.arange(len(path))
            sees[row][nodes[:, None], nodes] = torch.ones(len(path), len(path), dtype=torch.bool).tril()
    return ids, positions, sees
