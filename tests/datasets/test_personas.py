import pytest

from rotalabs_steer.datasets import ContrastPair, persona_pairs
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.errors import DatasetError

PROMPTS = ["Who are you?", "Plan my day."]


def test_sides_differ_in_the_system_message_only():
    dataset = persona_pairs(PROMPTS, "You are bold.", "You are shy.", behavior="boldness")
    assert dataset.behavior == "boldness"
    assert dataset[0] == ContrastPair(
        "", "", prompt="Who are you?", system="You are bold.", negative_system="You are shy."
    )
    assert [pair.prompt for pair in dataset] == PROMPTS


def test_the_same_response_on_both_sides():
    listed = persona_pairs(PROMPTS, "Bold.", "Shy.", ["I am Ada.", "Rise early."])
    assert listed.positives == listed.negatives == ["I am Ada.", "Rise early."]
    assert persona_pairs(PROMPTS, "Bold.", "Shy.", str.upper).positives == ["WHO ARE YOU?", "PLAN MY DAY."]


@pytest.mark.real_model
def test_the_model_sees_both_system_messages(tokenizer):
    (pair,) = persona_pairs(["Who are you?"], "You are bold.", "You are shy.")
    rendered = render_pair(tokenizer, pair)
    assert "You are bold." in tokenizer.decode(rendered.positive.ids)
    assert "You are shy." in tokenizer.decode(rendered.negative.ids)
    assert rendered.positive.response_start == len(rendered.positive.ids)


@pytest.mark.parametrize(("arguments", "message"), [
    (("Who are you?", "a", "b"), r"Prompts must be a list of strings, got one string \('Who are you\?'\)"),
    (([], "a", "b"), "There are no prompts"),
    ((PROMPTS, "a", " a"), "Both system messages are 'a', so the sides would not differ"),
    ((PROMPTS, "a", "b", ["one"]), "There are 1 responses for 2 prompts. Give one for each, or a function"),
    ((PROMPTS, "a", "b", "ab"), "There are 1 responses for 2 prompts"),
    ((PROMPTS, "a", "b", ["one", " "]), r"The response to prompt 2 \('Plan my day.'\) is empty"),
    ((PROMPTS, "a", "b", lambda prompt: None), r"The response to prompt 1 .* not a string \(None\)"),
    ((["Who?", " "], "a", "b"), "Prompt 2: The prompt of a pair is empty"),
])  # fmt: skip
def test_mistakes_are_errors(arguments, message):
    with pytest.raises(DatasetError, match=message):
        persona_pairs(*arguments)
