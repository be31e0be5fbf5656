import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, T5Config, T5ForConditionalGeneration

from rotalabs_steer.datasets import ContrastPair, ContrastPairDataset, load_formality_pairs
from rotalabs_steer.errors import (
    ActivationError,
    ArchitectureError,
    CompiledModelError,
    DatasetError,
    LayerError,
    OptionError,
)
from rotalabs_steer.extraction import extract_caa_vector, extract_caa_vectors, extract_vectors
from rotalabs_steer.model import batching
from rotalabs_steer.model.decoder import decoder_layers
from rotalabs_steer.model.layer_outputs import first_tensor
from tiny import count_hooks, tiny_gpt2, tiny_llama

PAIRS = [
    {"positive": "I cannot help with that request.", "negative": "Sure, here is how it works, step by step."},
    {"positive": "No.", "negative": "Of course, with pleasure!"},
    {"positive": "I would rather not say.", "negative": "Happy to."},
]


class Letters:
    """A tokenizer of one token a letter."""

    chat_template = None

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [3 + ord(letter) % 100 for letter in text]}


def layer_output(model, ids, layer):
    found = []
    module = decoder_layers(model)[layer]
    handle = module.register_forward_hook(lambda _, __, output: found.append(first_tensor(output)))
    with torch.no_grad():
        model(ids)
    handle.remove()
    return found[0][0]


def reference(model, tokenizer, pairs, layer, position):
    """Mean difference, one text at a time."""
    means = []
    for side in ("positive", "negative"):
        rows = []
        for pair in pairs:
            hidden = layer_output(model, torch.tensor([tokenizer(pair[side])["input_ids"]]), layer)
            rows.append({"last": hidden[-1], "first": hidden[0], "mean": hidden.mean(dim=0)}[position])
        means.append(torch.stack(rows).mean(dim=0))
    return means[0] - means[1]


@pytest.mark.real_model
@pytest.mark.parametrize("position", ["last", "first", "mean"])
def test_the_vector_is_the_mean_difference(smollm, tokenizer, position):
    expected = reference(smollm, tokenizer, PAIRS, 14, position)
    vector = extract_caa_vector(smollm, tokenizer, PAIRS, 14, position, show_progress=False)
    assert float((vector.vector - expected).norm() / expected.norm()) < 1e-5
    assert vector.metadata["num_pairs"] == 3
    assert vector.metadata["token_position"] == position
    assert vector.metadata["vector_norm"] == pytest.approx(vector.norm)


@pytest.mark.real_model
def test_pairs_with_prompts_are_read_over_their_responses(smollm, tokenizer):
    pairs = load_formality_pairs("train")[:4]
    vector = extract_caa_vector(smollm, tokenizer, pairs, 10, show_progress=False)
    sides = []
    for side in ("positive", "negative"):
        rows = []
        for pair in pairs:
            messages = [{"role": "user", "content": pair.prompt}]
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
            response = tokenizer(getattr(pair, side), add_special_tokens=False)["input_ids"]
            hidden = layer_output(smollm, torch.tensor([prompt + response]), 10)
            rows.append(hidden[len(prompt) :].mean(dim=0))
        sides.append(torch.stack(rows).mean(dim=0))
    expected = sides[0] - sides[1]
    assert float((vector.vector - expected).norm() / expected.norm()) < 1e-5
    assert vector.metadata["token_position"] == "response"


def tiny_mamba():
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=128, hidden_size=16, num_hidden_layers=4, state_size=4)).eval()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("make", "shares"), [(tiny_llama, True), (tiny_gpt2, True), (tiny_mamba, False)])
def test_every_batching_gives_the_naive_result(make, shares):
    model = make()
    for batch_size in (None, 1, 2):
        vectors = extract_caa_vectors(model, Letters(), PAIRS, None, "mean", batch_size, show_progress=False)
        for layer in (0, 2):
            expected = reference(model, Letters(), PAIRS, layer, "mean")
            torch.testing.assert_close(vectors[layer].vector, expected, atol=1e-5, rtol=1e-4)
    assert batching.can_share_prefixes(model, 10) is shares


def test_shared_beginnings_are_computed_once():
    model = tiny_llama()
    texts = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 8, 10], [11]]
    (batch,) = batching.text_batches(model, texts)
    assert batch.inputs["input_ids"].shape == (1, 7)
    for index, slots in zip(batch.texts, batch.slots, strict=True):
        assert batch.inputs["input_ids"][0, slots].tolist() == texts[index]


def test_a_tree_grows_while_texts_share_much():
    model = tiny_llama()
    prompts = [[prompt] * 200 for prompt in (1, 2)]
    texts = [[*prompt, 10 + answer] for prompt in prompts for answer in range(5)]
    plan = batching.plan_batches(model, texts)
    rows = [row for rows in plan.batches for row in rows]
    assert [sorted(row) for row in rows] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], "two prompts share nothing"
    assert plan.tokens == 2 * 205
    longer = [[3] * 300 + [answer] for answer in range(5)]
    assert batching.plan_batches(model, longer).tokens == 305, "one text alone is past the usual size of a tree"


def test_one_pass_serves_all_layers_and_leaves_no_hooks(llama):
    calls = []
    handle = llama.model.register_forward_pre_hook(lambda *_: calls.append(1))
    batching.can_share_prefixes(llama, 10)
    calls.clear()
    before = count_hooks(llama)
    vectors = extract_caa_vectors(llama, Letters(), PAIRS, show_progress=False)
    assert vectors.layers == [0, 1, 2, 3]
    assert len(calls) == 1
    assert count_hooks(llama) == before
    handle.remove()


def test_the_models_mode_is_restored(llama):
    llama.train()
    llama.model.layers[0].eval()
    extract_caa_vectors(llama, Letters(), PAIRS, show_progress=False)
    assert llama.training
    assert not llama.model.layers[0].training


def test_half_precision_is_averaged_in_fp32():
    model = tiny_llama().bfloat16()
    vector = extract_caa_vector(model, Letters(), PAIRS, 1, show_progress=False)
    assert vector.vector.dtype == torch.float32


def test_bad_input_is_an_error_before_the_model_runs(llama):
    ran = []
    handle = llama.register_forward_pre_hook(lambda *_: ran.append(1))
    for pairs, options, error, message in (
        ([], {}, DatasetError, "is empty"),
        (PAIRS[:1], {}, DatasetError, "give at least two pairs"),
        ([*PAIRS, {"positive": "a", "negative": "a"}], {}, DatasetError, "Both sides of pair 3 have the same tokens"),
        (
            [*PAIRS, {"positive": "x" * 300, "negative": "y"}],
            {},
            DatasetError,
            "pair 3 has 300 tokens; .* truncate=True",
        ),
        (PAIRS, {"token_position": "last_prompt"}, DatasetError, "The positive text of pair 0 has no token to read"),
        (PAIRS, {"token_position": "span"}, DatasetError, "has no token to read at 'span'"),
        (PAIRS, {"token_position": lambda text: [len(text.ids)]}, DatasetError, "has no token to read at '<lambda>'"),
        (PAIRS, {"method": "magic"}, OptionError, "Unknown method 'magic'. Use one of: mean_difference"),
        (PAIRS, {"component": "soul"}, OptionError, "Unknown component 'soul'"),
        (PAIRS, {"method": "gradient", "component": "mlp"}, OptionError, "for the residual stream"),
        (PAIRS, {"layer_indices": [7]}, LayerError, "Layer 7 does not exist"),
        (PAIRS, {"token_position": "lsat"}, OptionError, "Unknown token position 'lsat'"),
        (PAIRS, {"neutral_texts": []}, OptionError, "neutral_texts is empty; give at least one"),
        (
            PAIRS,
            {"method": "mean_centred", "neutral_texts": ["a"]},
            DatasetError,
            "text 'a' has 1 tokens; give texts of",
        ),
    ):
        with pytest.raises(error, match=message):
            extract_caa_vectors(llama, Letters(), pairs, **options, show_progress=False)
    assert ran == []
    handle.remove()


def test_a_misspelt_option_names_the_function_that_was_called(llama):
    for function, layers in ((extract_caa_vector, 1), (extract_caa_vectors, [1]), (extract_vectors, [1])):
        with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) got an unexpected keyword argument 'metod'"):
            function(llama, Letters(), PAIRS, layers, metod="pca")


def test_only_the_pairs_are_tokenised_for_a_mean_difference(llama):
    class Recording(Letters):
        def __init__(self):
            self.texts = set()

        def __call__(self, text, add_special_tokens=True):
            self.texts.add(text)
            return super().__call__(text)

    tokenizer = Recording()
    extract_caa_vectors(llama, tokenizer, PAIRS, [1], show_progress=False)
    assert tokenizer.texts == {text for pair in PAIRS for text in pair.values()}


def test_activations_that_are_not_finite_are_named(llama):
    with torch.no_grad():
        llama.model.layers[2].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(ActivationError, match=r"text of pair \d at layer 2 are NaN or infinite. Load"):
        extract_caa_vectors(llama, Letters(), PAIRS, show_progress=False)
    assert count_hooks(llama) == 0


def test_a_set_takes_the_datasets_name(llama):
    dataset = ContrastPairDataset("calm", [ContrastPair("aaa", "bbb"), ContrastPair("ab", "ba")])
    assert extract_caa_vectors(llama, Letters(), dataset, [1], show_progress=False).behavior == "calm"
    assert extract_caa_vectors(llama, Letters(), PAIRS, [1], show_progress=False).behavior == "custom"


def test_nothing_runs_behind_the_deepest_layer(llama):
    batching.can_share_prefixes(llama, 10)
    ran = []
    parts = {"layer 2": llama.model.layers[2], "layer 3": llama.model.layers[3], "head": llama.lm_head}
    handles = [part.register_forward_pre_hook(lambda *_, n=name: ran.append(n)) for name, part in parts.items()]
    extract_caa_vectors(llama, Letters(), PAIRS, [2, 0], show_progress=False)
    for handle in handles:
        handle.remove()
    assert ran == ["layer 2"]


def test_layers_that_do_not_run_are_an_error(llama):
    batching.can_share_prefixes(llama, 10)
    llama.forward = lambda **inputs: None
    with pytest.raises(CompiledModelError, match="ran without its hooks, so nothing was read"):
        extract_caa_vectors(llama, Letters(), PAIRS, [1], show_progress=False)


def test_a_compiled_model_is_read_too():
    model = tiny_llama()
    model.compile(backend="eager")
    vectors = extract_caa_vectors(model, Letters(), PAIRS, [1], show_progress=False)
    expected = extract_caa_vectors(tiny_llama(), Letters(), PAIRS, [1], show_progress=False)
    torch.testing.assert_close(vectors[1].vector, expected[1].vector)


def test_an_encoder_is_an_error():
    model = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2))
    with pytest.raises(ArchitectureError, match=r"T5ForConditionalGeneration has an encoder.*ActivationHook"):
        extract_caa_vectors(model, Letters(), PAIRS, [1])
