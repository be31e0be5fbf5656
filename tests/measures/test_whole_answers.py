import pytest

from rotalabs_steer.measures.whole_answers import is_broken, share_broken

WHOLE = "The kettle is on, the bread is warm, and there is butter in the small blue dish beside the window."


@pytest.mark.parametrize("text", [
    "", "...", "12 12 12 12 12 12 12 12 12", "It is good. " * 8, WHOLE + " They are back to your roof!" * 6,
])  # fmt: skip
def test_loops_and_silence_are_broken(text):
    assert is_broken(text)


@pytest.mark.parametrize("text", ["Yes.", "No, thank you.", WHOLE, f"{WHOLE} {WHOLE[:20]}", "No, no, no!"])
def test_prose_and_short_answers_are_whole(text):
    assert not is_broken(text)


def test_the_share_of_broken_answers():
    assert share_broken([WHOLE, "", "a b a b a b a b a b", WHOLE]) == 0.5
