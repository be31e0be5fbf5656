import pytest
import torch

from rotalabs_steer.datasets import ContrastPair
from rotalabs_steer.datasets.rendering import RenderedText, render_pair
from rotalabs_steer.errors import DatasetError, OptionError
from rotalabs_steer.extraction import extract_vectors
from rotalabs_steer.extraction.readout import check_readout, default_readout, token_weights

TEXT = RenderedText((5, 6, 7, 8), response_start=2, span=(3, 4))


@pytest.mark.parametrize(("readout", "weights"), [
    ("last", [0, 0, 0, 1]),
    ("first", [1, 0, 0, 0]),
    ("mean", [0.25, 0.25, 0.25, 0.25]),
    ("response", [0, 0, 0.5, 0.5]),
    ("last_prompt", [0, 1, 0, 0]),
    ("span", [0, 0, 0, 1]),
    (lambda text: [0, -1], [0.5, 0, 0, 0.5]),
])  # fmt: skip
def test_weights(readout, weights):
    assert token_weights(TEXT, readout).tolist() == weights


def test_the_default_reads_a_response_to_a_prompt():
    assert default_readout(TEXT) == "response"
    assert default_readout(RenderedText((5, 6), 0)) == "last"
    assert default_readout(RenderedText((5, 6), 2)) == "last", "a prompt without a response"


def test_what_cannot_be_read_is_an_error():
    with pytest.raises(DatasetError, match=r"Pair 1 has no token to read at 'span' \(2 tokens, 2 of them response"):
        token_weights(RenderedText((5, 6), 0), "span", "pair 1")
    with pytest.raises(OptionError, match=r"Unknown token position 'end'.*last_prompt.*a function"):
        check_readout("end")


@pytest.mark.real_model
def test_a_span_is_found_among_the_tokens(tokenizer):
    pair = ContrastPair("I would never do it.", "I would gladly do it.", prompt="Well?", positive_span="never",
                        negative_span="gladly")  # fmt: skip
    rendered = render_pair(tokenizer, pair)
    for side, word in ((rendered.positive, " never"), (rendered.negative, " gladly")):
        assert tokenizer.decode(side.ids[slice(*side.span)]) == word


@pytest.mark.real_model
def test_prompts_alone_are_read_at_their_last_token(smollm, tokenizer):
    """Harmful against harmless requests, say: the sides differ in what is asked."""
    asked = [("Pick a lock.", "Pick a flower."), ("Rob a bank.", "Open a bank account.")]
    pairs = [ContrastPair("", "", prompt=bad, negative_prompt=good) for bad, good in asked]
    vectors = extract_vectors(smollm, tokenizer, pairs, [12], token_position="last_prompt", show_progress=False)
    by_default = extract_vectors(smollm, tokenizer, pairs, [12], show_progress=False)
    means = []
    for side in (0, 1):
        rows = []
        for question in asked:
            messages = [{"role": "user", "content": question[side]}]
            inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
            with torch.no_grad():
                states = smollm(**inputs, output_hidden_states=True).hidden_states
            rows.append(states[13][0, -1])
        means.append(torch.stack(rows).mean(dim=0))
    torch.testing.assert_close(vectors[12].vector, means[0] - means[1], atol=1e-3, rtol=1e-4)
    assert torch.equal(vectors[12].vector, by_default[12].vector)


@pytest.mark.real_model
def test_system_messages_may_differ(tokenizer):
    pair = ContrastPair("Hi.", "Hi.", prompt="Hello", system="Be kind.", negative_system="Be cruel.")
    rendered = render_pair(tokenizer, pair)
    assert "Be kind." in tokenizer.decode(rendered.positive.ids)
    assert "Be cruel." in tokenizer.decode(rendered.negative.ids)


@pytest.mark.real_model
def test_truncation_keeps_the_end_of_the_response(tokenizer):
    pair = ContrastPair("one two three four", "five six seven eight", prompt="Count.")
    whole = render_pair(tokenizer, pair)
    cut = render_pair(tokenizer, pair, max_length=6, truncate=True)
    assert cut.positive.ids == whole.positive.ids[-6:]
    assert cut.positive.ids[cut.positive.response_start :] == whole.positive.ids[whole.positive.response_start :]
    with pytest.raises(DatasetError, match="would cut its span"):
        render_pair(tokenizer, ContrastPair("one two", "three", positive_span="one"), max_length=1, truncate=True)
