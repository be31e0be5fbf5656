"""Which tokens of a forward call are first, last, prompt or generated.

A forward call sees some columns of a sequence: all of it, a chunk of the prompt, or one new token behind
a KV cache. Scopes speak of the real tokens of each row of that sequence, never of array slots, so padding on
either side is skipped and a scope means the same tokens with and without a cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch

from rotalabs_steer.errors import OptionError, PositionError
from rotalabs_steer.ordinary_numbers import as_integer, plain_value

SCOPES = ("all", "first", "last", "prompt", "generated")
"""The scopes of an intervention, over the real tokens of a row.

- `all`: every token, prompt and generated.
- `first`: the first token of the sequence, once.
- `last`: the last prompt token and every generated token. The last prompt token is the one that the first
  generated token comes from.
- `generated`: the same tokens as `last`, under the name that says what it is for.
- `prompt`: every prompt token.
"""


@dataclass(frozen=True)
class TokenRange:
    """The real tokens `start` to `stop - 1` of each row, counted from 0; no `stop` means to the end of generation."""

    start: int
    stop: int | None = None

    def __post_init__(self) -> None:
        start, stop = as_integer(self.start), as_integer(self.stop)
        if start is None or start < 0 or (self.stop is not None and (stop is None or stop <= start)):
            raise OptionError(
                f"A token range runs from 0 or more up to a later stop, got {self.start!r} to {self.stop!r}."
            )
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "stop", stop)


@dataclass(frozen=True)
class AfterMarker:
    """Everything after the first place where these token ids stand in a row, and the marker's last token.

    The last token counts because the first token after the marker comes from it. A row without the marker is not
    steered.
    """

    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        given = plain_value(self.ids)
        ids = [as_integer(number) for number in given] if isinstance(given, (list, tuple)) else [None]
        if not ids or None in ids:
            raise OptionError(
                f"A marker is a list of at least one token id, got {self.ids!r:.80}. Use AfterMarker.of(tokenizer, "
                "text) for the marker of a text."
            )
        object.__setattr__(self, "ids", tuple(ids))

    @staticmethod
    def of(tokenizer: Any, text: str) -> AfterMarker | AfterText:
        """The marker of a text: its token where it is a special one, else the text, however it is split in context.

        Raises:
            OptionError: the text is empty.
        """
        if not text:
            raise OptionError("A marker needs at least one character.")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        special = set(getattr(tokenizer, "all_special_ids", ())) | set(getattr(tokenizer, "added_tokens_decoder", ()))
        return AfterMarker(tuple(ids)) if special.issuperset(ids) else AfterText(text, tokenizer)


@dataclass(frozen=True)
class AfterText:
    """Everything after the first place where this text stands in a row, and the token that completes it.

    The tokens of a text depend on what stands around it, so the row is decoded: each generated token once a row, until
    the text is found. That reads the tokens from the device; where this matters, use a special token as the marker.
    """

    text: str
    tokenizer: Any = field(repr=False, hash=False)

    def first_token(self, ids: list[int], start: int = 0) -> int | None:
        """The index of the token that completes the text, not before `start`; None where the row lacks the text."""
        if self.text not in self._decode(ids[max(start - self._reach, 0) :]):
            return None
        for end in range(start, len(ids)):
            if self.text in self._decode(ids[max(end - self._reach, 0) : end + 1]):
                return end
        return None

    @property
    def _reach(self) -> int:
        """More tokens than the text can have: each has a byte at least."""
        return len(self.text.encode()) + 4

    def _decode(self, ids: list[int]) -> str:
        decoded: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return decoded


Scope = str | TokenRange | AfterMarker | AfterText


def check_scope(scope: Scope) -> Scope:
    """The scope itself, or an `OptionError` that names the ones there are."""
    if not isinstance(scope, (TokenRange, AfterMarker, AfterText)) and scope not in SCOPES:
        raise OptionError(f"Unknown scope {scope!r}. Use one of: {', '.join(SCOPES)}, a TokenRange or an AfterMarker.")
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
        ids: `[batch, offset + columns]`, the token ids of the whole sequence, where they are known.
        memory: what was found out about the rows, kept through the calls of one `generate`.
        position_ids: `[batch, columns]` or `[kinds, batch, columns]`, as the call was given them.
        prompts: how many prompts the rows are made of; None where each row is one.
        is_doubled: whether the rows come twice, with and without the prompt.
        unknown: why the tokens of this call cannot be told apart, or None. The scope "all" does not need to.
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
    selections: dict[Scope, torch.Tensor | bool] = field(default_factory=dict, repr=False)

    def select(self, scope: Scope) -> torch.Tensor | bool:
        """The tokens of this call inside `scope`.

        Returns:
            True for every column, False for none, else a bool tensor `[batch, columns]`.

        Raises:
            PositionError: the call does not tell which tokens these are.
        """
        selection = self.selections.get(scope)
        if selection is None:
            if scope != "all":
                self._check_known()
            selection = self.selections[scope] = _simplify(self._compute(check_scope(scope)))
        return selection

    @property
    def is_generated_token(self) -> bool:
        """Whether the call holds one generated token a row: these are never padding."""
        return self.columns == 1 and self.offset >= self.prompt_columns

    def generation_index(self) -> torch.Tensor:
        """How far each column is into generation, `[columns]`: 0 up to the last prompt token, k for the k-th token.

        Raises:
            PositionError: the call does not tell.
        """
        self._check_known()
        if not self.counts_generated:
            raise PositionError(
                "A schedule counts generated tokens, but this call does not say where the prompt ended (it is decoded "
                "by hand with a cache). Use model.generate, or change the injector's strength between the calls."
            )
        numbers = torch.arange(self.offset, self.offset + self.columns)
        return (numbers - (self.prompt_columns - 1)).clamp_min(0)

    def last_real(self) -> torch.Tensor | bool:
        """The last real token of each row in this call, as `select` returns it."""
        real = self._here(self.mask)
        if isinstance(real, torch.Tensor):
            return real & (real.flip(1).cumsum(dim=1).flip(1) == 1)
        return _simplify(self._column_numbers() == self.offset + self.columns - 1)

    def last_columns(self, columns: int) -> ForwardCall:
        """The part of this call that a layer sees which is given its last columns only."""
        if columns == self.columns:
            return self
        return replace(self, columns=columns, offset=self.offset + self.columns - columns, selections={})

    def _check_known(self) -> None:
        """Raises the PositionError of a call whose tokens cannot be told apart."""
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

    def _compute(self, scope: Scope) -> torch.Tensor | bool:
        if isinstance(scope, TokenRange):
            return self._range(scope)
        if isinstance(scope, AfterMarker):
            return self._after(scope, self._sequence())
        if isinstance(scope, AfterText):
            return self._after_text(scope, self._sequence())
        return self._named(scope)

    def _named(self, scope: str) -> torch.Tensor | bool:
        if self.is_generated_token:
            return scope in ("all", "last", "generated")
        if scope == "all":
            return self._here(self.mask)
        if scope == "first":
            return self._first()
        if scope == "prompt":
            return self._and_real(self._column_numbers() < self.prompt_columns)
        return self._last()

    def _range(self, scope: TokenRange) -> torch.Tensor | bool:
        numbers = self._column_numbers() if self.mask is None else self._here(self.mask.cumsum(dim=1) - 1)
        chosen = numbers >= scope.start
        if scope.stop is not None:
            chosen = chosen & (numbers < scope.stop)
        return self._and_real(chosen)

    def _sequence(self) -> torch.Tensor:
        if self.ids is None or self.ids.shape[1] != self.offset + self.columns:
            raise PositionError(
                "The tokens of the whole sequence are not known (embeddings were passed, or it is decoded by hand with "
                "a cache), so a marker cannot be found. Use model.generate with input_ids."
            )
        return self.ids

    def _after(self, scope: AfterMarker, ids: torch.Tensor) -> torch.Tensor | bool:
        length = len(scope.ids)
        if ids.shape[1] < length:
            return False
        if self.mask is not None:  # a pad may be the marker's own token
            ids = ids.masked_fill(~self.mask.to(ids.device), -1)
        windows = ids.unfold(1, length, 1)
        found = (windows == torch.tensor(scope.ids, device=ids.device)).all(dim=-1)
        ends = torch.zeros_like(ids, dtype=torch.bool)
        ends[:, length - 1 :] = found
        return self._and_real(self._here(ends.cumsum(dim=1) > 0))

    def _after_text(self, scope: AfterText, ids: torch.Tensor) -> torch.Tensor | bool:
        """Beams change places between calls, so what earlier calls found is kept by the tokens of a row."""
        known: dict[tuple[int, ...], int | None] = self.memory.get(scope, {})
        real = None if self.mask is None else self.mask.to(ids.device)
        marked, found = torch.zeros_like(ids, dtype=torch.bool), {}
        for number, row in enumerate(ids.tolist()):
            pads = 0 if real is None else int(real[number].int().argmax())
            tokens = row[pads:]
            earlier = tuple(tokens[: self.offset - pads]) if self.offset > pads else ()
            first = known.get(earlier)
            if first is None:
                first = scope.first_token(tokens, len(earlier) if earlier in known else 0)
            found[tuple(tokens)] = first
            if first is not None:
                marked[number, pads + first :] = True
        self.memory[scope] = found
        return self._and_real(self._here(marked))

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

    @overload
    def _here(self, sequence: torch.Tensor) -> torch.Tensor: ...
    @overload
    def _here(self, sequence: torch.Tensor | None) -> torch.Tensor | bool: ...
    def _here(self, sequence: torch.Tensor | None) -> torch.Tensor | bool:
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


def _simplify(selection: torch.Tensor | bool) -> torch.Tensor | bool:
    if isinstance(selection, bool):
        return selection
    if bool(selection.all()):
        return True
    return selection if bool(selection.any()) else False
