"""The pass over contrast pairs: the activations at every place and token position, summed as the batches come."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

from rotalabs_steer.extraction.checkpoint import Checkpoint
from rotalabs_steer.extraction.distributed import add_over_processes, rank_and_size
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
    from rotalabs_steer.model.batching import BatchPlan


def sum_over_pairs(
    model: nn.Module,
    texts: PairTexts,
    places: Sequence[Place],
    needs: frozenset[str],
    *,
    batch_size: int | None,
    resume: str | os.PathLike[str] | None,
    show_progress: bool,
) -> dict[str, PairSums]:
    """Runs the model over the texts of all pairs and sums what is read, by name of the token position.

    Args:
        resume: a file that keeps the state. If it exists, the pass continues from there.
    """
    plan = plan_batches(model, texts.ids, batch_size, together=2)
    rank, size = rank_and_size(model)
    sums = {name: PairSums(len(places), hidden_size(model), texts.num_pairs, needs) for name in texts.position_names}
    # The state holds the tensors of the sums themselves, so a state that is loaded into it fills the sums.
    state = {f"{position}/{key}": tensor for position in sums for key, tensor in sums[position].tensors.items()}
    checkpoint = None
    done = 0
    if resume is not None:
        checkpoint = Checkpoint(resume, _digest_of_work(model, texts, places, needs, plan), rank, size)
        done, kept = checkpoint.load()
        for name, tensor in kept.items():
            state[name].copy_(tensor)

    def receive(indices: list[int], activations: torch.Tensor) -> None:
        nonlocal done
        texts.add(sums, indices, activations)
        done += 1
        if checkpoint is not None:
            checkpoint.save(done, state)

    # Neighbouring batches cost about the same, so taking every n-th makes the processes' shares equal.
    remaining = replace(plan, batches=plan.batches[rank::size][done:])
    try:
        read_activations(
            model, texts.ids, remaining, places, texts.weights, receive, name=side_name, show_progress=show_progress
        )
    finally:
        if checkpoint is not None and done:
            checkpoint.save(done, state, now=True)
    if size > 1:
        for found in sums.values():
            found.tensors = add_over_processes(found.tensors)
    return sums


def _digest_of_work(
    model: nn.Module, texts: PairTexts, places: Sequence[Place], needs: frozenset[str], plan: BatchPlan
) -> str:
    """A digest of everything that the sums depend on."""
    digest = hashlib.sha256()
    identity = (model_name(model), model_digest(model))
    digest.update(repr((identity, sorted(needs), places, texts.position_names)).encode())
    digest.update(repr(plan.batches).encode())
    for index, ids in enumerate(texts.ids):
        digest.update(array("q", ids).tobytes())
        for weights in texts.weights(index):
            digest.update(weights.numpy().tobytes())
    return digest.hexdigest()
