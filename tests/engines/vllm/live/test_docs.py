"""The programs of docs/vllm.md, on the sample model and with small engines. Its request is run by test_server.py."""

from pathlib import Path

from engines.vllm.live.documentation import SMALL, blocks
from engines.vllm.steered_sets import random_set
from rotalabs_steer import SteeringVectorSet


def test_programs(engines, tmp_path, monkeypatch):
    engines.stop()
    monkeypatch.chdir(tmp_path)
    random_set("formality", (14,), 0).save("vectors/formality")
    _, steer, extract = blocks()
    for block, call in ((steer, "additional_config="), (extract, "tensor_parallel_size=1")):
        given = {}
        exec(block.replace(call, f"{SMALL}, {call}"), given)
        given["llm"].llm_engine.engine_core.shutdown()
    assert SteeringVectorSet.load(Path("vectors/formality")).layers == list(range(30))
