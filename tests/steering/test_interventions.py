import functools

import pytest
import torch

from rotalabs_steer import (
    ActivationInjector,
    MultiVectorInjector,
    SteeringVector,
    SteeringVectorSet,
    extract_activations,
)
from rotalabs_steer.errors import DatasetError, LayerError, OptionError, PositionError, VectorError
from rotalabs_steer.steering.conditions import Condition, fit_condition
from rotalabs_steer.steering.interventions import INTERVENTIONS, Clamp, Rotate
from rotalabs_steer.steering.schedules import LinearDecay, StopAfter
from tiny import count_hooks, make_vector, tiny_llama

IDS = torch.tensor([[5, 6, 7, 8, 9]])
GENERATE = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def residual(model, ids=IDS, layer=1):
    return extract_activations(model, {"input_ids": ids}, [layer], token_position="all")[layer]


def steered(model, intervention, strength=1.0, **options):
    vector = make_vector(model)
    with ActivationInjector(model, [vector], strength, intervention=intervention, **options):
        return residual(model), vector.vector / vector.vector.norm()


def cosine(hidden, direction):
    return hidden @ direction / hidden.norm(dim=-1)


def test_ablate_leaves_nothing_along_the_direction(llama):
    plain = residual(llama)
    hidden, direction = steered(llama, "ablate")
    assert float((hidden @ direction).abs().max()) < 1e-5
    half, _ = steered(llama, "ablate", 0.5)
    torch.testing.assert_close(half, (plain + hidden) / 2)


def test_clamp_sets_the_projection(llama):
    hidden, direction = steered(llama, functools.partial(Clamp, value=3.0))
    torch.testing.assert_close(hidden @ direction, torch.full((1, 5), 3.0))


def test_add_keeping_norm_keeps_the_norm_and_turns_towards_the_vector(llama):
    plain = residual(llama)
    hidden, direction = steered(llama, "add_keeping_norm")
    torch.testing.assert_close(hidden.norm(dim=-1), plain.norm(dim=-1))
    assert bool((cosine(hidden, direction) > cosine(plain, direction)).all())


@pytest.mark.parametrize("strength", [1.0, -1.0, 2.0])
def test_rotate_turns_by_the_angle_within_the_plane(llama, strength):
    plain = residual(llama)
    hidden, direction = steered(llama, functools.partial(Rotate, angle=0.3), strength)
    before, after = (torch.acos(cosine(tensor, direction)) for tensor in (plain, hidden))
    torch.testing.assert_close(after, before - 0.3 * strength, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hidden.norm(dim=-1), plain.norm(dim=-1))
    normal = hidden - (hidden @ direction).unsqueeze(-1) * direction
    old_normal = plain - (plain @ direction).unsqueeze(-1) * direction
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(normal, old_normal, dim=-1), torch.ones(1, 5))


def test_rotate_never_turns_past_the_direction(llama):
    hidden, direction = steered(llama, functools.partial(Rotate, angle=1.0), 50.0)
    torch.testing.assert_close(cosine(hidden, direction), torch.ones(1, 5))


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_strength_zero_and_other_tokens_are_bit_for_bit_untouched(llama, name):
    plain = residual(llama)
    hidden, _ = steered(llama, name, 0.0)
    assert torch.equal(hidden, plain)
    hidden, _ = steered(llama, name, [1.0], injection_mode="last")
    assert torch.equal(hidden[:, :-1], plain[:, :-1])
    assert not torch.equal(hidden[:, -1], plain[:, -1])


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_every_intervention_is_the_same_with_and_without_a_cache(llama, name):
    vector = make_vector(llama, scale=4.0)
    for mode in ("all", "last", "first"):
        with ActivationInjector(llama, [vector], 1.0, mode, intervention=name):
            settings = GENERATE | {"output_logits": True, "return_dict_in_generate": True}
            logits = [torch.stack(llama.generate(IDS, **settings, use_cache=cache).logits) for cache in (True, False)]
        torch.testing.assert_close(*logits, atol=2e-4, rtol=1e-3)


def test_interventions_compose_in_the_order_of_entering(llama):
    first, second = make_vector(llama, seed=1), make_vector(llama, seed=2)
    plain = residual(llama)
    direction = second.vector / second.vector.norm()
    with ActivationInjector(llama, [first]), ActivationInjector(llama, [second], intervention="ablate"):
        hidden = residual(llama)
    expected = plain + first.vector
    expected = expected - (expected @ direction).unsqueeze(-1) * direction
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-4)
    with ActivationInjector(llama, [second], intervention="ablate"), ActivationInjector(llama, [first]):
        hidden = residual(llama)
    expected = plain - (plain @ direction).unsqueeze(-1) * direction + first.vector
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-4)


def test_every_row_may_have_a_strength_of_its_own(llama):
    vector = make_vector(llama)
    ids = IDS.repeat(3, 1)
    plain = residual(llama, ids)
    with ActivationInjector(llama, [vector], [0.0, 1.0, -2.0]):
        hidden = residual(llama, ids)
    assert torch.equal(hidden[0], plain[0])
    torch.testing.assert_close(hidden[1] - plain[1], vector.vector.expand(5, 16))
    torch.testing.assert_close(hidden[2] - plain[2], -2 * vector.vector.expand(5, 16))


def test_rows_may_be_steered_by_different_behaviours(llama):
    sets = {
        name: SteeringVectorSet(name, [make_vector(llama, seed=seed, behavior=name)])
        for seed, name in enumerate(("calm", "formal"))
    }
    ids = IDS.repeat(2, 1)
    plain = residual(llama, ids)
    with MultiVectorInjector(llama, sets, {"calm": [1.0, 0.0], "formal": [0.0, 1.0]}):
        moved = residual(llama, ids) - plain
    for row, name in enumerate(sets):
        torch.testing.assert_close(moved[row, 0], sets[name][1].vector)


def test_beams_share_the_strength_of_their_prompt(llama):
    vector = make_vector(llama, scale=4.0)
    prompts = torch.tensor([[5, 6, 7], [9, 10, 11]])
    settings = GENERATE | {"num_beams": 3}
    with ActivationInjector(llama, [vector], [1.0, -1.0]):
        together = llama.generate(prompts, **settings)
    for row, strength in enumerate((1.0, -1.0)):
        with ActivationInjector(llama, [vector], strength):
            assert llama.generate(prompts[row : row + 1], **settings)[0].tolist() == together[row].tolist()


def test_a_wrong_number_of_strengths_is_an_error(llama):
    with (
        ActivationInjector(llama, [make_vector(llama)], [1.0, 2.0]),
        pytest.raises(OptionError, match="2 strengths were given for a batch of 3 rows; give one for each row"),
    ):
        llama(IDS.repeat(3, 1))
    assert count_hooks(llama) == 0


@pytest.mark.parametrize(("schedule", "factors"), [
    (StopAfter(2), [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]),
    (LinearDecay(4), [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]),
])  # fmt: skip
@pytest.mark.parametrize("cache", [True, False])
def test_schedules_follow_the_generated_tokens(llama, schedule, factors, cache):
    vector = make_vector(llama, scale=4.0)
    with ActivationInjector(llama, [vector], schedule=schedule):
        output = llama.generate(IDS, **GENERATE, use_cache=cache, output_logits=True, return_dict_in_generate=True)
    amounts = torch.tensor(factors, dtype=torch.float32)[None, :, None]
    handle = llama.model.layers[1].register_forward_hook(lambda _, __, out: out + amounts * vector.vector)
    with torch.no_grad():
        expected = llama(output.sequences[:, :10], use_cache=False).logits[0]
    handle.remove()
    for step, logits in enumerate(output.logits):
        torch.testing.assert_close(logits[0], expected[4 + step], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True])
def test_schedules_take_a_number_of_tokens(wrong):
    for schedule in (StopAfter, LinearDecay):
        with pytest.raises(OptionError, match="number of tokens from 1 on"):
            schedule(wrong)


PROMPTS = torch.tensor([[5, 6, 7, 8], [90, 91, 92, 93]])


def splitting_condition(model, layer=0):
    """A condition that the first of PROMPTS meets and the second does not."""
    hidden = residual(model, PROMPTS, layer)
    vector = hidden[0, 1:].mean(dim=0) - hidden[1, 1:].mean(dim=0)
    scores = Condition(vector, layer, 0.0).scores(hidden, True)
    assert scores[0] > scores[1]
    return Condition(vector, layer, float(scores.mean()))


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}], ids=str)
def test_a_condition_decides_row_by_row_on_the_prompt(llama, cache, settings):
    vector = make_vector(llama, layer=2, scale=4.0)
    settings = GENERATE | settings | {"use_cache": cache}
    plain = llama.generate(PROMPTS, **settings)
    with ActivationInjector(llama, [vector]):
        all_steered = llama.generate(PROMPTS, **settings)
    assert not torch.equal(plain[0], all_steered[0])
    assert not torch.equal(plain[1], all_steered[1])
    condition = splitting_condition(llama)
    with ActivationInjector(llama, [vector], condition=condition):
        output = llama.generate(PROMPTS, **settings)
        again = llama.generate(PROMPTS.flip(0), **settings)
    assert output.tolist() == [all_steered[0].tolist(), plain[1].tolist()]
    assert again.tolist() == output.flip(0).tolist()


def test_a_condition_does_not_see_the_padding(llama):
    condition = splitting_condition(llama)
    vector = make_vector(llama, layer=2, scale=4.0)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), PROMPTS], dim=1)
    with ActivationInjector(llama, [vector], condition=condition):
        output = llama.generate(padded, attention_mask=(padded != 0).long(), **GENERATE)[:, 7:]
        expected = llama.generate(PROMPTS, **GENERATE)[:, 4:]
    assert output.tolist() == expected.tolist()


def test_conditions_that_cannot_work_are_errors(llama):
    vector = make_vector(llama, layer=2)
    with pytest.raises(OptionError, match="Unknown measure 'cosin'"):
        Condition(vector.vector, 0, 0.0, measure="cosin")
    with pytest.raises(VectorError, match="not zero"):
        Condition(torch.zeros(16), 0, 0.0)
    with pytest.raises(LayerError, match="decided at layer 3, after layer 2 has been steered"):
        ActivationInjector(llama, [vector], condition=Condition(vector.vector, 3, 0.0))
    with pytest.raises(VectorError, match="condition's vector has 5 numbers, not 16"):
        ActivationInjector(llama, [vector], condition=Condition(torch.ones(5), 0, 0.0))
    with (
        ActivationInjector(llama, [vector], condition=splitting_condition(llama)),
        pytest.raises(PositionError, match=r"holds only a part of it.*without prefill_chunk_size"),
    ):
        llama.generate(PROMPTS, **GENERATE, prefill_chunk_size=2)
    assert count_hooks(llama) == 0


@pytest.mark.real_model
def test_a_fitted_condition_tells_its_prompts_on_the_real_model(smollm, tokenizer):
    cooking = ["How long do I boil an egg?", "Give me a recipe for lentil soup.", "What spices go with pumpkin?",
               "How do I keep rice from sticking?", "Can I freeze cooked pasta?"]  # fmt: skip
    others = ["Who wrote Hamlet?", "Explain photosynthesis.", "What is the capital of Peru?",
              "How do I reset my router?", "Write a poem about autumn."]  # fmt: skip
    fitted = fit_condition(smollm, tokenizer, cooking[:4], others[:4], layers=[8, 12])
    assert fitted.f1 == 1.0
    assert fitted.condition.layer_index in (8, 12)
    with pytest.raises(DatasetError, match="give both"):
        fit_condition(smollm, tokenizer, cooking, [], layers=[8])


def test_unknown_interventions_and_directions_that_are_none(llama):
    with pytest.raises(OptionError, match=r"Unknown intervention 'abate'\. Use one of: add, add_keeping_norm, ablate"):
        ActivationInjector(llama, [make_vector(llama)], intervention="abate")
    zero = SteeringVector("b", 1, torch.zeros(16), "tiny")
    for name in ("ablate", "clamp", "rotate"):
        with pytest.raises(VectorError, match="is zero, so it has no direction"):
            ActivationInjector(llama, [zero], intervention=name)
    assert count_hooks(llama) == 0


def test_half_precision_models_are_steered_in_fp32_and_stay_in_their_dtype():
    model = tiny_llama().bfloat16()
    with ActivationInjector(model, [make_vector(model)], intervention="rotate"):
        assert residual(model).dtype == torch.bfloat16
