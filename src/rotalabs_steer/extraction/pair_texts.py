"""The texts of contrast pairs and the tokens to read in them, for every way of running the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rotalabs_steer.errors import DatasetError, OptionError
from rotalabs_steer.extraction.readout import Readout, check_readout, default_readout, readout_name, token_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Float

    from rotalabs_steer.datasets.rendering import RenderedPair, RenderedText
    from rotalabs_steer.extraction.statistics import PairSums

_SIDES = ("positive", "negative")


def sides_of(pairs: Sequence[RenderedPair]) -> list[RenderedText]:
    """Both sides of pairs as one list. Texts 2n and 2n + 1 are the positive and the negative side of pair n."""
    return [side for pair in pairs for side in (pair.positive, pair.negative)]


def side_name(index: int) -> str:
    """What to call a text of `sides_of` in an error."""
    return f"the {_SIDES[index % 2]} text of pair {index // 2}"


def check_scorable(texts: Sequence[RenderedText], name: Callable[[int], str]) -> None:
    """Checks that every text has a token of a response with another token before it, from which it is predicted.

    Raises:
        DatasetError: there are no texts, or one has no such token.
    """
    if not texts:
        raise DatasetError("There are no texts to score: give at least one pair.")
    for index, text in enumerate(texts):
        if len(text.ids) <= max(text.response_start, 1):
            raise DatasetError(
                f"{name(index).capitalize()} has no token of a response to score ({len(text.ids)} tokens, the response "
                f"begins at {text.response_start}). Log-odds compare responses: give both sides one, for a pair of "
                "prompts the answers that the model gives to them."
            )


class PairTexts:
    """Both sides of pairs as one list of texts, with the weights of their tokens for each token position.

    Attributes:
        ids: token ids of each text.
        position_names: what the vectors record as their token position.

    Raises:
        OptionError, DatasetError: a token position does not exist, or a text has no token there.
    """

    def __init__(self, pairs: Sequence[RenderedPair], token_positions: Sequence[Readout | None]) -> None:
        self._texts = sides_of(pairs)
        self._positions = list(token_positions)
        defaults = "/".join(sorted({default_readout(text) for text in self._texts}))
        self.position_names: list[str] = []
        for position in self._positions:
            if position is not None:
                check_readout(position)
            self.position_names.append(defaults if position is None else readout_name(position))
        if len(set(self.position_names)) < len(self.position_names):
            raise OptionError(f"Token positions {self.position_names} name one twice; name each once.")
        for index in range(len(self._texts)):
            self.weights(index)  # a pair that cannot be read is an error before the model runs
        self.ids = [text.ids for text in self._texts]

    @property
    def num_pairs(self) -> int:
        """How many pairs there are."""
        return len(self._texts) // 2

    def weights(self, index: int) -> list[Float[torch.Tensor, " seq"]]:
        """A weight for each token of one text, for each token position."""
        text = self._texts[index]
        return [token_weights(text, p or default_readout(text), side_name(index)) for p in self._positions]

    def add(
        self,
        sums: Mapping[str, PairSums],
        texts: Sequence[int],
        activations: Float[torch.Tensor, "places positions texts hidden"],
    ) -> None:
        """Adds the activations of whole pairs to the sums of each token position.

        Args:
            texts: indices of the texts, in any order; both texts of a pair are among them.
        """
        order = torch.tensor(texts).argsort()  # brings the sides of each pair together, the positive one first
        numbers = [texts[row] // 2 for row in order[::2].tolist()]
        for position, pooled in zip(self.position_names, activations.unbind(dim=1), strict=True):
            sums[position].add(numbers, torch.unflatten(pooled[:, order], 1, (-1, 2)))
