"""The forward calls of a model: which columns of a sequence each holds, and which of them are real tokens.

A forward call sees some columns of a sequence: all of it, a chunk of the prompt, or one new token behind a KV cache.
Padding on either side is not a part of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rotalabs_steer.errors import PositionError


@dataclass(frozen=True, eq=False)
class ForwardCall:
    """The columns of one forward call within their sequence.

    Attributes:
        batch_size: number of rows.
        columns: columns of this call.
        offset: columns of the sequence before this call, held in the KV cache.
        prompt_columns: columns of the whole sequence that are prompt; later ones are generated.
        mask: `[batch, offset + columns]`, True at real tokens, or None where there is no padding.
        ids: `[batch, offset + columns]`, the token ids of the whole sequence, where they are known.
        memory: results about the rows that all calls of one `generate` share, such as which rows meet a condition.
        position_ids: `[batch, columns]` or `[kinds, batch, columns]`, as the call was given them.
        prompts: number of prompts that the rows are made from; None where each row is one.
        is_doubled: whether the rows come twice, with and without the prompt.
        unknown: why the positions of the tokens are unknown, or None. The scope "all" needs no positions.
        counts_generated: whether the number of tokens generated before is known. It is not where somebody decodes by
            hand: a single token behind a cache is a generated one, but nothing says which.
        selections: the tokens of each scope that was asked for; see `steering.scopes.select`.
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

    @property
    def real(self) -> torch.Tensor | bool:
        """The real tokens of this call, `[batch, columns]`, or True where there is no padding."""
        return True if self.mask is None else self.here(self.mask)

    def last_real(self) -> torch.Tensor | bool:
        """The last real token of each row in this call, in the form of `real`."""
        if self.mask is not None:
            return _last_of_row(self.here(self.mask))
        return simplified(self.column_numbers() == self.offset + self.columns - 1)

    def last_columns(self, columns: int) -> ForwardCall:
        """This call restricted to its last `columns` columns, for layers that receive only those."""
        if columns == self.columns:
            return self
        return replace(self, columns=columns, offset=self.offset + self.columns - columns, selections={})

    def check_known(self) -> None:
        """Raises a `PositionError` where the positions of this call's tokens are unknown."""
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
        """The first real token of each sequence, in the form of `real`; False once it has passed.

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
            return self.real
        if self.mask is None:
            return self.column_numbers() >= self.prompt_columns - 1
        prompt = self.mask[:, : self.prompt_columns]
        is_last = _last_of_row(prompt)
        in_chunks = prompt.shape[1] < self.prompt_columns  # the mask ends with this call, before the prompt does
        # A row that has ended by now is padded on the right. Its last token could be told only in a later call.
        ended_before = is_last[:, :-1] if in_chunks else is_last[:, : self.offset]
        if bool(ended_before.any()):
            raise PositionError(
                "A prompt padded on the right comes in chunks, so its last token cannot be told in time. "
                "Pad on the left (tokenizer.padding_side = 'left'), or pass the prompt in one call."
            )
        if in_chunks:
            return False
        return self.here(torch.cat([is_last, self.mask[:, self.prompt_columns :]], dim=1))

    def column_numbers(self) -> torch.Tensor:
        """The number of each column in its sequence, `[batch, columns]`."""
        device = None if self.mask is None else self.mask.device
        numbers = torch.arange(self.offset, self.offset + self.columns, device=device)
        return numbers.expand(self.batch_size, self.columns)

    def and_real(self, chosen: torch.Tensor) -> torch.Tensor:
        """The chosen tokens of this call, `[batch, columns]`, without padding."""
        return chosen if self.mask is None else chosen & self.here(self.mask)

    def here(self, sequence: torch.Tensor) -> torch.Tensor:
        """The part of a mask of the whole sequence that lies in this call, `[batch, columns]`."""
        return sequence[:, self.offset :]


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
    """Describes a forward call from what is known about it. Other arguments are attributes of the `ForwardCall`.

    Args:
        offset: columns in the cache; None to read it off the length of `mask`.
        mask: attention mask `[batch, offset + columns]`, non-zero at real tokens.
        prompt_columns: length of the prompt where a `generate` call knows it. Else the call is taken for
            (a chunk of) a prompt, except that one column behind a cache is a generated token.
        position_ids: checked only where a scope depends on positions.

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
    is_generated_token = columns == 1 and offset >= prompt_columns
    # Steering without a mask is cheaper. But on a GPU the look at the mask takes longer than it saves for one token.
    if mask is not None and not is_generated_token and bool((mask != 0).all()):
        mask = None
    return ForwardCall(
        batch_size,
        columns,
        offset,
        prompt_columns,
        None if mask is None else mask.bool(),
        ids,
        {} if memory is None else memory,
        position_ids,
        prompts,
        is_doubled,
        unknown,
        counts_generated,
    )


def _last_of_row(mask: torch.Tensor) -> torch.Tensor:
    """The last True of each row of a mask."""
    return mask & (mask.flip(1).cumsum(dim=1).flip(1) == 1)


def simplified(selection: torch.Tensor | bool) -> torch.Tensor | bool:
    """True or False in place of a tensor that is all True or all False."""
    if isinstance(selection, bool):
        return selection
    if bool(selection.all()):
        return True
    return selection if bool(selection.any()) else False
