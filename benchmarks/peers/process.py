"""A contestant's worker process, seen from the benchmark: requests go in, measurements come out."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

WORKER = Path(__file__).with_name("worker.py")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class WorkerError(Exception):
    """A contestant cannot run; the message says why."""


class Worker:
    """A process in a contestant's own environment with the model loaded, idle except during `measure`.

    Attributes:
        about: `versions` of its libraries, `threads` and number of `layers`.

    Raises:
        WorkerError: it cannot be started, now, or it ended during a measurement.
    """

    def __init__(self, python: Path, adapter: str, model: Path, threads: int) -> None:
        if not python.exists():
            raise WorkerError(f"{python} does not exist; make it with --make-venvs")
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in __exit__
        limits = dict.fromkeys(THREAD_VARIABLES, str(threads))
        self._process = subprocess.Popen(
            [python, WORKER, adapter, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **limits, "HF_HUB_OFFLINE": "1"},
        )
        self.about = self._reply()

    def measure(self, pairs: Sequence[tuple[str, str]], layers: Sequence[int]) -> dict[str, Any]:
        """Seconds, memory and vectors of one extraction, as `worker.py` sends them."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `_reply` says why
            self._process.stdin.write(json.dumps({"pairs": pairs, "layers": layers}) + "\n")
            self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            said = self._log.read().strip().splitlines() or ["no message"]
            raise WorkerError(f"{said[-1]} (exit code {code})")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it may be in the middle of a measurement that nobody waits for
        self._process.wait()
        self._log.close()
