"""The pass over contrast pairs: every read-out of every place, summed as the batches come."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

from rotalabs_steer.extraction.checkpoint import Checkpoint
from rotalabs_steer.extraction.distributed import add_over_processes, own_share, rank_and_size
from rotalabs_steer.extraction.forward_pass import read_activations
from rotalabs_steer.extraction.pair_texts import side_name
from rotalabs_steer.extraction.statistics import PairSums
from rotalabs_steer.model.batching import plan_batches
from rotalabs_steer.model.decoder import hidden_size, model_name
from rotalabs_steer.model.digest import model_digest

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import torch
    from torch import nn

    from rotalabs_steer.extraction.forward_pass import Place
    from rotalabs_steer.extraction.pair_texts import PairTexts


class PairPass:
    """One run of the model over the texts of pairs. The sides of a pair stay in one batch."""

    def __init__(
        self,
        model: nn.Module,
        texts: PairTexts,
        places: Sequence[Place],
        needs: frozenset[str],
        batch_size: int | None = None,
    ) -> None:
        self._model, self._texts, self._places, self._needs = model, texts, places, needs
        self._plan = plan_batches(model, texts.ids, batch_size, together=2)

    def run(self, resume: str | os.PathLike[str] | None, *, show_progress: bool) -> dict[str, PairSums]:
        """The sums over all pairs, by name of the token position; from the file `resume` on, if there is one."""
        size = (len(self._places), hidden_size(self._model), self._texts.num_pairs)
        sums = {name: PairSums(*size, self._needs) for name in self._texts.position_names}
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
            self._texts.add(sums, texts, activations)
            done += 1
            if checkpoint is not None:
                checkpoint.save(done, state)

        remaining = replace(self._plan, batches=own_share(self._plan.batches, self._model)[done:])
        try:
            read_activations(
                self._model,
                self._texts.ids,
                remaining,
                self._places,
                self._texts.weights,
                receive,
                name=side_name,
                show_progress=show_progress,
            )
        finally:
            if checkpoint is not None and done:
                checkpoint.save(done, state, now=True)
        for found in sums.values():
            found.tensors = add_over_processes(found.tensors, self._model)
        return sums

    def _work(self) -> str:
        """A digest of everything that the sums depend on."""
        digest = hashlib.sha256()
        model = (model_name(self._model), model_digest(self._model))
        digest.update(repr((model, sorted(self._needs), self._places, self._texts.position_names)).encode())
        digest.update(repr(self._plan.batches).encode())
        for index, ids in enumerate(self._texts.ids):
            digest.update(array("q", ids).tobytes())
            for weights in self._texts.weights(index):
                digest.update(weights.numpy().tobytes())
        return digest.hexdigest()
