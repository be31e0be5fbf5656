"""Several processes and spread models, with accelerate itself."""

import subprocess
import sys
from pathlib import Path

import torch
from accelerate import cpu_offload, disk_offload

from extraction.test_caa import PAIRS, Letters
from rotalabs_steer.extraction import extract_vectors, read_statistics
from tiny import tiny_llama

METHODS = ["mean_difference", "lda", "logistic"]

WORKER = """
import pathlib, sys
import torch
from accelerate import Accelerator
sys.path.insert(0, {tests!r})
from extraction.test_caa import PAIRS, Letters
from extraction.test_distributed import METHODS
from rotalabs_steer.extraction import read_statistics
from rotalabs_steer.model.batching import can_share_prefixes
from tiny import tiny_llama

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
calls = []
model = accelerator.prepare(tiny_llama())
can_share_prefixes(model, 10)  # probed beforehand, so that only batches are counted
model.module.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
found = read_statistics(model, Letters(), PAIRS, methods=METHODS, batch_size=2, show_progress=False)
rank = accelerator.process_index
vectors = {{method: [vector.vector for vector in found.vectors(method)] for method in METHODS}}
torch.save((len(calls), vectors), pathlib.Path({out!r}) / f"{{rank}}.pt")
accelerator.end_training()
"""


def test_two_processes_share_the_pairs_and_agree_with_one(tmp_path):
    tests = str(Path(__file__).parents[1])
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=tests, out=str(tmp_path)))
    # What `accelerate launch` starts for several devices; on CPUs it would ask for MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = read_statistics(tiny_llama(), Letters(), PAIRS, methods=METHODS, batch_size=2, show_progress=False)
    calls = []
    for rank in (0, 1):
        count, vectors = torch.load(tmp_path / f"{rank}.pt")
        calls.append(count)
        for method in METHODS:
            for layer, vector in enumerate(vectors[method]):
                torch.testing.assert_close(vector, alone.vectors(method)[layer].vector, rtol=1e-5, atol=1e-6)
    assert sorted(calls) == [1, 2], "three batches of one pair, shared out"


def test_models_spread_by_accelerate(tmp_path):
    expected = extract_vectors(tiny_llama(), Letters(), PAIRS, method="natural_gradient", neutral_texts=["abcd"],
                               show_progress=False)  # fmt: skip
    on_cpu, on_disk = tiny_llama(), tiny_llama()
    cpu_offload(on_cpu, torch.device("cpu"))
    disk_offload(on_disk, str(tmp_path), torch.device("cpu"))
    assert next(on_disk.parameters()).device.type == "meta"
    for model in (on_cpu, on_disk):
        found = extract_vectors(model, Letters(), PAIRS, method="natural_gradient", neutral_texts=["abcd"],
                                show_progress=False)  # fmt: skip
        for vector in found:
            torch.testing.assert_close(vector.vector, expected[vector.layer_index].vector)
