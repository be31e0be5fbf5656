"""Which tokens steering acts on.

Scopes speak of the real tokens of each row of a sequence, never of array slots. So padding on either side is skipped,
and a scope means the same tokens with and without a KV cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.arguments import as_integer, plain_value
from rotalabs_steer.errors import OptionError, PositionError
from rotalabs_steer.model.positions import simplified

if TYPE_CHECKING:
    from rotalabs_steer.model.positions import ForwardCall

SCOPES = ("all", "first", "last", "prompt", "generated")
"""The scopes that have names, over the real tokens of a row.

- `all`: every token, prompt and generated.
- `first`: the first token of the sequence, once.
- `last`: the last prompt token, from which the first generated token is computed, and every generated token.
- `generated`: another name of `last`, which says what it is for.
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
    """All tokens after the first occurrence of these token ids in a row, and the last token of the marker itself.

    The last token of the marker is steered because the first token after it is computed from it. A row without the
    marker is not steered.
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
        """The marker for a text: its token ids if these are special tokens, else the text, however it is tokenized.

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
    """All tokens after the first occurrence of this text in a row, and the token that completes it.

    The tokens of a text depend on the text around it, so each row is decoded until the text is found. This copies every
    generated token from the device. If that is too slow, use a special token as the marker.
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
        """An upper bound on the number of tokens of the text: each token has at least one byte."""
        return len(self.text.encode()) + 4

    def _decode(self, ids: list[int]) -> str:
        decoded: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return decoded


Scope = str | TokenRange | AfterMarker | AfterText


def check_scope(scope: Scope) -> Scope:
    """The scope itself; raises an `OptionError` if there is no such scope."""
    if not isinstance(scope, (TokenRange, AfterMarker, AfterText)) and scope not in SCOPES:
        raise OptionError(f"Unknown scope {scope!r}. Use one of: {', '.join(SCOPES)}, a TokenRange or an AfterMarker.")
    return scope


def select(call: ForwardCall, scope: Scope) -> torch.Tensor | bool:
    """The tokens of a forward call that are inside `scope`.

    Returns:
        True for every column, False for none, else a bool tensor `[batch, columns]`.

    Raises:
        PositionError: the call does not tell which tokens these are.
    """
    selection = call.selections.get(scope)
    if selection is None:
        if scope != "all":
            call.check_known()
        selection = call.selections[scope] = simplified(_selected(call, check_scope(scope)))
    return selection


def _selected(call: ForwardCall, scope: Scope) -> torch.Tensor | bool:
    if isinstance(scope, str):
        return _named(call, scope)
    if isinstance(scope, TokenRange):
        return _in_range(call, scope)
    ids = _sequence(call)
    return _after_marker(call, scope, ids) if isinstance(scope, AfterMarker) else _after_text(call, scope, ids)


def _named(call: ForwardCall, scope: str) -> torch.Tensor | bool:
    if call.is_generated_token:
        return scope in ("all", "last", "generated")
    if scope == "all":
        return call.real
    if scope == "first":
        return call.first()
    return call.prompt() if scope == "prompt" else call.generated()


def _in_range(call: ForwardCall, scope: TokenRange) -> torch.Tensor | bool:
    numbers = call.column_numbers() if call.mask is None else call.here(call.mask.cumsum(dim=1) - 1)
    chosen = numbers >= scope.start
    if scope.stop is not None:
        chosen = chosen & (numbers < scope.stop)
    return call.and_real(chosen)


def _sequence(call: ForwardCall) -> torch.Tensor:
    if call.ids is None or call.ids.shape[1] != call.offset + call.columns:
        raise PositionError(
            "The tokens of the whole sequence are not known (embeddings were passed, or it is decoded by hand with a "
            "cache), so a marker cannot be found. Use model.generate with input_ids."
        )
    return call.ids


def _after_marker(call: ForwardCall, scope: AfterMarker, ids: torch.Tensor) -> torch.Tensor | bool:
    length = len(scope.ids)
    if ids.shape[1] < length:
        return False
    if call.mask is not None:  # a pad may be the marker's own token
        ids = ids.masked_fill(~call.mask.to(ids.device), -1)
    windows = ids.unfold(1, length, 1)
    found = (windows == torch.tensor(scope.ids, device=ids.device)).all(dim=-1)
    ends = torch.zeros_like(ids, dtype=torch.bool)
    ends[:, length - 1 :] = found
    return call.and_real(call.here(ends.cumsum(dim=1) > 0))


def _after_text(call: ForwardCall, scope: AfterText, ids: torch.Tensor) -> torch.Tensor | bool:
    # Beam search reorders rows between calls, so the findings of earlier calls are kept by the tokens of a row.
    known: dict[tuple[int, ...], int | None] = call.memory.get(scope, {})
    real = None if call.mask is None else call.mask.to(ids.device)
    marked, found = torch.zeros_like(ids, dtype=torch.bool), {}
    for number, row in enumerate(ids.tolist()):
        pads = 0 if real is None else int(real[number].int().argmax())
        tokens = row[pads:]
        earlier = tuple(tokens[: call.offset - pads]) if call.offset > pads else ()
        first = known.get(earlier)
        if first is None:
            first = scope.first_token(tokens, len(earlier) if earlier in known else 0)
        found[tuple(tokens)] = first
        if first is not None:
            marked[number, pads + first :] = True
    call.memory[scope] = found
    return call.and_real(call.here(marked))
