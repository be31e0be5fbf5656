"""Baked models have the logits of steered ones, in memory and from an ordinary checkpoint."""

import copy

import accelerate
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from architectures.tiny_instances import ARCHITECTURES, build
from rotalabs_steer import ActivationInjector, SteeringVector, SteeringVectorSet, extract_activations
from rotalabs_steer.baking import bake
from rotalabs_steer.errors import (
    ArchitectureError,
    LayerError,
    ModelMismatchError,
    OptionError,
    SteeringConflictError,
    VectorError,
)
from rotalabs_steer.model.decoder import decoder_layers, hidden_size, layer_part
from rotalabs_steer.model.layer_outputs import first_tensor, with_first_tensor
from rotalabs_steer.steering.interventions import Ablate
from tiny import make_vector, tiny_gpt2, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers about tiny configurations

IDS = torch.arange(3, 19)[None]
BY_TYPE = {each.model_type: each for each in ARCHITECTURES if each.group == "causal"}
ADDS = [
    "bert", "bloom", "cohere", "falcon", "gpt2", "gpt_neox", "granite", "llama", "opt", "phi", "qwen2", "smollm3",
    "starcoder2",
]  # fmt: skip
ADDS_NOT = ["gemma", "gemma2", "mistral", "mixtral", "olmo2", "qwen3"]
ABLATES = ["cohere", "falcon", "gemma", "gpt2", "gpt_neox", "mistral", "opt", "phi3", "qwen3", "stablelm"]
ABLATES_NOT = ["bloom", "gemma2", "granite", "mixtral", "olmo2", "openai-gpt", "qwen4_exp"]
RUNS_NOT = ["gemma4_unified_assistant", "musicgen", "musicgen_melody"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def vectors_for(model, layers):
    width = hidden_size(model)
    return [
        SteeringVector("test", n, torch.randn(width, generator=torch.Generator().manual_seed(n)), "t") for n in layers
    ]


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids).logits


def assert_close(baked, steered, unsteered):
    """The same up to the order of additions, and not for want of an effect."""
    torch.testing.assert_close(baked, steered, rtol=1e-4, atol=1e-4 * float(steered.abs().max()))
    assert (steered - unsteered).abs().max() > 100 * (baked - steered).abs().max()


@pytest.mark.parametrize("model_type", ADDS)
def test_additions_as_biases(model_type, tmp_path):
    model = build(BY_TYPE[model_type])
    vectors = vectors_for(model, range(len(decoder_layers(model))))
    state = copy.deepcopy(model.state_dict())
    baked = bake(model, vectors, -0.5, check_model=False)
    with ActivationInjector(model, vectors, -0.5, check_model=False):
        steered = logits(model)
    assert_close(logits(baked), steered, logits(model))

    baked.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(baked))
    assert loaded.config.rotalabs_steer_baked["strength"] == -0.5
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("model_type", ADDS_NOT)
def test_no_bias_reaches_the_output(model_type):
    model = build(BY_TYPE[model_type])
    with pytest.raises(
        ArchitectureError, match=r"has no bias whose value reaches the output of layers \[1\] unchanged"
    ):
        bake(model, vectors_for(model, [1]), check_model=False)


def test_mistral_becomes_llama_where_it_has_no_window(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = MistralConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, sliding_window=None)
    model = MistralForCausalLM(config).eval()
    vectors = vectors_for(model, [0, 1])
    baked = bake(model, vectors, check_model=False)
    assert type(baked) is LlamaForCausalLM
    with ActivationInjector(model, vectors, check_model=False):
        assert_close(logits(baked), logits(model), logits(baked) * 0)
    baked.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits(baked))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    model = tiny_llama().to(dtype)
    vector = make_vector(model, scale=1.0)
    baked = bake(model, vector)
    assert baked.dtype == dtype
    with ActivationInjector(model, vector):
        steered = logits(model).float()
    assert (logits(baked).float() - steered).abs().max() < 0.02 * steered.abs().max()


def ablated_reference(model, direction, strength):
    """The second route: `Ablate` by hooks on the embeddings and on the attention and mlp of every layer."""
    ablate = Ablate(direction)

    def hook(module, inputs, output):
        return with_first_tensor(output, ablate(first_tensor(output), torch.tensor([strength])))

    inner = model.get_decoder()
    tables = [m for m in inner.modules() if isinstance(m, torch.nn.Embedding)]
    parts = [layer_part(layer, part) for layer in decoder_layers(model) for part in ("attn", "mlp")]
    handles = [module.register_forward_hook(hook) for module in (*tables, *parts)]
    try:
        return logits(model)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("model_type", ABLATES)
def test_a_direction_taken_out_of_the_weights(model_type, tmp_path):
    model = build(BY_TYPE[model_type])
    (vector,) = vectors_for(model, [1])
    baked = bake(model, vector, intervention="ablate", check_model=False)
    if model_type != "opt":  # it has no module for its mlp
        assert_close(logits(baked), ablated_reference(model, vector.vector, 1.0), logits(model))

    # Nothing is left along the direction at any layer, so ablating the baked model's layers changes nothing.
    layers = list(range(len(decoder_layers(model))))
    residuals = extract_activations(baked, {"input_ids": IDS}, layers, token_position="all")
    unit = vector.vector / vector.vector.norm()
    assert max(float((h @ unit).abs().max() / h.norm(dim=-1).min()) for h in residuals.values()) < 1e-5
    everywhere = [SteeringVector("test", n, vector.vector, "t") for n in layers]
    with ActivationInjector(baked, everywhere, intervention="ablate", check_model=False):
        torch.testing.assert_close(logits(baked), logits(baked), rtol=1e-4, atol=1e-4)

    baked.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits(baked))


@pytest.mark.parametrize("model_type", ABLATES_NOT)
def test_a_direction_cannot_be_taken_out_behind_norms_and_experts(model_type):
    model = build(BY_TYPE[model_type])
    with pytest.raises(ArchitectureError, match="A direction cannot be taken out of its weights exactly"):
        bake(model, vectors_for(model, [1]), intervention="ablate", check_model=False)


@pytest.mark.parametrize("model_type", RUNS_NOT)
@pytest.mark.parametrize("intervention", ["add", "ablate"])
def test_a_model_that_does_not_run_on_plain_token_ids_is_refused(model_type, intervention):
    model = build(BY_TYPE[model_type])
    with pytest.raises(
        ArchitectureError, match=r"does not run on token ids of shape \[2, 12\] alone.*Steer it with ActivationInjector"
    ):
        bake(model, vectors_for(model, [1]), intervention=intervention, check_model=False)


def test_tied_embeddings_are_untied_for_the_head():
    model = tiny_llama(tie_word_embeddings=True)
    vector = make_vector(model)
    baked = bake(model, vector, 0.5, intervention="ablate")
    assert baked.config.tie_word_embeddings is False
    assert torch.equal(baked.lm_head.weight, model.lm_head.weight)
    assert model.config.tie_word_embeddings is True
    assert_close(logits(baked), ablated_reference(model, vector.vector, 0.5), logits(model))


def test_one_vector_and_vectors_of_one_layer():
    model = tiny_gpt2()
    one, two = make_vector(model), make_vector(model, seed=1, behavior="other")
    model.train()
    baked = bake(model, [one, two], 0.5)
    assert model.training
    model.eval()
    with ActivationInjector(model, [one, two], 0.5):
        assert_close(logits(baked), logits(model), logits(tiny_gpt2()))
    assert baked.config.rotalabs_steer_baked == {
        "intervention": "add",
        "strength": 0.5,
        "vectors": [
            {"behavior": "test", "layer_index": 1, "model_name": "tiny"},
            {"behavior": "other", "layer_index": 1, "model_name": "tiny"},
        ],
    }


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_a_set_is_baked_at_its_acting_layers(make):
    model = make()
    vectors = SteeringVectorSet("test", [make_vector(model, n, seed=n) for n in range(4)], acting_layers=[0, 2, 3])
    baked = bake(model, vectors, 0.5)
    with ActivationInjector(model, vectors, 0.5):
        assert_close(logits(baked), logits(model), logits(make()))
    assert [each["layer_index"] for each in baked.config.rotalabs_steer_baked["vectors"]] == [0, 2, 3]
    with pytest.raises(OptionError, match="3 vectors to ablate"):
        bake(model, vectors, intervention="ablate")


def test_what_cannot_be_baked_is_refused(llama):
    vector = make_vector(llama)
    with pytest.raises(VectorError, match="No vector given"):
        bake(llama, [])
    with pytest.raises(VectorError, match="The vector set of 'test' is empty"):
        bake(llama, SteeringVectorSet("test"))
    with pytest.raises(OptionError, match=r"Strength 0\.0: weights have one strength"):
        bake(llama, vector, 0.0)
    with pytest.raises(OptionError, match=r"Strength \[1\.0, 2\.0\]: weights have one strength"):
        bake(llama, vector, [1.0, 2.0])
    with pytest.raises(OptionError, match=r"Weights cannot carry 'clamp'\. Use one of: add, ablate"):
        bake(llama, vector, intervention="clamp")
    with pytest.raises(OptionError, match="2 vectors to ablate"):
        bake(llama, [vector, vector], intervention="ablate")
    with pytest.raises(LayerError, match="Layer 9 does not exist"):
        bake(llama, make_vector(llama, layer=9))
    with pytest.raises(ModelMismatchError, match="was made from 'org/other'"):
        bake(llama, SteeringVector("test", 1, torch.ones(16), "org/other"))
    with ActivationInjector(llama, vector), pytest.raises(SteeringConflictError, match="The model is being steered"):
        bake(llama, vector)


def test_models_that_are_not_plain_are_refused(llama):
    from peft import LoraConfig, get_peft_model

    vector = make_vector(llama)
    with pytest.raises(ArchitectureError, match="is not a plain transformers model"):
        bake(get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"])), vector)
    llama.hf_quantizer = object()
    with pytest.raises(ArchitectureError, match="The model is quantised"):
        bake(llama, vector)
    offloaded = accelerate.cpu_offload(tiny_llama(), execution_device=torch.device("cpu"))
    with pytest.raises(ArchitectureError, match="weights of the model are offloaded"):
        bake(offloaded, vector)
    t5 = build(next(each for each in ARCHITECTURES if each.model_type == "t5"))
    with pytest.raises(ArchitectureError, match="is an encoder-decoder"):
        bake(t5, vectors_for(t5, [1]))


@pytest.mark.real_model
def test_the_real_model_from_an_ordinary_checkpoint(smollm, tokenizer, tmp_path):
    ids = tokenizer("How do I make a good cup of tea?", return_tensors="pt")["input_ids"]
    generator = torch.Generator().manual_seed(0)
    vectors = [SteeringVector("test", n, torch.randn(576, generator=generator), "SmolLM2") for n in (12, 16)]
    bake(smollm, vectors, 0.7, check_model=False).save_pretrained(tmp_path)
    with ActivationInjector(smollm, vectors, 0.7, check_model=False):
        steered = logits(smollm, ids)
        answer = smollm.generate(ids, max_new_tokens=12, do_sample=False)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_close(logits(loaded, ids), steered, logits(smollm, ids))
    assert torch.equal(loaded.generate(ids, max_new_tokens=12, do_sample=False), answer)


@pytest.mark.parametrize(("make", "vector", "strength", "reason"), [
    (tiny_gpt2, 0.0, 1.0, "is zero"),
    (tiny_gpt2, 1.0, 1e39, "they become infinite"),
    (lambda: tiny_gpt2().half(), 1.0, 1e5, r"that torch.float16 cannot hold"),
    (lambda: tiny_gpt2().half(), 1e-9, 1.0, "becomes zero in torch.float16"),
])  # fmt: skip
def test_what_the_weights_cannot_hold_is_not_baked(make, vector, strength, reason):
    one = SteeringVector("calm", 1, torch.full((16,), vector), "tiny")
    with pytest.raises(VectorError, match=f"What the bias would add at layer 1 .*{reason}"):
        bake(make(), one, strength, check_model=False)


def test_the_direction_of_a_zero_vector_cannot_be_ablated():
    with pytest.raises(VectorError, match="The direction to ablate is zero"):
        bake(tiny_llama(), SteeringVector("calm", 1, torch.zeros(16), "tiny"), intervention="ablate", check_model=False)
