import torch

from rotalabs_steer.evaluation import ProjectedText
from rotalabs_steer.measures.projected_text import ColorScale


def projected(*rows, start=0):
    tokens = tuple("abcdefgh"[: len(rows[0])])
    offsets = tuple((n, n + 1) for n in range(len(tokens)))
    return ProjectedText("".join(tokens), tokens, offsets, torch.tensor(rows), torch.zeros(len(rows)), start)


def test_no_character_of_a_text_is_lost_in_its_colours():
    text = ProjectedText(
        "né  go!", ("<s>", "n", "é", "é", "go"), ((0, 0), (0, 1), (1, 2), (1, 2), (4, 6)),
        torch.tensor([[900.0, 1.0, -2.0, 0.0, 4.0]]), torch.tensor([0.75]),
    )  # fmt: skip
    pieces = ColorScale(0.0, 2.0).color_tokens(text)
    assert "".join(piece.text for piece in pieces) == text.text
    assert [piece.text for piece in pieces] == ["n", "é", "  go", "!"]
    assert [piece.score for piece in pieces] == [0.5, -1.0, 2.0, 0.0]
    assert pieces[1].color.startswith("rgba(94, 60, 153")
    assert pieces[2].color == "rgba(230, 97, 1, 0.55)"


def test_texts_that_are_compared_share_a_scale_whose_middle_is_the_unsteered_mean():
    unsteered, steered = projected([1.0, 3.0], [9.0, 9.0]), projected([4.0, 6.0], [9.0, 9.0])
    scale = ColorScale.of([unsteered], [steered])
    assert scale == ColorScale(2.0, 2.0)
    assert [token.score for token in scale.color_tokens(unsteered)] == [-0.5, 0.5]
    assert [token.score for token in scale.color_tokens(steered)] == [1.0, 2.0]


def test_texts_without_tokens_or_differences_have_a_scale_too():
    assert ColorScale.of([], []).color_tokens(projected([0.0])) == ColorScale(0.0, 1.0).color_tokens(projected([0.0]))
    assert ColorScale.of([projected([3.0])], [projected([3.0])]) == ColorScale(3.0, 1.0)


def test_a_notebook_shows_a_text_with_its_colours():
    page = projected([500.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0], start=1)._repr_html_()
    assert '<span style="background: rgba(94, 60, 153, 0.55)">b</span>' in page  # the first token does not drown it
    assert page.count("0.00)") == 6  # nor is it coloured
    marked = ProjectedText("<b>", ("<b>",), ((0, 3),), torch.tensor([[1.0]]), torch.tensor([1.0]))
    assert ">&lt;b&gt;<" in marked._repr_html_()
    assert repr(marked) == "ProjectedText('<b>', scores 1)"
