"""The real llama.cpp on the real model, against transformers on the same numbers."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from engines.gguf_models import write_fp32_model, write_plamo2_model
from rotalabs_steer import ActivationInjector, MultiVectorInjector, SteeringVector, SteeringVectorSet
from rotalabs_steer.baking import bake
from rotalabs_steer.engines.control_vectors import export_control_vector, import_control_vector
from rotalabs_steer.errors import (
    ArchitectureError,
    LayerError,
    ModelMismatchError,
    OptionError,
    SteeringConflictError,
    VectorError,
)

llama_cpp = pytest.importorskip("llama_cpp", reason="make test-llama-cpp installs llama-cpp-python")

from rotalabs_steer.engines.llama_cpp import LlamaInjector, LlamaMultiInjector  # noqa: E402

pytestmark = pytest.mark.real_model

TOKENS = 48
PROMPTS = [
    "How do I make a good cup of tea?", "Why is the sky blue?", "Write a line about the sea.", "What is a prime?",
    "Tell me about Rome.", "How do bees make honey?", "Name three rivers.", "What does a judge do?",
    "Is coffee healthy?", "Describe a storm.", "How can I sleep better?", "What is gravity?", "Who was Mozart?",
    "Give me a soup recipe.", "Why do we dream?", "What is a poem?", "How do planes fly?", "Explain rain.",
    "What should I read next?", "How do I learn to draw?",
]  # fmt: skip


def vector(layer, seed=0, scale=1.0, behavior="calm", dim=576):
    numbers = torch.randn(dim, generator=torch.Generator().manual_seed(seed)) * scale
    return SteeringVector(behavior, layer, numbers, "SmolLM2")


def chat(tokenizer, prompt):
    return tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)["input_ids"]


def llama_logits(llama, ids):
    llama.reset()
    llama.eval(ids)
    return torch.tensor(llama.scores[: len(ids)].copy())


@torch.no_grad()
def their_logits(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def greedy(llama, ids, count):
    return [token for _, token in zip(range(count), llama.generate(ids, temp=0.0), strict=False)]


def test_steered_greedy_generations_are_those_of_transformers(llama_model, smollm, tokenizer):
    """Every token that llama.cpp chooses is the one that transformers would have chosen after the same tokens."""
    steering = [vector(10), vector(16, seed=1)]
    differences, disagreements, moved = [], [], 0.0
    for prompt in PROMPTS:
        ids = chat(tokenizer, prompt)
        with LlamaInjector(llama_model, steering, 0.8):
            answer = greedy(llama_model, ids, TOKENS)
            whole = ids + answer[:-1]
            ours = torch.tensor(llama_model.scores[: len(whole)].copy())[len(ids) - 1 :]
        with ActivationInjector(smollm, steering, 0.8, check_model=False):
            theirs = their_logits(smollm, whole)[len(ids) - 1 :]
        if prompt is PROMPTS[0]:
            moved = float((theirs - their_logits(smollm, whole)[len(ids) - 1 :]).abs().max())
        chosen = theirs.argmax(dim=-1)
        disagreements += [
            (prompt, index, float(theirs[index, chosen[index]] - theirs[index, token]))
            for index, token in enumerate(answer)
            if token != chosen[index]
        ]
        top = theirs.topk(10, dim=-1)
        differences.append(float((ours.gather(1, top.indices) - top.values).abs().max()))
    print(f"top-10 logits differ by {max(differences):.2g} at most; steering moves logits by {moved:.3g}")
    assert disagreements == []
    assert max(differences) < 1e-3
    assert moved > 3.0


@pytest.mark.parametrize("layer", [1, 15, 29])
@pytest.mark.parametrize("strength", [1.0, -2.0])
def test_logits_layer_by_layer(llama_model, smollm, tokenizer, layer, strength):
    ids = tokenizer("The capital of France is")["input_ids"]
    one = vector(layer, scale={1: 0.3, 15: 1.0, 29: 3.0}[layer])
    with LlamaInjector(llama_model, one, strength):
        ours = llama_logits(llama_model, ids)
    with ActivationInjector(smollm, one, strength, check_model=False):
        theirs = their_logits(smollm, ids)
    assert (theirs - their_logits(smollm, ids)).abs().max() > 1.0
    assert (ours - theirs).abs().max() < 1e-3


def test_behaviours_add_up_and_change_at_runtime(llama_model, smollm, tokenizer):
    ids = tokenizer("The capital of France is")["input_ids"]
    sets = {
        "calm": SteeringVectorSet("calm", [vector(12)]),
        "kind": SteeringVectorSet("kind", [vector(12, seed=1, behavior="kind")]),
        "terse": SteeringVectorSet(
            "terse", [vector(n, seed=2, behavior="terse") for n in (9, 20)], {"chosen_layer": 20}
        ),
    }
    strengths = {"calm": 0.5, "terse": -1.0}
    theirs = MultiVectorInjector(smollm, sets, strengths, check_model=False)
    with LlamaMultiInjector(llama_model, sets, strengths) as ours, theirs:
        assert ours.strengths == {"calm": 0.5, "kind": 1.0, "terse": -1.0}
        first = llama_logits(llama_model, ids)
        assert (first - their_logits(smollm, ids)).abs().max() < 1e-3
        for injector in (ours, theirs):
            injector.set_strength("kind", -0.7)
        second = llama_logits(llama_model, ids)
        assert (second - their_logits(smollm, ids)).abs().max() < 1e-3
        assert (second - first).abs().max() > 1.0
        with pytest.raises(KeyError, match="No vectors for behaviour 'rude'"):
            ours.set_strength("rude", 1.0)


def test_sets_act_at_their_acting_layers(llama_model, smollm, tokenizer, tmp_path):
    """In both engines, from the exported file's vectors, and in the baked model: one strength for several layers."""
    ids = tokenizer("The capital of France is")["input_ids"]
    spread = SteeringVectorSet(
        "calm", [vector(n, seed=n, scale=0.7) for n in (4, 9, 15, 22)], acting_layers=[4, 15, 22]
    )
    with ActivationInjector(smollm, spread, -0.8, check_model=False):
        expected = their_logits(smollm, ids)
    assert (expected - their_logits(smollm, ids)).abs().max() > 1.0
    export_control_vector(spread, tmp_path / "calm.gguf")
    back = import_control_vector(tmp_path / "calm.gguf")
    kind = SteeringVectorSet("kind", [vector(15, seed=1, behavior="kind"), vector(20, behavior="kind")])
    for injector in (
        LlamaInjector(llama_model, spread, -0.8),
        LlamaInjector(llama_model, [back], -0.8),
        LlamaMultiInjector(llama_model, {"calm": spread, "kind": kind}, {"calm": -0.8, "kind": 0.0}),
    ):
        with injector:
            assert (llama_logits(llama_model, ids) - expected).abs().max() < 1e-3
    baked = bake(smollm, spread, -0.8, check_model=False)
    assert (their_logits(baked, ids) - expected).abs().max() < 1e-3
    with pytest.raises(LayerError, match="cannot steer layer 0"):
        LlamaInjector(llama_model, SteeringVectorSet("calm", [vector(0), vector(3)], acting_layers=[0, 3]))


def test_nothing_of_another_strength_is_reused(llama_model, tokenizer):
    """llama-cpp-python keeps the KV cache of a prompt it has seen: it must not outlive a change of strength."""
    ids = chat(tokenizer, PROMPTS[0])
    fresh = {}
    for strength in (0.0, 4.0):
        llama_model.reset()
        with LlamaInjector(llama_model, vector(14), strength):
            llama_model.reset()
            fresh[strength] = greedy(llama_model, ids, 8)
    assert fresh[0.0] != fresh[4.0]

    assert greedy(llama_model, ids, 8) == fresh[0.0]  # fills the cache, unsteered
    with LlamaInjector(llama_model, vector(14), 4.0) as injector:
        assert greedy(llama_model, ids, 8) == fresh[4.0]
        injector.strength = 0.0
        assert greedy(llama_model, ids, 8) == fresh[0.0]
        injector.strength = 4.0
        assert greedy(llama_model, ids, 8) == fresh[4.0]
        assert greedy(llama_model, ids, 8) == fresh[4.0]  # an unchanged strength may use the cache
    assert greedy(llama_model, ids, 8) == fresh[0.0]


def test_a_strength_changed_in_the_middle_acts_on_further_tokens(llama_model, smollm, tokenizer):
    ids = chat(tokenizer, PROMPTS[1])
    with LlamaInjector(llama_model, vector(14), 0.0) as injector:
        tokens = []
        for token in llama_model.generate(ids, temp=0.0):
            tokens.append(token)
            if len(tokens) == 4:
                injector.strength = 2.0
            if len(tokens) == 8:
                break
    with torch.no_grad():
        cache = smollm(torch.tensor([ids + tokens[:3]])).past_key_values
        with ActivationInjector(smollm, vector(14), 2.0, check_model=False):
            for index in range(3, 7):
                output = smollm(torch.tensor([[tokens[index]]]), past_key_values=cache)
                assert int(output.logits[0, -1].argmax()) == tokens[index + 1]
    assert greedy(llama_model, ids, 4) == tokens[:4]


def test_chat_completion_and_prompt_cache(llama_model):
    messages = [{"role": "user", "content": "Why is the sky blue?"}]

    def ask():
        reply = llama_model.create_chat_completion(messages, max_tokens=8, temperature=0.0)
        return reply["choices"][0]["message"]["content"]

    plain = ask()
    llama_model.set_cache(llama_cpp.LlamaRAMCache())
    with pytest.warns(UserWarning, match="prompt cache was removed"):
        injector = LlamaInjector(llama_model, vector(14), 2.0).attach()
    assert llama_model.cache is None
    try:
        assert ask() != plain
    finally:
        injector.detach()
    assert ask() == plain


def test_one_injector_at_a_time_and_everything_is_put_back(llama_model, tokenizer):
    ids = tokenizer("The capital of France is")["input_ids"]
    before = llama_logits(llama_model, ids)
    injector = LlamaInjector(llama_model, vector(14))
    with injector, injector:
        assert injector.attached
        with pytest.raises(SteeringConflictError, match="steered by another injector"):
            LlamaInjector(llama_model, vector(15)).attach()
        assert not torch.equal(llama_logits(llama_model, ids), before)
    assert not injector.attached
    with pytest.raises(RuntimeError, match="stop"), injector:
        raise RuntimeError("stop")
    assert torch.equal(llama_logits(llama_model, ids), before)


def test_an_architecture_that_ignores_control_vectors_is_refused(load_llama, tmp_path):
    """llama.cpp reports success for such models."""
    write_plamo2_model(tmp_path / "plamo2.gguf")
    llama = load_llama(tmp_path / "plamo2.gguf")
    with pytest.raises(ArchitectureError, match="does not apply control vectors to models of architecture 'plamo2'"):
        LlamaInjector(llama, vector(1, dim=64)).attach()
    llama.close()


def test_what_llama_cpp_cannot_do_is_refused(llama_model):
    with pytest.raises(LayerError, match="cannot steer layer 0"):
        LlamaInjector(llama_model, [vector(0), vector(3)])
    with pytest.raises(LayerError, match=r"Layer 30 does not exist: the GGUF model has 30 layers, 1 to 29 of which"):
        LlamaInjector(llama_model, vector(30))
    with pytest.raises(VectorError, match="has 8 numbers; the GGUF model has hidden size 576"):
        LlamaInjector(llama_model, vector(3, dim=8))
    with pytest.raises(VectorError, match="No vector given"):
        LlamaInjector(llama_model, [])
    with pytest.raises(VectorError, match="No vector sets given"):
        LlamaMultiInjector(llama_model, {})
    with pytest.raises(OptionError, match=r"llama\.cpp adds to every token, and the scope is 'last'"):
        LlamaInjector(llama_model, vector(3), injection_mode="last")
    with pytest.raises(OptionError, match=r"llama\.cpp only adds, and the intervention is Ablate"):
        LlamaInjector(llama_model, vector(3), intervention="ablate")
    with pytest.raises(OptionError, match=r"llama\.cpp has one strength for all rows"):
        LlamaInjector(llama_model, vector(3), [1.0, 2.0])
    with pytest.raises(OptionError, match="Strength for 'rude'"):
        LlamaMultiInjector(llama_model, {"calm": SteeringVectorSet("calm", [vector(3)])}, {"rude": 1.0})
    metadata = {"fingerprint": {"num_layers": 12}}
    other = SteeringVector("calm", 3, torch.ones(576), "org/other", metadata=metadata)
    with pytest.raises(ModelMismatchError, match="was made from 'org/other' with 12 layers"):
        LlamaInjector(llama_model, other)
    LlamaInjector(llama_model, other, check_model=False)
    injector = LlamaInjector(llama_model, vector(3), 0.5)
    with pytest.raises(OptionError, match="one strength for all rows"):
        injector.strength = [1.0, 2.0]
    with injector, pytest.raises(VectorError, match="would add at layer 3 has numbers that float32 cannot hold"):
        injector.strength = 3e38
    assert injector.strength == 0.5


def completion_binary():
    """llama.cpp's own program, built from the same sources beside llama-cpp-python."""
    path = os.environ.get("ROTALABS_STEER_LLAMA_COMPLETION")
    if not path:
        pytest.skip("make test-llama-cpp builds llama-completion and names it")
    return Path(path)


@pytest.mark.parametrize("fold", [True, False])
def test_an_exported_file_through_llama_cpps_own_loader(fold, llama_model, fp32_gguf, tokenizer, tmp_path):
    """`llama-completion --control-vector` says what our engine says."""
    steering, strength = [vector(10), vector(16, seed=1)], 1.2
    prompt = "The capital of France is"
    export_control_vector(steering, tmp_path / "calm.gguf", strength, fold_strength=fold)
    with LlamaInjector(llama_model, steering, strength):
        expected = tokenizer.decode(greedy(llama_model, tokenizer(prompt)["input_ids"], 16))
    plain = tokenizer.decode(greedy(llama_model, tokenizer(prompt)["input_ids"], 16))
    assert plain != expected
    file = tmp_path / "calm.gguf"
    flag = ["--control-vector", str(file)] if fold else ["--control-vector-scaled", f"{file}:{strength}"]
    binary = completion_binary()
    done = subprocess.run(
        [binary, "-m", fp32_gguf, *flag, "-p", prompt, "-n", "16", "--temp", "0", "-t", "1", "-c", "256", "-no-cnv",
         "--no-display-prompt", "--cache-type-k", "f32", "--cache-type-v", "f32", "--repeat-penalty", "1.0"],
        env=os.environ | {"LD_LIBRARY_PATH": str(binary.parent)}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=300, check=True,
    )  # fmt: skip
    said = re.sub(r"\s*\[end of text\]\s*$", "", done.stdout)
    assert said.rstrip("\n") == expected.rstrip("\n")


def test_the_baked_model_in_llama_cpp(load_llama, fp32_gguf, smollm, tokenizer, tmp_path):
    ids = tokenizer("The capital of France is")["input_ids"]
    baked = bake(smollm, [vector(12), vector(20, seed=1)], 0.7, check_model=False)
    biases = {
        f"blk.{n}.ffn_down.bias": layer.mlp.down_proj.bias.detach().numpy()
        for n, layer in enumerate(baked.model.layers)
    }
    write_fp32_model(tmp_path / "baked.gguf", fp32_gguf, biases)
    llama = load_llama(tmp_path / "baked.gguf")
    assert (llama_logits(llama, ids) - their_logits(baked, ids)).abs().max() < 1e-3
    assert (their_logits(baked, ids) - their_logits(smollm, ids)).abs().max() > 1.0
    llama.close()
