"""Which tokens of a forward call are first, last, prompt or generated.

A forward call sees some columns of a sequence: all of it, a chunk of the prompt, or one new token behind
a KV cache. Scopes speak of the real tokens of each row of that sequence, never of array slots, so padding on
either side is skipped and a scope means the same tokens with and without a cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from rotalabs_steer.errors import OptionError, PositionError

SCOPES = ("all", "first", "last", "prompt", "generated")
"""The scopes of an intervention, over the real tokens of a row.

- `all`: every token, prompt and generated.
- `first`: the first token of the sequence, once.
- `last`: the last prompt token and every generated token. The last prompt token is the one that the first
  generated token comes from.
- `generated`: the same tokens as `last`, under the name that says what it is for.
- `prompt`: every prompt token.
"""


def check_scope(scope: str) -> str:
    """The scope itself, or an `OptionError` that names the ones there are."""
    if scope not in SCOPES:
        raise OptionError(f"Unknown scope {scope!r}. Use one of: {', '.join(SCOPES)}.")
    return scope


@dataclass(frozen=True, eq=False)
class ForwardCall:
    """The columns of one forward call within their sequence.

    Attributes:
        batch_size: rows.
        columns: columns of this call.
        offset: columns of the sequence before this call, held in the KV cache.
        prompt_columns: columns of the whole sequence that are prompt; later ones are generated.
        mask: `[batch, offset + columns]`, True at real tokens, or None where there is no padding.
        memory: what was found out about the rows, kept through the calls of one `generate`.
    """

    batch_size: int
    columns: int
    offset: int
    prompt_columns: int
    mask: torch.Tensor | None = None
    memory: dict[Any, torch.Tensor] = field(default_factory=dict, repr=False)
    _selections: dict[str, torch.Tensor | bool] = field(default_factory=dict, repr=False)

    def select(self, scope: str) -> torch.Tensor | bool:
        """The tokens of this call inside `scope`.

        Returns:
            True for every column, False for none, else a bool tensor `[batch, columns]`.
        """
        selection = self._selections.get(scope)
        if selection is None:
            selection = self._selections[scope] = _simplify(self._compute(check_scope(scope)))
        return selection

    def generation_index(self) -> torch.Tensor:
        """How far each column is into generation, `[columns]`: 0 up to the last prompt token, k for the k-th token."""
        numbers = torch.arange(self.offset, self.offset + self.columns)
        return (numbers - (self.prompt_columns - 1)).clamp_min(0)

    def last_real(self) -> torch.Tensor | bool:
        """The last real token of each row in this call, as `select` returns it."""
        real = self._here(self.mask)
        if isinstance(real, torch.Tensor):
            return real & (real.flip(1).cumsum(dim=1).flip(1) == 1)
        return _simplify(self._column_numbers() == self.offset + self.columns - 1)

    def _compute(self, scope: str) -> torch.Tensor | bool:
        if scope == "all":
            return self._here(self.mask)
        if scope == "first":
            return self._first()
        if scope == "prompt":
            return self._and_real(self._column_numbers() < self.prompt_columns)
        return self._last()

    def _first(self) -> torch.Tensor | bool:
        if self.mask is None:
            return self.offset == 0 and self._column_numbers() == 0
        return self._here(self.mask & (self.mask.cumsum(dim=1) == 1))

    def _last(self) -> torch.Tensor | bool:
        if self.offset >= self.prompt_columns:
            return self._here(self.mask)
        numbers = self._column_numbers()
        generated = numbers >= self.prompt_columns
        if self.mask is None:
            return generated | (numbers == self.prompt_columns - 1)
        prompt = self.mask[:, : self.prompt_columns]
        is_last = prompt & (prompt.flip(1).cumsum(dim=1).flip(1) == 1)
        in_chunks = prompt.shape[1] < self.prompt_columns
        ended_before = is_last[:, :-1] if in_chunks else is_last[:, : self.offset]
        if bool(ended_before.any()):
            raise PositionError(
                "A prompt padded on the right comes in chunks, so its last token cannot be told in time. "
                "Pad on the left (tokenizer.padding_side = 'left'), or pass the prompt in one call."
            )
        if in_chunks:
            return False
        both = torch.cat([is_last, self.mask[:, self.prompt_columns :]], dim=1)
        return self._here(both)

    def _column_numbers(self) -> torch.Tensor:
        device = None if self.mask is None else self.mask.device
        numbers = torch.arange(self.offset, self.offset + self.columns, device=device)
        return numbers.expand(self.batch_size, self.columns)

    def _and_real(self, chosen: torch.Tensor) -> torch.Tensor:
        return chosen if self.mask is None else chosen & self._here(self.mask)

    def _here(self, sequence: torch.Tensor | None) -> torch.Tensor | bool:
        return True if sequence is None else sequence[:, self.offset :]


def forward_call(
    batch_size: int,
    columns: int,
    *,
    offset: int | None = None,
    mask: torch.Tensor | None = None,
    prompt_columns: int | None = None,
    memory: dict[Any, torch.Tensor] | None = None,
) -> ForwardCall:
    """Describes a forward call from what is known of it.

    Args:
        offset: columns in the cache; None to read it off the length of `mask`.
        mask: attention mask `[batch, offset + columns]`, non-zero at real tokens.
        prompt_columns: length of the prompt where a `generate` call knows it. Else the call is taken for
            (a chunk of) a prompt, except that one column behind a cache is a generated token.
        memory: what earlier calls of the same generation found out about the rows.

    Raises:
        PositionError: the mask does not fit the call.
    """
    if mask is not None:
        if mask.shape[0] != batch_size or mask.shape[1] < columns:
            raise PositionError(
                f"An attention mask of shape {list(mask.shape)} does not fit a call of {batch_size} rows and "
                f"{columns} columns, so padding cannot be told from text. Pass a [batch, length] attention_mask."
            )
        offset = mask.shape[1] - columns
    offset = offset or 0
    if prompt_columns is None:
        prompt_columns = offset if offset > 0 and columns == 1 else offset + columns
    if mask is not None:
        generating = offset >= prompt_columns and columns == 1
        mask = None if generating else _padding_only(mask.bool())
    return ForwardCall(batch_size, columns, offset, prompt_columns, mask, {} if memory is None else memory)


def _padding_only(mask: torch.Tensor) -> torch.Tensor | None:
    """The mask, or None where it masks nothing: steering without a mask is cheaper."""
    return None if bool(mask.all()) else mask


def _simplify(selection: torch.Tensor | bool) -> torch.Tensor | bool:
    if isinstance(selection, bool):
        return selection
    if bool(selection.all()):
        return True
    return selection if bool(selection.any()) else False
