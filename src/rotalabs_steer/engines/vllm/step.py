"""Writes the steering of a batch into the steering buffers, before each step of the engine."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rotalabs_steer.engines.vllm.catalogue import Catalogue
    from rotalabs_steer.engines.vllm.layers import SteeringBuffers
    from rotalabs_steer.engines.vllm.steering import Steering


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one request in a step.

    Attributes:
        prompt_tokens: length of the request's prompt.
        start: position of the first of these tokens in the request's sequence.
        tokens: number of these tokens.
    """

    steering: Steering | None
    prompt_tokens: int
    start: int
    tokens: int


class StepWriter:
    """Fills the buffers of one worker.

    Each different steering of a batch has one row of the tables, which holds the sum of its additions at each layer.
    A request with ten behaviours therefore costs what an unsteered one costs. A row is kept for later steps until
    another steering needs it.

    Attributes:
        catalogue: holds the vectors. It may be replaced between two steps.
    """

    def __init__(self, catalogue: Catalogue, buffers: SteeringBuffers) -> None:
        self.catalogue, self._buffers = catalogue, buffers
        self._row_of: OrderedDict[str, int] = OrderedDict()  # by `Steering.key`, least recently used first
        rows = min((len(table) for table in buffers.tables.values()), default=1)
        self._free = list(range(rows - 1, 0, -1))  # without row 0, which stays zero for unsteered tokens
        self._written: dict[int, set[int]] = {layer: set() for layer in buffers.tables}
        self._slots = np.zeros(len(buffers.slots), dtype=np.int64)
        self._used = 0

    def write(self, batch: Sequence[Span]) -> None:
        """Puts the row of every token of the step into the slots. `batch` has the order of the step's tokens."""
        if not self._buffers.tables:  # a pipeline stage without a steered layer
            return
        steered = {span.steering.key: span.steering for span in batch if span.steering is not None}
        if not steered and not self._used:  # the slots on the device are all zero already
            return
        rows = self._rows(steered)
        slots = self._slots
        slots[: self._used] = 0
        begin = end = 0
        for span in batch:
            if span.steering is not None:
                first, last = span.steering.covered(span.prompt_tokens, span.start, span.start + span.tokens)
                slots[begin + first - span.start : begin + last - span.start] = rows[span.steering.key]
                end = begin + span.tokens
            begin += span.tokens
        tokens = max(self._used, end)  # the slots of the step before are overwritten with zeros, too
        host = torch.from_numpy(self._slots[:tokens])
        if self._buffers.slots.device.type != "cpu":
            host = host.pin_memory()  # makes a copy each time, because the device may still read the one before
        self._buffers.slots[:tokens].copy_(host, non_blocking=True)
        self._used = end

    def _rows(self, steered: dict[str, Steering]) -> dict[str, int]:
        """The row of each steering, by its key. Steerings without a row get one."""
        for key in steered.keys() & self._row_of.keys():  # so that no row of this batch is given to another steering
            self._row_of.move_to_end(key)
        for key, steering in steered.items():
            if key not in self._row_of:
                deltas = self.catalogue.deltas(steering)  # may raise an error, so it comes before a row is taken
                self._row_of[key] = row = self._free.pop() if self._free else self._row_of.popitem(last=False)[1]
                self._write_row(row, deltas)
        return {key: self._row_of[key] for key in steered}

    def _write_row(self, row: int, deltas: Mapping[int, torch.Tensor]) -> None:
        for layer, table in self._buffers.tables.items():
            written = self._written[layer]
            if layer in deltas:
                table[row].copy_(deltas[layer])
                written.add(row)
            elif row in written:
                table[row].zero_()
                written.discard(row)
