import re
from html import unescape

import pytest
import torch

from playground.conftest import MARKUP
from rotalabs_steer.evaluation import ProjectedText
from rotalabs_steer.playground import panes
from rotalabs_steer.playground.comparisons import Behavior, Comparison, Request, Snippets

HOSTILE = f"<script>alert(1)</script>\n  {MARKUP} & `"


def seen(text, score):
    offsets = tuple((n, n + 4) for n in range(0, len(text), 4))
    scores = torch.tensor([[score + n % 3 for n in range(len(offsets))]])
    return ProjectedText(text, (), offsets, scores, scores.mean(dim=1))


@pytest.fixture
def comparison():
    return Comparison(
        "a/model", Request("Hi", {MARKUP: 0.5, "calm": -1.0}), HOSTILE, HOSTILE[::-1],
        {MARKUP: (seen(HOSTILE, 0.0), seen(HOSTILE[::-1], 4.0))}, Snippets("", "", ""),
    )  # fmt: skip


def words(html):
    """What a reader sees of an answer."""
    (answer,) = re.findall(r'<div class="answer">(.*)</div>', html, re.DOTALL)
    return unescape(re.sub(r"</?span[^>]*>", "", answer))


@pytest.mark.parametrize("behavior", [MARKUP, None])
def test_what_a_model_writes_is_never_markup(comparison, behavior):
    found = panes.compared_panes(comparison, behavior)
    written = panes.written_panes((HOSTILE, HOSTILE[::-1]), comparison.request.steering)
    for html in (*found, *written, panes.color_legend(MARKUP), panes.message(HOSTILE)):
        assert set(re.findall(r"<(\w+)", html)) <= {"section", "h3", "span", "div", "p", "i"}
        assert not re.search(r"[{}$`]", html)
    assert [words(html) for html in found] == [words(html) for html in written] == [HOSTILE, HOSTILE[::-1]]


def test_colours_show_which_answer_has_more(comparison):
    unsteered, steered = panes.compared_panes(comparison, MARKUP)
    assert "rgba(230, 97, 1, 0.55)" in steered
    assert "rgba(94, 60, 153" in unsteered
    assert "rgba(94, 60, 153" not in steered
    assert "calm −1" in steered
    assert "rgba" not in "".join(panes.compared_panes(comparison, "calm"))


def test_an_answer_that_nothing_steers_says_so():
    assert "nothing steers" in panes.written_panes(("Hello",), "unsteered")[1]
    unsteered = Comparison("m", Request("Hi", {"calm": 0.0}), "Hello", "Hello", None, Snippets("", "", ""))
    assert "nothing steers" in panes.compared_panes(unsteered, None)[1]


def test_a_pane_that_is_stopped_is_written_no_further():
    writing, _ = panes.written_panes(('class="pane writing"', ""), "")
    assert panes.stopped(writing).count("writing") == writing.count("writing") - 1


def test_only_tuned_behaviours_have_a_safe_range():
    tuned, untuned = Behavior("a", (-1.0, 1.0), True), Behavior("b", None)
    assert "strengths from −1 to 1 stay in the coherence budget" in panes.strength_legend([tuned, untuned])
    assert "no safe range is known" in panes.strength_legend([untuned])
    assert panes.strength_remark(tuned) is None
    assert panes.strength_remark(untuned) == "raw: no safe range known"
    assert panes.strength_remark(Behavior("d", (-1.0, 1.42), True)) == "safe from −1 to 1.4"
    assert panes.strength_remark(Behavior("c", (-1.0, 1.0), False)) == "does not steer on this model"
