import asyncio
import gc
import threading
import weakref

import pytest
import torch

from rotalabs_steer import (
    ActivationInjector,
    MultiVectorInjector,
    SteeringVector,
    SteeringVectorSet,
    extract_activations,
)
from rotalabs_steer.errors import (
    LayerError,
    ModelMismatchError,
    OptionError,
    PositionError,
    SteeringConflictError,
    VectorError,
)
from rotalabs_steer.model.decoder import model_fingerprint
from rotalabs_steer.steering.conditions import Condition
from tiny import count_hooks, make_vector, tiny_llama

IDS = torch.tensor([[5, 6, 7, 8, 9]])
MODES = ("all", "last", "first", "prompt", "generated")


def residual(model, layer, ids=IDS, **inputs):
    return extract_activations(model, {"input_ids": ids, **inputs}, [layer], token_position="all")[layer]


def steered_positions(model, mode, ids, **inputs):
    """Which columns of layer 1 moved, and whether each moved by exactly the vector."""
    vector = make_vector(model, layer=1)
    plain = residual(model, 1, ids, **inputs)
    with ActivationInjector(model, [vector], injection_mode=mode):
        moved = residual(model, 1, ids, **inputs) - plain
    for row in moved.reshape(-1, 16):
        assert torch.allclose(row, vector.vector, atol=1e-5) or not row.any()
    return moved.any(dim=-1).int().tolist()


@pytest.mark.parametrize(("mode", "columns"), [
    ("all", [1, 1, 1, 1, 1]), ("first", [1, 0, 0, 0, 0]), ("last", [0, 0, 0, 0, 1]),
    ("generated", [0, 0, 0, 0, 1]), ("prompt", [1, 1, 1, 1, 1]),
])  # fmt: skip
def test_modes_shift_their_tokens_by_the_vector(tiny_model, mode, columns):
    assert steered_positions(tiny_model, mode, IDS) == [columns]


@pytest.mark.parametrize(("mode", "left", "right"), [
    ("all", [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]),
    ("first", [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]),
    ("last", [0, 0, 0, 0, 1], [0, 0, 1, 0, 0]),
])  # fmt: skip
def test_padding_is_never_steered(tiny_model, mode, left, right):
    ids = torch.tensor([[0, 0, 5, 6, 7], [5, 6, 7, 0, 0]])
    mask = (ids != 0).long()
    assert steered_positions(tiny_model, mode, ids, attention_mask=mask) == [left, right]


@pytest.mark.parametrize("mode", MODES)
def test_cached_generation_equals_uncached(tiny_model, mode):
    vector = make_vector(tiny_model, scale=4.0)
    outputs = []
    for use_cache in (True, False):
        with ActivationInjector(tiny_model, [vector], injection_mode=mode):
            result = tiny_model.generate(
                IDS, max_new_tokens=8, do_sample=False, use_cache=use_cache, pad_token_id=0,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        outputs.append(torch.stack(result.logits))
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_a_left_padded_batch_generates_what_each_row_does_alone(tiny_model, mode):
    vector = make_vector(tiny_model, scale=4.0)
    rows = [[5, 6, 7], [11, 12, 13, 14, 15]]
    batch = torch.tensor([[0] * (5 - len(row)) + row for row in rows])
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with ActivationInjector(tiny_model, [vector], injection_mode=mode):
        together = tiny_model.generate(batch, attention_mask=(batch != 0).long(), **settings)[:, 5:]
        for row, generated in zip(rows, together, strict=True):
            alone = tiny_model.generate(torch.tensor([row]), **settings)[0, len(row) :]
            assert generated.tolist() == alone.tolist()


@pytest.mark.real_model
def test_strength_zero_and_leaving_are_bit_for_bit_the_unsteered_model(smollm, tokenizer):
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    vector = SteeringVector("test", 14, torch.randn(576), "SmolLM2")
    before = count_hooks(smollm)
    with torch.no_grad():
        plain = smollm(**inputs).logits
        with ActivationInjector(smollm, [vector], strength=0.0):
            assert torch.equal(smollm(**inputs).logits, plain)
        with pytest.raises(ZeroDivisionError), ActivationInjector(smollm, [vector], strength=4.0):
            assert not torch.equal(smollm(**inputs).logits, plain)
            raise ZeroDivisionError
        assert torch.equal(smollm(**inputs).logits, plain)
    assert count_hooks(smollm) == before


@pytest.mark.real_model
@pytest.mark.parametrize("mode", ["all", "last", "first"])
def test_the_cache_changes_nothing_on_the_real_model(smollm, tokenizer, mode):
    inputs = tokenizer("My advice for a rainy afternoon is", return_tensors="pt")
    torch.manual_seed(0)
    vector = SteeringVector("test", 14, torch.randn(576) * 2, "SmolLM2")
    with ActivationInjector(smollm, [vector], injection_mode=mode):
        runs = [
            smollm.generate(
                **inputs,
                max_new_tokens=12,
                do_sample=False,
                use_cache=use_cache,
                output_logits=True,
                return_dict_in_generate=True,
            )
            for use_cache in (True, False)
        ]
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    torch.testing.assert_close(torch.stack(runs[0].logits), torch.stack(runs[1].logits), atol=2e-3, rtol=1e-4)


def test_several_vectors_on_one_layer_add_up(llama):
    vectors = [make_vector(llama, seed=seed) for seed in range(3)]
    plain = residual(llama, 1)
    with ActivationInjector(llama, vectors, strength=0.5):
        moved = residual(llama, 1) - plain
    expected = 0.5 * sum(vector.vector for vector in vectors)
    torch.testing.assert_close(moved[0, 0], expected, atol=1e-5, rtol=1e-5)


def test_strength_acts_at_once_while_attached(llama):
    vector = make_vector(llama)
    plain = residual(llama, 1)
    injector = ActivationInjector(llama, [vector], strength=1.0)
    with injector:
        for strength in (2.0, -1.0, 0.0):
            injector.strength = strength
            torch.testing.assert_close(residual(llama, 1), plain + strength * vector.vector)
    assert injector.strength == 0.0


def test_nested_injectors_add_and_may_leave_in_any_order(llama):
    plain = residual(llama, 1)
    first, second = (ActivationInjector(llama, [make_vector(llama, seed=seed)]).attach() for seed in (1, 2))
    both = first.vectors[0].vector + second.vectors[0].vector
    torch.testing.assert_close(residual(llama, 1), plain + both, atol=1e-5, rtol=1e-5)
    first.detach()
    torch.testing.assert_close(residual(llama, 1), plain + second.vectors[0].vector)
    second.detach()
    assert torch.equal(residual(llama, 1), plain)


def test_entering_an_injector_again_does_not_unsteer_the_outer_block(llama):
    injector = ActivationInjector(llama, [make_vector(llama)])
    with injector:
        steered = residual(llama, 1)
        with injector:
            assert torch.equal(residual(llama, 1), steered)
        assert torch.equal(residual(llama, 1), steered)
    assert not injector.attached


def test_bf16_models_are_steered_in_their_own_dtype():
    model = tiny_llama().bfloat16()
    with ActivationInjector(model, [make_vector(model)]):
        assert model(IDS).logits.dtype == torch.bfloat16


def vector_sets(model):
    return {
        name: SteeringVectorSet(name, [make_vector(model, layer, seed=layer, behavior=name) for layer in layers])
        for name, layers in (("calm", (0, 1)), ("formal", (1, 2)))
    }


def test_behaviours_have_strengths_of_their_own(llama):
    sets = vector_sets(llama)
    injector = MultiVectorInjector(llama, sets, strengths={"calm": 0.5}, default_layer=1)
    plain = residual(llama, 1)

    def expected():
        return plain + sum(injector.get_strength(name) * sets[name][1].vector for name in sets)

    with injector:
        torch.testing.assert_close(residual(llama, 1), expected(), atol=1e-5, rtol=1e-5)
        injector.set_strength("formal", -2.0)
        torch.testing.assert_close(residual(llama, 1), expected(), atol=1e-5, rtol=1e-5)
    assert injector.strengths == {"calm": 0.5, "formal": -2.0}


def test_a_strength_is_read_and_changed_by_its_behaviour(llama):
    vectors = make_vector(llama, behavior="calm")
    injector = MultiVectorInjector(llama, {"calm": vectors}, {"calm": 0.5})
    plain = llama(IDS).logits
    with injector:
        assert not torch.equal(llama(IDS).logits, plain)
        injector["calm"] = 0.0
        assert torch.equal(llama(IDS).logits, plain)
    assert injector["calm"] == injector.get_strength("calm") == 0.0
    assert list(injector) == ["calm"]
    assert "wit" not in injector
    for use in (lambda: injector["wit"], lambda: injector.__setitem__("wit", 1.0)):
        with pytest.raises(KeyError, match=r"No vectors for behaviour 'wit'; there are \['calm'\]"):
            use()


@pytest.mark.parametrize("make", [ActivationInjector, lambda m, v, **o: MultiVectorInjector(m, {"calm": v}, **o)])
def test_a_scope_may_be_given_by_either_name_but_not_by_both(llama, make):
    vector = make_vector(llama)
    assert make(llama, vector).scope == "all"
    assert make(llama, vector, scope="first").injection_mode == make(llama, vector, injection_mode="first").scope
    with make(llama, vector, scope="first"):
        by_scope = llama(IDS).logits
    with make(llama, vector, injection_mode="first"):
        assert torch.equal(llama(IDS).logits, by_scope)
    for mode in ("all", "last"):
        with pytest.raises(OptionError, match=f"scope is 'last' and injection_mode is '{mode}'"):
            make(llama, vector, scope="last", injection_mode=mode)
    with pytest.raises(OptionError, match="middle"):
        make(llama, vector, scope="middle")


def test_the_callers_strengths_are_not_changed(llama):
    mine = {"calm": 0.5}
    MultiVectorInjector(llama, vector_sets(llama), strengths=mine).set_strength("calm", 3.0)
    assert mine == {"calm": 0.5}


def test_a_set_acts_at_its_tuned_layer(llama):
    sets = vector_sets(llama)
    sets["calm"].metadata["chosen_layer"] = 0
    assert [vector.layer_index for vector in MultiVectorInjector(llama, sets).vectors["calm"]] == [0]


def spread_set(model, acting_layers=(1, 2), behavior="calm", seed=7):
    """Vectors for all layers of a tiny model, some of which act together."""
    vectors = [make_vector(model, layer, seed=seed + layer, behavior=behavior) for layer in range(4)]
    return SteeringVectorSet(behavior, vectors, acting_layers=acting_layers)


def logits(model):
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def test_a_set_acts_at_its_acting_layers_and_at_no_other(llama):
    calm = spread_set(llama)
    with ActivationInjector(llama, calm, 0.5) as injector:
        steered = logits(llama)
    assert [vector.layer_index for vector in injector.vectors] == [1, 2]
    with ActivationInjector(llama, [calm[1], calm[2]], 0.5):
        assert torch.equal(logits(llama), steered)
    with ActivationInjector(llama, list(calm), 0.5):
        assert not torch.allclose(logits(llama), steered)


def test_a_set_of_alternatives_acts_at_its_best_layer_only(llama):
    alternatives = spread_set(llama, None)
    with ActivationInjector(llama, alternatives):
        steered = logits(llama)
    with ActivationInjector(llama, [alternatives.get_best()]):
        assert torch.equal(logits(llama), steered)


def test_sets_and_vectors_can_be_given_together(llama):
    calm, kind, one = spread_set(llama), spread_set(llama, [3], "kind", seed=20), make_vector(llama, 0)
    injector = ActivationInjector(llama, [calm, one, kind])
    assert injector.vectors == [calm[1], calm[2], one, kind[3]]
    assert ActivationInjector(llama, iter([calm])).vectors == calm.acting


def test_one_strength_multiplies_all_acting_layers_of_a_behaviour(llama):
    sets = {"calm": spread_set(llama), "kind": spread_set(llama, [1, 3], "kind", seed=20)}
    with MultiVectorInjector(llama, sets, {"calm": 0.5, "kind": 2.0}) as injector:
        injector.set_strength("calm", -1.5)
        steered = logits(llama)
    assert injector.vectors == {name: vectors.acting for name, vectors in sets.items()}
    with ActivationInjector(llama, sets["calm"].acting, -1.5), ActivationInjector(llama, sets["kind"].acting, 2.0):
        torch.testing.assert_close(logits(llama), steered)


def test_a_default_layer_acts_in_place_of_the_acting_layers(llama):
    injector = MultiVectorInjector(llama, {"calm": spread_set(llama)}, default_layer=3)
    assert [vector.layer_index for vector in injector.vectors["calm"]] == [3]


def test_rows_have_their_own_strengths_at_every_acting_layer(llama):
    calm, batch = spread_set(llama), IDS.repeat(3, 1)
    with ActivationInjector(llama, calm, [0.0, 1.0, -2.0]), torch.no_grad():
        together = llama(batch, use_cache=False).logits
    for strength, row in zip((0.0, 1.0, -2.0), together, strict=True):
        with ActivationInjector(llama, calm, strength):
            torch.testing.assert_close(logits(llama)[0], row)


def test_a_condition_is_decided_before_the_first_acting_layer(llama):
    calm = spread_set(llama, [1, 3])
    at = [Condition(make_vector(llama).vector, layer, 0.0) for layer in range(4)]
    ActivationInjector(llama, calm, condition=at[1])
    with pytest.raises(LayerError, match="decided at layer 2, after layer 1 has been steered"):
        ActivationInjector(llama, calm, condition=at[2])
    with pytest.raises(LayerError, match="decided at layer 2, after layer 1 has been steered"):
        MultiVectorInjector(llama, {"calm": calm}, condition=at[2])


def test_an_acting_layer_that_the_model_lacks_is_refused(llama):
    beyond = SteeringVectorSet("calm", [make_vector(llama, layer, behavior="calm") for layer in (1, 9)])
    ActivationInjector(llama, beyond.with_acting_layers([1]))
    with pytest.raises(LayerError, match="Layer 9 does not exist"):
        ActivationInjector(llama, beyond.with_acting_layers([1, 9]))


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda m: ActivationInjector(m, []), VectorError, "No vector given"),
    (lambda m: ActivationInjector(m, SteeringVectorSet("calm")), VectorError, "set of 'calm' is empty"),
    (lambda m: ActivationInjector(m, {"calm": spread_set(m)}), VectorError, "by behaviour are for MultiVectorInjector"),
    (lambda m: ActivationInjector(m, None), VectorError, "None is neither a SteeringVector nor"),
    (lambda m: ActivationInjector(m, "calm"), VectorError, "'calm' is neither a SteeringVector nor"),
    (lambda m: ActivationInjector(m, make_vector(m).vector), VectorError, "A Tensor is neither a SteeringVector nor"),
    (lambda m: ActivationInjector(m, [make_vector(m)], injection_mode="lats"), OptionError, "Unknown scope 'lats'"),
    (lambda m: ActivationInjector(m, [make_vector(m)], strength=float("nan")), OptionError, "not a finite number"),
    (lambda m: ActivationInjector(m, [make_vector(m)], strength="1"), OptionError, "not a finite number"),
    (lambda m: ActivationInjector(m, [make_vector(m, layer=4)]), LayerError, "Layer 4 does not exist"),
    (lambda m: ActivationInjector(m, [SteeringVector("b", 0, torch.ones(1), "tiny")]), VectorError,
     "has 1 numbers; .* has hidden size 16"),
    (lambda m: ActivationInjector(m, [SteeringVector("b", 0, torch.ones(16), "Qwen/Qwen3-8B")]), ModelMismatchError,
     "made from 'Qwen/Qwen3-8B'.*check_model=False"),
    (lambda m: ActivationInjector(m, [SteeringVector("b", 0, torch.ones(16), "x", metadata={"fingerprint": {}})]),
     ModelMismatchError, "made from 'x'"),
    (lambda m: MultiVectorInjector(m, {}), VectorError, "No vector sets given"),
    (lambda m: MultiVectorInjector(m, vector_sets(m), default_layer=0), LayerError,
     "'formal' has no vector at layer 0"),
    (lambda m: MultiVectorInjector(m, vector_sets(m), strengths={"clam": 1.0}), OptionError, "Strength for 'clam'"),
    (lambda m: MultiVectorInjector(m, {"calm": SteeringVectorSet("calm")}), VectorError, "set of 'calm' is empty"),
    (lambda m: MultiVectorInjector(m, vector_sets(m)).set_strength("clam", 1.0), KeyError, "No vectors for .*'clam'"),
    (lambda m: MultiVectorInjector(m, vector_sets(m)).get_strength("clam"), KeyError, "No vectors for .*'clam'"),
])  # fmt: skip
def test_mistakes_are_errors_and_leave_the_model_alone(llama, make, error, message):
    hooks, plain = count_hooks(llama), llama(IDS).logits
    with pytest.raises(error, match=message):
        make(llama)
    assert count_hooks(llama) == hooks
    assert torch.equal(llama(IDS).logits, plain)


def test_a_vector_meant_for_another_model_can_be_used_on_purpose(llama):
    vector = SteeringVector("b", 0, torch.ones(16), "Qwen/Qwen3-8B")
    plain = residual(llama, 0)
    with ActivationInjector(llama, [vector], check_model=False):
        torch.testing.assert_close(residual(llama, 0), plain + 1)


def test_a_failing_forward_leaves_no_call_behind(llama):
    with ActivationInjector(llama, [make_vector(llama)], injection_mode="last"):
        with pytest.raises(IndexError):
            llama(torch.tensor([[500]]))
        with pytest.raises(PositionError, match="ran outside the decoder's forward call"):
            llama.model.layers[1](
                torch.zeros(1, 1, 16), position_embeddings=(torch.ones(1, 1, 8), torch.zeros(1, 1, 8))
            )


def test_two_threads_cannot_steer_the_whole_model_at_odds(llama):
    failures = []

    def other():
        try:
            ActivationInjector(llama, [make_vector(llama)]).attach()
        except SteeringConflictError as error:
            failures.append(str(error))

    with ActivationInjector(llama, [make_vector(llama)]):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "Use `with injector.scoped():`" in failures[0]
    assert count_hooks(llama) == 0


def test_scoped_steering_is_seen_by_its_own_thread_only(llama):
    vector = make_vector(llama)
    serial = {}
    for strength in range(8):
        with ActivationInjector(llama, [vector], strength=strength):
            serial[strength] = llama(IDS).logits
    wrong = []

    def call(strength):
        injector = ActivationInjector(llama, [vector], strength=strength)
        for _ in range(100):
            with injector.scoped():
                if not torch.equal(llama(IDS).logits, serial[strength]):
                    wrong.append(strength)

    threads = [threading.Thread(target=call, args=(strength,)) for strength in serial]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert count_hooks(llama) == 0


def test_scoped_steering_is_seen_by_its_own_task_only(llama):
    vector = make_vector(llama)
    plain = residual(llama, 1)

    async def call(strength):
        injector = ActivationInjector(llama, [vector], strength=strength)
        with injector.scoped():
            for _ in range(3):
                await asyncio.sleep(0)
                torch.testing.assert_close(residual(llama, 1), plain + strength * vector.vector)

    async def calls():
        await asyncio.gather(*(call(strength) for strength in (0.0, 1.0, -2.0)))

    asyncio.run(calls())
    assert torch.equal(residual(llama, 1), plain)


def test_a_steered_model_can_be_freed():
    model = tiny_llama()
    with ActivationInjector(model, [make_vector(model)]):
        model(IDS)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def with_fingerprint(model, **changes):
    fingerprint = {**model_fingerprint(model), **changes}
    return SteeringVector("b", 1, torch.ones(16), "org/mine", metadata={"fingerprint": fingerprint})


def test_a_vocabulary_that_has_grown_does_not_matter(llama):
    vector = with_fingerprint(llama)
    llama.resize_token_embeddings(130, mean_resizing=False)
    with torch.no_grad(), ActivationInjector(llama, [vector]):
        assert llama(IDS).logits.shape[-1] == 130


def test_the_error_about_another_model_says_what_differs(llama):
    vector = with_fingerprint(llama, num_layers=5, model_type="gpt2")
    with pytest.raises(
        ModelMismatchError, match="model_type is 'gpt2' there and 'llama' here, num_layers is 5 there and 4 here"
    ):
        ActivationInjector(llama, [vector])
