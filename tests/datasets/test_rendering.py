import copy

import pytest

from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.datasets import ContrastPair
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.errors import ChatTemplateError, DatasetError

pytestmark = pytest.mark.real_model


def test_a_response_stands_where_the_models_own_words_would(tokenizer):
    pair = ContrastPair("Good day.", "Hey!", prompt="Greet me.", system="Be brief.")
    rendered = render_pair(tokenizer, pair)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Greet me."}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert list(rendered.positive.ids[: rendered.positive.response_start]) == prompt
    assert tokenizer.decode(rendered.positive.ids[rendered.positive.response_start :]) == "Good day."
    assert tokenizer.decode(rendered.negative.ids[rendered.negative.response_start :]) == "Hey!"


def test_texts_without_a_prompt_are_taken_as_they_are(tokenizer):
    rendered = render_pair(tokenizer, ContrastPair("Good day.", "Hey!"))
    assert list(rendered.positive.ids) == tokenizer("Good day.")["input_ids"]
    assert rendered.positive.response_start == 0


def test_what_cannot_be_rendered_is_an_error(tokenizer):
    with pytest.raises(DatasetError, match="Both sides of pair 3 have the same tokens"):
        render_pair(tokenizer, ContrastPair("Yes.", "Yes."), place="pair 3")
    with pytest.raises(DatasetError, match=r"positive text of the pair has \d+ tokens; the model's context holds 4"):
        render_pair(tokenizer, ContrastPair("one two three four five six", "x"), max_length=4)
    bare = copy.copy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ChatTemplateError, match=r"has no chat template.*two plain texts"):
        ChatTokenizer.of(bare).prompt("Hello")
    bare.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ChatTemplateError, match=r"\['system', 'user'\]\): System role not supported. If it has no"):
        ChatTokenizer.of(bare).prompt("Hello", "Be brief.")
