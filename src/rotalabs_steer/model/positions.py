"""The forward calls of a model: which columns of a sequence each holds, and which of them are real tokens.

A forward call sees some columns of a sequence: all of it, a chunk of the prompt, or one new token behind a KV cache.
Padding on either side is no part of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch

from rotalabs_steer.errors import PositionError


@dataclass(frozen=True, eq=False)
class ForwardCall:
    """The columns of one forward call within their sequence.

    Attributes:
        batch_size: rows.
        columns: columns of this call.
        offset: columns of the sequence before this call, held in the KV cache.
        prompt_columns: columns of the whole sequence that are prompt; later ones are generated.
        mask: `[batch, offset + columns]`, True at real tokens, or None where there is no padding.
        ids: `[batch, offset + columns]`, the token ids of the whole sequence, where they are known.
        memory: what was found out about the rows, kept through the calls of one `generate`.
        position_ids: `[batch, columns]` or `[kinds, batch, columns]`, as the call was given them.
        prompts: how many prompts the rows are made of; None where each row is one.
        is_doubled: whether the rows come twice, with and without the prompt.
        unknown: why the tokens of this call cannot be told apart, or None. The scope "all" does not need to.
        selections: the tokens of each scope that was asked for; see `steering.scopes.select`.
        counts_generated: whether it is known how far generation has come. It is not where somebody decodes by hand: a
            single token behind a cache is a generated one, but the call does not say which.
    """

    batch_size: int
    columns: int
    offset: int
    prompt_columns: int
    mask: torch.Tensor | None = None
    ids: torch.Tensor | None = None
    memory: dict[Any, Any] = field(default_factory=dict, repr=False)
    position_ids: torch.Tensor | None = None
    prompts: int | None = None
    is_doubled: bool = False
    unknown: str | None = None
    counts_generated: bool = True
    selections: dict[Any, torch.Tensor | bool] = field(default_factory=dict, repr=False)

    @property
    def is_generated_token(self) -> bool:
        """Whether the call holds one generated token a row: these are never padding."""
        return self.columns == 1 and self.offset >= self.prompt_columns

    def generation_index(self) -> torch.Tensor:
        """How far each column is into generation, `[columns]`: 0 up to the last prompt token, k for the k-th token.

        Raises:
            PositionError: the call does not tell.
        """
        self.check_known()
        if not self.counts_generated:
            raise PositionError(
                "A schedule counts generated tokens, but this call does not say where the prompt ended (it is decoded "
                "by hand with a cache). Use model.generate, or change the injector's strength between the calls."
            )
        numbers = torch.arange(self.offset, self.offset + self.columns)
        return (numbers - (self.prompt_columns - 1)).clamp_min(0)

    def last_real(self) -> torch.Tensor | bool:
        """The last real token of each row in this call, as `here` returns it."""
        real = self.here(self.mask)
        if isinstance(real, torch.Tensor):
            return real & (real.flip(1).cumsum(dim=1).flip(1) == 1)
        return simplified(self.column_numbers() == self.offset + self.columns - 1)

    def last_columns(self, columns: int) -> ForwardCall:
        """The part of this call that a layer sees which is given its last columns only."""
        if columns == self.columns:
            return self
        return replace(self, columns=columns, offset=self.offset + self.columns - columns, selections={})

    def check_known(self) -> None:
        """Raises a `PositionError` where the tokens of this call cannot be told apart."""
        if self.unknown is not None:
            raise PositionError(self.unknown)
        numbers = self.position_ids
        if numbers is None or self.columns == 1 or numbers.dim() not in (2, 3) or numbers.shape[-1] != self.columns:
            return
        several_kinds = numbers.dim() == 3  # of multimodal models: the first kind stays the same within a picture
        steps = (numbers[0] if several_kinds else numbers).diff(dim=1)
        if self.mask is not None:
            real = self.mask[:, self.offset :].to(steps.device)
            steps = torch.where(real[:, 1:] & real[:, :-1], steps, 1)
        if bool((steps < 0).any() if several_kinds else (steps <= 0).any()):
            raise PositionError(
                "The position_ids of this call start again within a row, so the row holds several sequences, whose "
                "first and last tokens are unknown. Use the scope 'all', or give each sequence a row of its own."
            )

    def first(self) -> torch.Tensor | bool:
        """The first real token of each sequence, as `here` returns it; none once it has passed.

        Raises:
            PositionError: the call does not tell which tokens these are.
        """
        self.check_known()
        if self.mask is None:
            return self.offset == 0 and simplified(self.column_numbers() == 0)
        return simplified(self.here(self.mask & (self.mask.cumsum(dim=1) == 1)))

    def prompt(self) -> torch.Tensor | bool:
        """The real tokens of the prompt."""
        return self.and_real(self.column_numbers() < self.prompt_columns)

    def generated(self) -> torch.Tensor | bool:
        """The generated tokens and the last prompt token, from which the first generated token comes.

        Raises:
            PositionError: the prompt comes in chunks and is padded on the right, so its last token is known too late.
        """
        if self.offset >= self.prompt_columns:
            return self.here(self.mask)
        numbers = self.column_numbers()
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
        return self.here(both)

    def column_numbers(self) -> torch.Tensor:
        """The number of each column in its sequence, `[batch, columns]`."""
        device = None if self.mask is None else self.mask.device
        numbers = torch.arange(self.offset, self.offset + self.columns, device=device)
        return numbers.expand(self.batch_size, self.columns)

    def and_real(self, chosen: torch.Tensor) -> torch.Tensor:
        """Those of the chosen tokens of this call, `[batch, columns]`, that are not padding."""
        return chosen if self.mask is None else chosen & self.here(self.mask)

    @overload
    def here(self, sequence: torch.Tensor) -> torch.Tensor: ...
    @overload
    def here(self, sequence: torch.Tensor | None) -> torch.Tensor | bool: ...
    def here(self, sequence: torch.Tensor | None) -> torch.Tensor | bool:
        """The part of a mask of the whole sequence that lies in this call, `[batch, columns]`; True without a mask."""
        return True if sequence is None else sequence[:, self.offset :]


def forward_call(
    batch_size: int,
    columns: int,
    *,
    offset: int | None = None,
    mask: torch.Tensor | None = None,
    prompt_columns: int | None = None,
    ids: torch.Tensor | None = None,
    memory: dict[Any, Any] | None = None,
    position_ids: torch.Tensor | None = None,
    prompts: int | None = None,
    is_doubled: bool = False,
    unknown: str | None = None,
) -> ForwardCall:
    """Describes a forward call from what is known of it.

    Args:
        offset: columns in the cache; None to read it off the length of `mask`.
        mask: attention mask `[batch, offset + columns]`, non-zero at real tokens.
        prompt_columns: length of the prompt where a `generate` call knows it. Else the call is taken for
            (a chunk of) a prompt, except that one column behind a cache is a generated token.
        ids: token ids of the whole sequence `[batch, offset + columns]`.
        memory: what earlier calls of the same generation found out about the rows.
        position_ids: `[batch, columns]` or `[kinds, batch, columns]`, checked where a scope depends on positions.
        prompts: how many prompts the rows are made of; None where each row is one.
        is_doubled: whether the rows come twice, with and without the prompt.
        unknown: why the tokens of the call cannot be told apart, or None.

    Raises:
        PositionError: the mask does not fit the call.
    """
    if mask is not None:
        if mask.shape[0] == 1:
            mask = mask.expand(batch_size, -1)
        if mask.shape[0] != batch_size or mask.shape[1] < columns:
            raise PositionError(
                f"An attention mask of shape {list(mask.shape)} does not fit a call of {batch_size} rows and "
                f"{columns} columns, so padding cannot be told from text. Pass a [batch, length] attention_mask."
            )
        offset = mask.shape[1] - columns
    offset = offset or 0
    counts_generated = prompt_columns is not None or offset == 0 or columns > 1
    if prompt_columns is None:
        prompt_columns = offset if offset > 0 and columns == 1 else offset + columns
    if mask is not None and not (columns == 1 and offset >= prompt_columns):
        mask = _padding_only(mask)  # not at every generated token: on a GPU the look at the mask takes a while
    mask = None if mask is None else mask.bool()
    return ForwardCall(
        batch_size,
        columns,
        offset,
        prompt_columns,
        mask,
        ids,
        {} if memory is None else memory,
        position_ids,
        prompts,
        is_doubled,
        unknown,
        counts_generated,
    )


def _padding_only(mask: torch.Tensor) -> torch.Tensor | None:
    """The mask, or None where it masks nothing: steering without a mask is cheaper."""
    return None if bool((mask != 0).all()) else mask


def simplified(selection: torch.Tensor | bool) -> torch.Tensor | bool:
    """True or False in place of a tensor that is all True or all False."""
    if isinstance(selection, bool):
        return selection
    if bool(selection.all()):
        return True
    return selection if bool(selection.any()) else False
