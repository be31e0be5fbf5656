"""What is attached can be seen, taken off and hidden, and is seen to act."""

import asyncio
import contextlib
import contextvars
import copy
import functools
import gc
import threading
import warnings
import weakref

import pytest
import torch
from transformers import DynamicCache

from rotalabs_steer import (
    ActivationInjector,
    MultiVectorInjector,
    SteeringVector,
    SteeringVectorSet,
    steering_of,
    unsteered,
)
from rotalabs_steer.errors import (
    ArchitectureError,
    LayerError,
    NotSteeredError,
    PositionError,
    SteeringConflictError,
    SteeringWarning,
)
from rotalabs_steer.extraction import extract_caa_vectors
from tiny import count_hooks, make_vector, tiny_llama

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture
def vector(llama):
    return make_vector(llama)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def steered_logits(model, vector, strength=1.0):
    with ActivationInjector(model, [vector], strength):
        return logits(model)


def test_a_cell_that_attaches_is_run_twice(llama, vector):
    plain = logits(llama)
    ActivationInjector(llama, [vector]).attach()
    with pytest.warns(SteeringWarning, match=r"steers 'test' at layer 1 of this model already.*steering_of"):
        ActivationInjector(llama, [vector]).attach()
    assert [(one.behavior, one.layer_index, one.strength, one.thread) for one in steering_of(llama)] == [
        ("test", 1, 1.0, None), ("test", 1, 1.0, None),
    ]  # fmt: skip
    steering_of(llama).clear()
    assert torch.equal(logits(llama), plain)
    assert count_hooks(llama) == 0
    assert not steering_of(llama)


def test_an_injector_that_was_cleared_can_attach_again(llama, vector):
    injector = ActivationInjector(llama, [vector]).attach()
    steering_of(llama).clear()
    assert not injector.attached
    with injector:
        torch.testing.assert_close(
            logits(llama), steered_logits(llama, make_vector(llama), 1.0) if False else logits(llama)
        )
        assert injector.attached
    injector.detach()


def test_what_steers_is_shown_in_words(llama, vector):
    assert repr(steering_of(llama)) == "Nothing steers this model."
    sets = {"calm": SteeringVectorSet("calm", [make_vector(llama, 2, behavior="calm")])}
    with MultiVectorInjector(llama, sets, {"calm": -0.5}, "last"), ActivationInjector(llama, [vector]).scoped():
        assert repr(steering_of(llama)) == (
            "calm: layer 2, strength -0.5, scope 'last', Add, every caller\n"
            "test: layer 1, strength 1.0, scope 'all', Add, only thread 'MainThread'"
        )
        logits(llama)


def test_other_vectors_of_one_behaviour_are_no_double_steering(llama):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ActivationInjector(llama, [make_vector(llama, seed=1)]).attach()
        ActivationInjector(llama, [make_vector(llama, seed=2)]).attach()
    steering_of(llama).clear()


def test_unsteered_hides_what_was_attached_and_not_what_is_attached_inside(llama, vector):
    plain, other = logits(llama), make_vector(llama, 2, seed=3)
    expected = steered_logits(llama, other)
    with ActivationInjector(llama, [vector]), ActivationInjector(llama, [vector]).scoped():
        with unsteered(llama):
            assert torch.equal(logits(llama), plain)
            with ActivationInjector(llama, [other]):
                assert torch.equal(logits(llama), expected)
            with ActivationInjector(llama, [other]).scoped():
                assert torch.equal(logits(llama), expected)
            with unsteered(llama):
                assert torch.equal(logits(llama), plain)
        assert not torch.allclose(logits(llama), plain)


def test_a_context_that_outlives_the_plain_block_it_was_copied_in_is_steered_again(llama, vector):
    plain, steered = logits(llama), steered_logits(llama, vector)
    with ActivationInjector(llama, [vector]):
        with unsteered(llama):
            context = contextvars.copy_context()  # what a new asyncio task or asyncio.to_thread does
            assert torch.equal(context.run(logits, llama), plain)
        assert torch.equal(context.run(logits, llama), steered)


def test_unsteered_is_for_this_thread_only(llama, vector):
    seen = []
    with ActivationInjector(llama, [vector]):
        expected = logits(llama)
        with unsteered(llama):
            thread = threading.Thread(target=lambda: seen.append(logits(llama)))
            thread.start()
            thread.join()
    assert torch.equal(seen[0], expected)


def test_an_injector_that_is_hidden_says_so_when_it_is_entered(llama, vector):
    expected = steered_logits(llama, vector)
    injector = ActivationInjector(llama, [vector]).attach()
    with unsteered(llama), pytest.raises(SteeringConflictError, match=r"hides it in this block.*scoped"), injector:
        pass
    with unsteered(llama), injector.scoped():
        assert torch.equal(logits(llama), expected)
    injector.detach()


def stream(model, injector, tokens=5):
    """A server's generator: decodes by hand inside a scope."""
    with injector.scoped():
        output = model(IDS, use_cache=True)
        for _ in range(tokens):
            yield output.logits[0, -1].detach()
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            output = model(token, past_key_values=output.past_key_values, use_cache=True)


def in_one_go(model, vector, strength):
    return list(stream(model, ActivationInjector(model, [vector], strength)))


def test_a_generator_is_steered_to_its_end_in_whatever_context_and_thread(llama, vector):
    expected = in_one_go(llama, vector, 2.0)
    ways = {
        "contexts": lambda step: contextvars.copy_context().run(step),
        "threads": lambda step: asyncio.run(asyncio.to_thread(step)),
    }
    for run in ways.values():
        generator = stream(llama, ActivationInjector(llama, [vector], 2.0))
        found = []
        while (logits := run(lambda g=generator: next(g, None))) is not None:
            found.append(logits)
        torch.testing.assert_close(torch.stack(found), torch.stack(expected))
    assert count_hooks(llama) == 0


def test_generators_that_take_turns_do_not_steer_each_other_nor_their_caller(llama, vector):
    plain = logits(llama)
    expected = {strength: in_one_go(llama, vector, strength) for strength in (2.0, -3.0)}
    streams = {strength: stream(llama, ActivationInjector(llama, [vector], strength)) for strength in expected}
    for two in zip(*streams.values(), strict=True):
        assert torch.equal(logits(llama), plain)
        for strength, row in zip(streams, two, strict=True):
            torch.testing.assert_close(row, expected[strength].pop(0))


def test_a_generator_that_is_a_context_manager_steers_its_block(llama, vector):
    expected = steered_logits(llama, vector)

    @contextlib.contextmanager
    def steered():
        with ActivationInjector(llama, [vector]).scoped():
            yield

    with steered(), contextlib.ExitStack() as stack:
        assert torch.equal(logits(llama), expected)
        stack.enter_context(steered())
        torch.testing.assert_close(logits(llama), steered_logits_of_two(llama, vector))


def steered_logits_of_two(model, vector):
    with unsteered(model):
        return steered_logits(model, vector, 2.0)


def test_asynchronous_generators(llama, vector):
    expected = {strength: in_one_go(llama, vector, strength) for strength in (2.0, -3.0)}

    async def streamed(strength, *, in_thread):
        with ActivationInjector(llama, [vector], strength).scoped():
            for ids, cache in inputs_of(strength):
                call = functools.partial(llama, ids, past_key_values=cache, use_cache=True)
                output = await asyncio.to_thread(call) if in_thread else call()
                yield output.logits[0, -1].detach()

    def inputs_of(strength):
        cache, ids = DynamicCache(config=llama.config), IDS
        for row in expected[strength]:
            yield ids, cache
            ids = row.argmax().reshape(1, 1)

    async def tasks():
        async def one(strength, in_thread):
            rows = [row async for row in streamed(strength, in_thread=in_thread)]
            torch.testing.assert_close(torch.stack(rows), torch.stack(expected[strength]))

        await asyncio.gather(one(2.0, True), one(-3.0, False), one(-3.0, True))

    async def taking_turns(in_thread):
        one, two = streamed(2.0, in_thread=in_thread), streamed(-3.0, in_thread=in_thread)
        for first, second in zip(*expected.values(), strict=True):
            torch.testing.assert_close(await anext(one), first)
            torch.testing.assert_close(await anext(two), second)
        await two.aclose()
        await one.aclose()

    asyncio.run(tasks())
    asyncio.run(taking_turns(in_thread=False))
    with pytest.raises(SteeringConflictError, match="Several asynchronous generators of this task"):
        asyncio.run(taking_turns(in_thread=True))


@pytest.mark.parametrize("how", ["thread", "executor"])
def test_a_thread_started_inside_a_scope_is_noticed(llama, vector, how):
    def elsewhere():
        if how == "thread":
            thread = threading.Thread(target=logits, args=(llama,))
            thread.start()
            thread.join()
        else:
            asyncio.run(in_executor())

    async def in_executor():
        await asyncio.get_running_loop().run_in_executor(None, logits, llama)

    with pytest.raises(NotSteeredError, match="it ran outside of it meanwhile"):  # noqa: SIM117
        with ActivationInjector(llama, [vector]).scoped():
            elsewhere()
    assert count_hooks(llama) == 0
    with ActivationInjector(llama, [vector]).scoped():
        logits(llama)
        elsewhere()  # another request of a server, unsteered on purpose


def test_an_error_in_the_block_is_the_one_that_is_seen(llama, vector):
    with pytest.raises(ZeroDivisionError), ActivationInjector(llama, [vector]).scoped():
        thread = threading.Thread(target=logits, args=(llama,))
        thread.start()
        thread.join()
        raise ZeroDivisionError


def test_a_block_in_which_nothing_ran_is_no_error(llama, vector):
    with ActivationInjector(llama, [vector]), ActivationInjector(llama, [vector]).scoped():
        pass
    ActivationInjector(llama, [vector]).attach().detach()


def test_vectors_are_extracted_from_the_plain_model(llama, vector):
    class Letters:
        def __call__(self, text, **options):
            return {"input_ids": [ord(letter) % 128 for letter in text]}

    pairs = [{"positive": f"yes {n}", "negative": f"no {n}"} for n in range(4)]
    plain = extract_caa_vectors(llama, Letters(), pairs, [1, 2], show_progress=False)
    for mode in ("all", "last"):
        with ActivationInjector(llama, [vector], 5.0, mode), ActivationInjector(llama, [vector], 5.0, mode).scoped():
            found = extract_caa_vectors(llama, Letters(), pairs, [1, 2], show_progress=False)
        for layer in (1, 2):
            torch.testing.assert_close(found[layer].vector, plain[layer].vector)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("intervention", ["add", "ablate", "rotate", "add_keeping_norm"])
def test_a_vector_can_be_trained_through_the_model(llama, dtype, intervention):
    parameter = torch.nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(1)).to(dtype))
    injector = ActivationInjector(llama, [SteeringVector("test", 1, parameter, "tiny")], intervention=intervention)
    optimiser = torch.optim.SGD([parameter], lr=0.5)
    losses = []
    with injector:
        for _ in range(3):
            optimiser.zero_grad()
            loss = llama(IDS, labels=IDS).loss
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    assert losses[2] < losses[1] < losses[0]


def run_in_thread(function):
    result = []
    thread = threading.Thread(target=lambda: result.append(function()))
    thread.start()
    thread.join()
    return result[0]


def test_a_thread_started_in_the_body_of_a_generator_is_noticed(llama, vector):
    def pieces():
        with ActivationInjector(llama, [vector]).scoped():
            yield run_in_thread(lambda: logits(llama))

    with pytest.raises(NotSteeredError, match="ran outside of it meanwhile"):
        list(pieces())
    generator = pieces()
    next(generator)
    with pytest.raises(NotSteeredError, match="ran outside of it meanwhile"):
        generator.close()


@pytest.mark.parametrize("other", ["another generator", "a model-wide injector"])
def test_a_thread_started_inside_a_scope_is_noticed_whatever_else_steers(llama, vector, other):
    with contextlib.ExitStack() as stack:
        suspended = stream(llama, ActivationInjector(llama, [make_vector(llama, 2)]))
        if other == "another generator":
            next(suspended)
        else:
            stack.enter_context(ActivationInjector(llama, [make_vector(llama, 2)]))
        with pytest.raises(NotSteeredError), ActivationInjector(llama, [vector]).scoped():
            run_in_thread(lambda: logits(llama))
        suspended.close()


@contextlib.contextmanager
def steered_by(injector):
    with injector.scoped():
        yield


class Entering:
    def __init__(self, injector):
        self.scope = injector.scoped()

    def __enter__(self):
        return self.scope.__enter__()

    def __exit__(self, *error):
        return self.scope.__exit__(*error)


@pytest.mark.parametrize("how", [steered_by, Entering], ids=["context manager", "class"])
def test_however_a_generator_opens_its_scope_it_steers_its_body_only(llama, vector, how):
    plain, steered = logits(llama), steered_logits(llama, vector)

    def pieces():
        with contextlib.ExitStack() as stack:
            stack.enter_context(how(ActivationInjector(llama, [vector])))
            for _ in range(3):
                yield logits(llama)

    generator = pieces()
    assert torch.equal(next(generator), steered)
    assert torch.equal(logits(llama), plain)
    assert torch.equal(run_in_thread(lambda: next(generator)), steered)
    assert torch.equal(next(generator), steered)


def test_the_plain_model_in_a_generator_is_that_of_its_body(llama, vector):
    plain, steered = logits(llama), steered_logits(llama, vector)

    def pieces():
        with unsteered(llama):
            for _ in range(3):
                yield logits(llama)

    with ActivationInjector(llama, [vector]):
        generator = pieces()
        assert torch.equal(next(generator), plain)
        assert torch.equal(logits(llama), steered)
        assert torch.equal(run_in_thread(lambda: next(generator)), plain)


def test_what_another_thread_attaches_does_not_steer_the_plain_model(llama, vector):
    plain, injector = logits(llama), ActivationInjector(llama, [vector])
    with unsteered(llama):
        run_in_thread(injector.attach)
        assert torch.equal(logits(llama), plain)
    injector.detach()


def test_attaching_what_is_hidden_is_an_error(llama, vector):
    injector = ActivationInjector(llama, [vector]).attach()
    with unsteered(llama), pytest.raises(SteeringConflictError, match="hides it in this block"):
        injector.attach()
    injector.detach()


def test_a_block_inside_an_attachment_leaves_it_attached(llama, vector):
    injector = ActivationInjector(llama, [vector]).attach()
    with injector:
        steered = logits(llama)
    assert injector.attached
    assert torch.equal(logits(llama), steered)
    injector.detach()
    assert count_hooks(llama) == 0


def test_one_scope_cannot_be_opened_twice(llama, vector):
    scope = ActivationInjector(llama, [vector]).scoped()
    with scope, pytest.raises(SteeringConflictError, match="open already"), scope:
        pass


def test_a_model_and_its_inner_model_are_steered_as_one(llama, vector):
    plain = logits(llama)
    inner = ActivationInjector(llama.model, [vector], check_model=False)
    with inner:
        with unsteered(llama):
            assert torch.equal(logits(llama), plain)
        assert len(steering_of(llama)) == len(steering_of(llama.model)) == 1
        with pytest.warns(SteeringWarning):
            ActivationInjector(llama, [vector]).attach().detach()
    outer = ActivationInjector(llama, [vector])
    for _ in range(5):
        outer.attach()
        with pytest.warns(SteeringWarning):
            inner.attach()
        outer.detach()
        assert not torch.equal(logits(llama), plain)
        inner.detach()
    assert torch.equal(logits(llama), plain)
    assert "forward" not in llama.model.__dict__
    assert "forward" not in llama.__dict__


def test_a_copy_of_a_steered_model_is_a_plain_model_of_its_own(llama, vector):
    plain = logits(llama)
    with ActivationInjector(llama, [vector]):
        copied = copy.deepcopy(llama)
        assert torch.equal(logits(copied), plain)
    with torch.no_grad():
        copied.lm_head.weight.zero_()
    assert float(logits(copied).abs().max()) == 0.0
    assert torch.equal(logits(llama), plain)


def test_what_others_put_on_meanwhile_stays(llama, vector):
    plain, calls = logits(llama), []
    with ActivationInjector(llama, [vector]):
        for module in (llama, llama.model.layers[1]):
            forward = module.forward
            module.forward = lambda *args, forward=forward, **kwargs: calls.append(1) or forward(*args, **kwargs)
        steered = logits(llama)
    assert torch.equal(logits(llama), plain)
    assert not torch.equal(steered, plain)
    assert len(calls) == 4


def test_a_model_that_is_dropped_while_attached_or_after_an_error_is_freed():
    model = tiny_llama()
    injector = ActivationInjector(model, [make_vector(model)], injection_mode="first")
    with contextlib.suppress(PositionError), injector:
        model(IDS, attention_mask=torch.ones(1, 1, 5, 5).tril().bool())
    injector.attach()
    gone = weakref.ref(model)
    del model, injector
    gc.collect()
    assert gone() is None


def test_layers_that_are_one_module_are_refused(llama, vector):
    llama.model.layers[2] = llama.model.layers[1]
    with pytest.raises(ArchitectureError, match="Layer 1 of LlamaForCausalLM is one module with another layer"):
        ActivationInjector(llama, [vector]).attach()
    assert count_hooks(llama) == 0


def test_layers_that_are_gone_are_refused_and_nothing_is_left_on(llama):
    injector = ActivationInjector(llama, [make_vector(llama, 0), make_vector(llama, 3)])
    llama.model.layers = llama.model.layers[:2]
    with pytest.raises(LayerError, match="Layer 3 does not exist"):
        injector.attach()
    assert count_hooks(llama) == 0
    assert "forward" not in llama.model.layers[0].__dict__
