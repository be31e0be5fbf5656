"""The HTML of the page's own parts. This module alone escapes what a model, a file or a user wrote."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from rotalabs_steer.files.names import short_model_name
from rotalabs_steer.measures.projected_text import ColorScale, color_of
from rotalabs_steer.playground.comparisons import signed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rotalabs_steer.measures.projected_text import Token
    from rotalabs_steer.playground.comparisons import Backend, Behavior, Comparison

UNSTEERED, STEERED = "Unsteered", "Steered"
_TEMPLATE_MARKS = {ord(mark): f"&#{ord(mark)};" for mark in "{}$`"}


def safe(text: str) -> str:
    """Text escaped for HTML, and for the templates that Gradio makes of HTML."""
    return escape(text).translate(_TEMPLATE_MARKS)


def empty_panes() -> tuple[str, str]:
    """Both panes before the first prompt."""
    return (
        _pane(UNSTEERED, "", '<p class="soft">The answer of the model as it is.</p>'),
        _pane(STEERED, "", '<p class="soft">The steered answer to the same prompt, with the same seed.</p>'),
    )


def written_panes(texts: Sequence[str], steering: str) -> tuple[str, str]:
    """Both panes while the answers are generated."""
    unsteered = _pane(UNSTEERED, "", _text(safe(texts[0])), writing=True)
    if len(texts) == 1:
        return unsteered, _nothing_steers()
    return unsteered, _pane(STEERED, steering, _text(safe(texts[1])), writing=True)


def stopped(pane: str) -> str:
    """The pane without the mark that it is being written."""
    return pane.replace('class="pane writing"', 'class="pane"', 1)


def compared_panes(comparison: Comparison, behavior: str | None) -> tuple[str, str]:
    """Both panes with whole answers. Tokens are coloured by the projection on a behaviour's vector, if one is given."""
    if not comparison.request.acting:
        return _pane(UNSTEERED, "", _text(safe(comparison.unsteered))), _nothing_steers()
    seen = (comparison.projections or {}).get(behavior or "")
    if seen is None:
        texts = [_text(safe(text)) for text in (comparison.unsteered, comparison.steered)]
    else:
        scale = ColorScale.of(seen[:1], seen[1:])
        texts = [_text("".join(map(_token, scale.color_tokens(text)))) for text in seen]
    return _pane(UNSTEERED, "", texts[0]), _pane(STEERED, comparison.request.steering, texts[1])


def color_legend(behavior: str | None) -> str:
    """What the colours mean; empty if there are none."""
    if behavior is None:
        return ""
    steps = "".join(f'<i style="background: {color_of(step / 2)}"></i>' for step in (-2, -1, 0, 1, 2))
    return (
        f'<p class="legend"><span>less</span><span class="steps">{steps}</span><span>more {safe(behavior)}</span></p>'
        '<p class="soft">How far each token, as the unsteered model reads it, points along the vector; no colour is '
        "the mean of the unsteered answer.</p>"
    )


def strength_legend(behaviors: Sequence[Behavior]) -> str:
    """The rule for strengths, and what the mark on the sliders means."""
    if not any(behavior.safe_range for behavior in behaviors):
        return '<p class="soft">These sets are raw: strength 1 has no fixed cost, so no safe range is known.</p>'
    return (
        '<p class="soft"><i class="safe-mark"></i>Safe range of a calibrated set: strengths from −1 to 1 stay in '
        "the coherence budget and leave answers whole. Beyond it, the text may fall apart.</p>"
    )


def strength_remark(behavior: Behavior) -> str | None:
    """What a user of a slider has to know: a warning, or a safe range that is larger than −1 to 1."""
    if behavior.safe_range is None:
        return "raw: no safe range known"
    low, high = behavior.safe_range
    further = f"safe from {low:.2g} to {high:.2g}".replace("-", "−") if behavior.safe_range != (-1.0, 1.0) else None
    return "does not steer on this model" if behavior.steers is False else further


def summary(backend: Backend | None) -> str:
    """The loaded model and its number of behaviours, in one line."""
    if backend is None:
        return '<p class="soft">No model is loaded yet.</p>'
    count = len(backend.behaviors)
    name = f'<b title="{safe(backend.model)}">{safe(short_model_name(backend.model))}</b>'
    return f'<p class="soft">{name} · {count} behaviour{"s" if count > 1 else ""}</p>'


def how_to_start() -> str:
    """How to make and load vectors."""
    return (
        '<p class="soft">The sliders appear here once a model and its vectors are loaded. Vectors are made with</p>'
        "<pre>rotalabs-steer tune sample formality --output tuned</pre>"
        '<p class="soft">Then load the model <code>sample</code> and the folder <code>tuned</code> above.</p>'
    )


def message(text: str) -> str:
    """An error message."""
    return f'<p class="message" role="alert">{safe(text)}</p>'


def _pane(title: str, note: str, content: str, *, writing: bool = False) -> str:
    name = "pane writing" if writing else "pane"
    return f'<section class="{name}"><h3>{title} <span>{safe(note)}</span></h3>{content}</section>'


def _text(content: str) -> str:
    return f'<div class="answer">{content}</div>'


def _nothing_steers() -> str:
    return _pane(STEERED, "", '<p class="soft">All strengths are 0: nothing steers. Move a slider.</p>')


def _token(token: Token) -> str:
    """A token in its colour. The space before a word is left plain: it would show as a stripe at a line break."""
    word = token.text.lstrip()
    space = token.text[: len(token.text) - len(word)]
    score = signed(round(token.score, 2))
    return f'{safe(space)}<span style="background: {token.color}" title="{score}">{safe(word)}</span>'
