"""The pass over contrast pairs: every read-out of every place, summed as the batches come."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rotalabs_steer.decoder import hidden_size, model_fingerprint, model_name
from rotalabs_steer.errors import OptionError
from rotalabs_steer.extraction.checkpoint import Checkpoint
from rotalabs_steer.extraction.forward_pass import read_activations
from rotalabs_steer.extraction.processes import add_over_processes, own_share, rank_and_size
from rotalabs_steer.extraction.readout import Readout, check_readout, default_readout, readout_name, token_weights
from rotalabs_steer.extraction.statistics import PairSums
from rotalabs_steer.text_batches import plan_batches

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from torch import nn

    from rotalabs_steer.datasets.rendering import RenderedPair
    from rotalabs_steer.extraction.forward_pass import Place

_SIDES = ("positive", "negative")


class PairPass:
    """Checks that everything asked for can be read, then runs the model once.

    Texts 2n and 2n + 1 are the sides of pair n; they stay in one batch.

    Raises:
        OptionError, DatasetError: a token position does not exist, or a pair has none.
    """

    def __init__(
        self,
        model: nn.Module,
        pairs: Sequence[RenderedPair],
        places: Sequence[Place],
        token_positions: Sequence[Readout | None],
        needs: frozenset[str],
        batch_size: int | None = None,
    ) -> None:
        self._model, self._places, self._needs = model, places, needs
        self._texts = [side for pair in pairs for side in (pair.positive, pair.negative)]
        self._positions = list(token_positions)
        for position in self._positions:
            if position is not None:
                check_readout(position)
        self.position_names = [self._name(position) for position in self._positions]
        if len(set(self.position_names)) < len(self.position_names):
            raise OptionError(f"Token positions {self.position_names} name one twice; name each once.")
        for index in range(len(self._texts)):
            self._weights(index)  # a pair that cannot be read is an error before the model runs
        self._ids = [text.ids for text in self._texts]
        self._plan = plan_batches(model, self._ids, batch_size, together=2)

    def run(self, resume: str | os.PathLike[str] | None, *, show_progress: bool) -> dict[str, PairSums]:
        """The sums over all pairs, by name of the token position; from the file `resume` on, if there is one."""
        pairs = len(self._texts) // 2
        hidden = hidden_size(self._model)
        sums = {n: PairSums(len(self._places), hidden, pairs, self._needs) for n in self.position_names}
        state = {f"{position}/{key}": tensor for position in sums for key, tensor in sums[position].tensors.items()}
        checkpoint = None
        done = 0
        if resume is not None:
            checkpoint = Checkpoint.at(resume, self._work(), *rank_and_size(self._model))
            done, kept = checkpoint.load()
            for name, tensor in kept.items():
                state[name].copy_(tensor)

        def receive(texts: list[int], activations: torch.Tensor) -> None:
            nonlocal done
            order = torch.tensor(texts).argsort()
            numbers = [texts[row] // 2 for row in order[::2].tolist()]
            for position, pooled in zip(self.position_names, activations.unbind(dim=1), strict=True):
                sums[position].add(numbers, torch.unflatten(pooled[:, order], 1, (-1, 2)))
            done += 1
            if checkpoint is not None:
                checkpoint.save(done, state)

        remaining = replace(self._plan, batches=own_share(self._plan.batches, self._model)[done:])
        try:
            read_activations(
                self._model,
                self._ids,
                remaining,
                self._places,
                self._weights,
                receive,
                name=self._place_of,
                show_progress=show_progress,
            )
        finally:
            if checkpoint is not None and done:
                checkpoint.save(done, state, now=True)
        for found in sums.values():
            found.tensors = add_over_processes(found.tensors, self._model)
        return sums

    def _weights(self, index: int) -> list[torch.Tensor]:
        text = self._texts[index]
        return [token_weights(text, p or default_readout(text), self._place_of(index)) for p in self._positions]

    def _name(self, position: Readout | None) -> str:
        if position is not None:
            return readout_name(position)
        return "/".join(sorted({default_readout(text) for text in self._texts}))

    @staticmethod
    def _place_of(index: int) -> str:
        return f"the {_SIDES[index % 2]} text of pair {index // 2}"

    def _work(self) -> str:
        """A digest of everything that the sums depend on, but for the model's weights."""
        digest = hashlib.sha256()
        model = (model_name(self._model), model_fingerprint(self._model))
        digest.update(repr((model, sorted(self._needs), self._places, self.position_names)).encode())
        digest.update(repr(self._plan.batches).encode())
        for index, ids in enumerate(self._ids):
            digest.update(array("q", ids).tobytes())
            for weights in self._weights(index):
                digest.update(weights.numpy().tobytes())
        return digest.hexdigest()
