"""Steering together with what else vLLM does, on a tiny model against transformers."""

import re

import pytest
import torch
from vllm.lora.request import LoRARequest

from engines.vllm.live.conftest import generate, greedy
from engines.vllm.live.tiny_engine import KINDS, TinyModel, metric
from rotalabs_steer.engines.vllm.frontend import SteeringFrontend


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyModel(tmp_path_factory.mktemp("tiny"))


def test_a_prompt_in_chunks_and_a_request_that_is_preempted(engines, tiny):
    llm = engines.get(**tiny.options(max_num_batched_tokens=16, num_gpu_blocks_override=20))
    tiny.check(llm, tokens=48)
    assert metric(llm, "vllm:num_preemptions") > 0


def test_speculative_decoding(engines, tiny):
    guess = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
    llm = engines.get(**tiny.options(speculative_config=guess))
    tiny.check(llm, tokens=64)
    assert metric(llm, "vllm:spec_decode_num_accepted_tokens") > 0


def test_lora(engines, tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    targets = ["q_proj", "v_proj", "down_proj"]
    model = get_peft_model(tiny.transformers(), LoraConfig(r=8, target_modules=targets, init_lora_weights=False))
    model.save_pretrained(tmp_path)
    llm = engines.get(**tiny.options(enable_lora=True, max_lora_rank=8, max_loras=1))
    tiny.check(llm, model=model.eval(), lora_request=LoRARequest("adapter", 1, str(tmp_path)))
    tiny.check(llm)


@pytest.mark.parametrize(
    "way",
    [
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2, "enforce_eager": False},  # eagerly vLLM 0.32 makes no room for what stages pass
    ],
    ids=lambda way: next(iter(way)),
)
def test_two_processes(engines, tiny, monkeypatch, way):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    llm = engines.get(**tiny.options(**way))
    tiny.check(llm)
    with pytest.raises(ValueError, match="Unknown behaviour 'up'"):
        generate(llm, tiny.prompts(1), greedy({"up": 1.0}))
    engines.stop()


def test_compiled(engines, tiny):
    tiny.check(engines.get(**tiny.options(enforce_eager=False, enable_prefix_caching=True)))


def vectors_held(worker):
    return len(worker.steering._writer.catalogue._vectors)


def test_a_worker_keeps_the_vectors_of_waiting_and_running_requests_and_of_no_others(engines, tiny, monkeypatch):
    """A waiting request is not known to the worker: the engine says what it uses."""
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # a function is sent to the worker
    engines.stop()
    from rotalabs_steer.engines.vllm import reload_vectors

    tiny.sets["left"].save(tiny.folder / "vectors" / "left")  # whatever an earlier test has left there
    llm = engines.get(**tiny.options(max_num_seqs=2))
    prompts = tiny.prompts(4)
    before = [generate(llm, [ids], greedy(KINDS[1], 180))[0] for ids in prompts]
    own = llm.collective_rpc(vectors_held)[0]
    engine, found = llm.llm_engine, {}
    for number, ids in enumerate(prompts):
        engine.add_request(str(number), {"prompt_token_ids": ids}, greedy(KINDS[1], 180))
    engine.step()
    try:
        for scale in (-1.0, 2.0, 3.0, 4.0):
            tiny.sets["left"].scale(scale).save(tiny.folder / "vectors" / "left")
            reload_vectors(llm)
        used_and_before = 1 + 2
        assert llm.collective_rpc(vectors_held) == [own + used_and_before]
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    found[int(output.request_id)] = list(output.outputs[0].token_ids)
        assert [found[number] for number in range(4)] == before
    finally:
        tiny.sets["left"].save(tiny.folder / "vectors" / "left")
    reload_vectors(llm)
    reload_vectors(llm)
    assert llm.collective_rpc(vectors_held) == [own]
    engines.stop()


@pytest.mark.parametrize("starts_alone", [False, True])
def test_a_folder_that_changes_while_the_engine_starts_is_an_error_that_says_so(
    engines, tiny, monkeypatch, capfd, starts_alone
):
    """`starts_alone`: the workers are not told what was read, as with several API servers, and are asked later."""
    engines.stop()
    tell = SteeringFrontend._tell_workers

    def tell_then_change(self, key):
        if not starts_alone:
            tell(self, key)
        tiny.sets["left"].scale(-1.0).save(tiny.folder / "vectors" / "left")

    monkeypatch.setattr(SteeringFrontend, "_tell_workers", tell_then_change)
    said = r"vectors that a worker read from .* are not those that the API server read.*Start the engine again"
    try:
        if not starts_alone:
            with pytest.raises(RuntimeError, match="Engine core initialization failed"):
                engines.get(**tiny.options())
            assert re.search(said, "".join(capfd.readouterr()))
            return
        llm = engines.get(**tiny.options())
        with pytest.raises(Exception, match=said):
            llm.collective_rpc("steering_check", args=(llm.llm_engine.input_processor.steering_frontend.catalogue.key,))
    finally:
        tiny.sets["left"].save(tiny.folder / "vectors" / "left")
        engines.stop()


def test_vectors_are_read_again(engines, tiny):
    from rotalabs_steer.engines.vllm import reload_vectors

    llm = engines.get(**tiny.options())
    before = generate(llm, tiny.prompts(1), greedy(KINDS[1]))
    tiny.sets["left"].scale(-1.0).save(tiny.folder / "vectors" / "left")
    try:
        assert generate(llm, tiny.prompts(1), greedy(KINDS[1])) == before
        reload_vectors(llm)
        turned = generate(llm, tiny.prompts(1), greedy(KINDS[1]))
        assert turned != before
        assert generate(llm, tiny.prompts(1), greedy({"left": -1.0})) == before
    finally:
        tiny.sets["left"].save(tiny.folder / "vectors" / "left")
