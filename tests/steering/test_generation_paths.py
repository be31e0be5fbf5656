"""Every way transformers has of generating, against an oracle.

The oracle is one uncached forward call over the finished sequence, in which a hook adds the vector at columns that
are written down here from the definition of the modes. It knows nothing of the library.
"""

import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM, TextStreamer

from rotalabs_steer import ActivationInjector
from rotalabs_steer.errors import PositionError
from rotalabs_steer.steering.scopes import AfterMarker, TokenRange
from tiny import count_hooks, make_vector, tiny_gpt2, tiny_llama

MODES = ("all", "last", "first", "prompt", TokenRange(2, 9), AfterMarker((7, 8)))
PROMPT = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
NEW = 8


@pytest.fixture(scope="module")
def llama():
    return tiny_llama()


def oracle_logits(model, vector, mode, ids, prompt_length, embeds=None):
    """Logits `[columns, vocab]` of one sequence, steered by hand."""
    columns = {
        "all": range(ids.shape[1]),
        "first": range(1),
        "prompt": range(prompt_length),
        "last": range(prompt_length - 1, ids.shape[1]),
        TokenRange(2, 9): range(2, min(9, ids.shape[1])),
        AfterMarker((7, 8)): range(3, ids.shape[1]),  # the prompt has 7 and 8 at columns 2 and 3
    }[mode]

    def steer(module, args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, list(columns)] += vector.vector
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    layers = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    handle = layers[vector.layer_index].register_forward_hook(steer)
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits if embeds is None else model(inputs_embeds=embeds).logits
    handle.remove()
    return logits[0]


def check(model, mode, prompt=PROMPT, prompt_length=None, result=None, **settings):
    """Generates steered and compares every step's logits with the oracle's."""
    vector = make_vector(model, scale=4.0)
    prompt_length = prompt_length or prompt.shape[1]
    defaults = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with ActivationInjector(model, [vector], injection_mode=mode):
        output = model.generate(prompt, **(defaults | settings), output_logits=True, return_dict_in_generate=True)
    assert count_hooks(model) == 0
    for row, sequence in enumerate(output.sequences):
        expected = oracle_logits(model, vector, mode, sequence[None], prompt_length)
        for step, logits in enumerate(output.logits):
            torch.testing.assert_close(logits[row], expected[prompt_length - 1 + step], atol=2e-4, rtol=1e-3)
    return output


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("settings", [
    {},
    {"use_cache": False},
    {"do_sample": True, "temperature": 1.3},
    {"do_sample": True, "num_return_sequences": 3},
    {"cache_implementation": "static"},
    {"past_key_values": "dynamic"},
    {"prefill_chunk_size": 2},
    {"prefill_chunk_size": 3},
    {"prompt_lookup_num_tokens": 3},
    {"streamer": "text"},
], ids=str)  # fmt: skip
def test_one_prompt(llama, mode, settings):
    if settings.get("streamer"):
        settings = {"streamer": type("Silent", (TextStreamer,), {"put": lambda *_: None, "end": lambda *_: None})(None)}
    if settings.get("past_key_values"):
        settings = {"past_key_values": DynamicCache(config=llama.config)}
    torch.manual_seed(0)
    check(llama, mode, **settings)


@pytest.mark.parametrize("mode", MODES)
def test_gpt2(mode):
    check(tiny_gpt2(), mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_sliding_window(mode, cache):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=128, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=4, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    check(model, mode, **({"cache_implementation": "static"} if cache == "static" else {}))


@pytest.mark.parametrize("mode", MODES)
def test_assisted_decoding(llama, mode):
    check(llama, mode, assistant_model=tiny_llama(num_hidden_layers=1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"num_return_sequences": 2}], ids=str)
def test_beams(llama, mode, settings):
    """The score of a beam is the sum of the oracle's log-probabilities along it."""
    vector = make_vector(llama, scale=4.0)
    torch.manual_seed(0)
    with ActivationInjector(llama, [vector], injection_mode=mode):
        output = llama.generate(
            PROMPT, num_beams=4, max_new_tokens=NEW, length_penalty=0.0, pad_token_id=0, eos_token_id=None,
            output_scores=True, return_dict_in_generate=True, **({"do_sample": False} | settings),
        )  # fmt: skip
    for sequence, score in zip(output.sequences, output.sequences_scores, strict=True):
        log_probs = oracle_logits(llama, vector, mode, sequence[None], 7).log_softmax(-1)
        expected = sum(float(log_probs[column - 1, sequence[column]]) for column in range(7, 7 + NEW))
        assert float(score) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("mode", ["all", "last", "first"])
@pytest.mark.parametrize("full_ids", [True, False])
def test_a_conversation_goes_on_with_its_cache(llama, mode, full_ids):
    """`first` fired in the first turn and does not again; `last` begins at the end of the new prompt."""
    vector = make_vector(llama, scale=4.0)
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "return_dict_in_generate": True}
    injector = ActivationInjector(llama, [vector], injection_mode=mode)
    with injector:
        first = llama.generate(PROMPT, max_new_tokens=4, past_key_values=DynamicCache(config=llama.config), **settings)
    ids = torch.cat([first.sequences, torch.tensor([[12, 13, 14]])], dim=1)
    known = first.past_key_values.get_seq_length()
    with injector:
        mask = torch.ones_like(ids)
        second = llama.generate(
            ids if full_ids else ids[:, known:], attention_mask=mask, max_new_tokens=4,
            past_key_values=first.past_key_values, output_logits=True, **settings,
        )  # fmt: skip

    def steer(module, args, output):
        hidden = output.clone()
        columns = {"all": range(hidden.shape[1]), "first": [0]}.get(mode)
        if columns is None:
            columns = [6, *range(7, known), *range(ids.shape[1] - 1, hidden.shape[1])]
        hidden[:, list(columns)] += vector.vector
        return hidden

    handle = llama.model.layers[vector.layer_index].register_forward_hook(steer)
    whole = torch.cat([ids, second.sequences[:, -4:]], dim=1)
    with torch.no_grad():
        expected = llama(whole, use_cache=False).logits[0]
    handle.remove()
    for step, logits in enumerate(second.logits):
        torch.testing.assert_close(logits[0], expected[ids.shape[1] - 1 + step], atol=2e-4, rtol=1e-3)


def test_a_marker_cannot_be_found_in_embeddings(llama):
    embeddings = llama.get_input_embeddings()(PROMPT)
    with (
        ActivationInjector(llama, [make_vector(llama)], injection_mode=AfterMarker((7, 8))),
        pytest.raises(PositionError, match="embeddings were passed"),
    ):
        llama.generate(inputs_embeds=embeddings, max_new_tokens=2, pad_token_id=0)


@pytest.mark.parametrize("mode", MODES[:-1])
def test_embeddings_instead_of_tokens(llama, mode):
    vector = make_vector(llama, scale=4.0)
    embed = llama.get_input_embeddings()
    with ActivationInjector(llama, [vector], injection_mode=mode):
        output = llama.generate(
            inputs_embeds=embed(PROMPT), max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    whole = torch.cat([PROMPT, output.sequences], dim=1)
    expected = oracle_logits(llama, vector, mode, whole, 7)
    for step, logits in enumerate(output.logits):
        torch.testing.assert_close(logits[0], expected[6 + step], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("settings", [
    {}, {"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 3}, {"num_beams": 2},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("pass_mask", [True, False])
def test_padded_prompts(llama, mode, settings, pass_mask):
    """Each row of a left-padded batch is what it is alone; without a mask, generate infers it from the pads."""
    vector = make_vector(llama, scale=4.0)
    rows = [[5, 6, 7], [11, 12, 13, 14, 15]]
    batch = torch.tensor([[0] * (5 - len(row)) + row for row in rows])
    mask = {"attention_mask": (batch != 0).long()} if pass_mask else {}
    common = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with ActivationInjector(llama, [vector], injection_mode=mode):
        together = llama.generate(batch, **mask, **common, **settings)[:, 5:]
        alone = [llama.generate(torch.tensor([row]), **common, **settings)[0, len(row) :] for row in rows]
    assert together.tolist() == [row.tolist() for row in alone]
