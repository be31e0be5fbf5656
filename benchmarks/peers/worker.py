"""One contestant's process: loads the model once, then measures one extraction for each line on stdin.

    python worker.py ADAPTER MODEL_FOLDER

A request is a line of JSON with `pairs` and `layers`; the reply is one line of JSON on stdout. Between requests the
process waits for its input and uses no processor. Needs Linux: memory is read from /proc.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

VERSIONS = ("torch", "transformers", "numpy", "rotalabs-steer", "steering-vectors", "repeng")


def main() -> None:
    adapter, folder = sys.argv[1:]
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not come between the replies
    extract = importlib.import_module(f"adapters.{adapter}").extract
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        model(torch.arange(64)[None])  # torch sets up its kernels; every page of the weights is in memory
    tokens_run = TokenCounter(model)

    send(replies, versions=versions(), threads=torch.get_num_threads(), layers=model.config.num_hidden_layers)
    for line in sys.stdin:
        request = json.loads(line)
        tokens_run.total = 0
        before = settle_memory()
        started = time.perf_counter()
        vectors = extract(model, tokenizer, [tuple(pair) for pair in request["pairs"]], request["layers"])
        seconds = time.perf_counter() - started
        send(
            replies,
            seconds=seconds,
            resident_bytes=before,
            extra_bytes=max(0, memory("VmHWM") - before),
            tokens_run=tokens_run.total,
            vectors={layer: torch.as_tensor(vector).tolist() for layer, vector in vectors.items()},
        )


class TokenCounter:
    """Adds up the tokens that the model is run on, padding included."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.total = 0
        model.get_input_embeddings().register_forward_hook(self._count)

    def _count(self, module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:  # noqa: ARG002
        self.total += output.shape[:-1].numel()


def settle_memory() -> int:
    """Gives freed memory back to the system, sets the high-water mark to what is left and returns that, in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(field: str) -> int:
    """A figure of /proc/self/status, in bytes: VmRSS is what is resident now, VmHWM the most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def versions() -> dict[str, str]:
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in VERSIONS if name in installed}


def send(stream: Any, **message: Any) -> None:
    print(json.dumps(message), file=stream, flush=True)


if __name__ == "__main__":
    main()
