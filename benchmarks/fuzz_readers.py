"""Fuzzes every reader of vector files with atheris: `python benchmarks/fuzz_readers.py --seconds 3600`.

Whatever bytes a file holds, a reader may return a vector or raise one of this package's errors, and nothing else: no
other exception, no crash, no code executed, no file written, no process or connection started. atheris must be
installed beside the package: `pip install atheris`.
"""

from __future__ import annotations

import argparse
import codecs
import importlib
import io
import json
import os
import pickle
import pickletools
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

FORBIDDEN = ("exec", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "socket.", "shutil.", "os.re")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, default=None, help="folder that keeps inputs with new coverage")
    options = parser.parse_args()

    import atheris
    import torch  # noqa: F401 (first and as it is: nothing of torch parses what is in a file)

    with atheris.instrument_imports():
        for module in (pickletools, zipfile, json.decoder):
            importlib.reload(module)
        import rotalabs_steer.importing  # noqa: F401
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="corpus-"))
    corpus.mkdir(parents=True, exist_ok=True)
    write_seeds(corpus)
    target = Target()
    started = time.monotonic()

    def once(data: bytes) -> None:
        target(data)
        if target.calls % 5_000 == 0:
            print(target.report(time.monotonic() - started), flush=True)

    arguments = [sys.argv[0], f"-max_total_time={options.seconds}", "-rss_limit_mb=3000", "-timeout=20"]
    atheris.Setup([*arguments, "-max_len=20000", "-print_final_stats=1", str(corpus)], once)
    atheris.Fuzz()


class Target:
    """Gives bytes to every reader, and counts what comes of it."""

    def __init__(self) -> None:
        self.calls = 0
        self.outcomes: Counter[str] = Counter()
        self.reading = False
        self.warm_up()
        sys.addaudithook(self.watch)

    def __call__(self, data: bytes) -> None:
        from rotalabs_steer.errors import SteeringError

        self.calls += 1
        kind, content = data[:1], bytearray(data[1:])
        self.reading = True
        try:
            for name, read in readers(kind, content):
                try:
                    read()
                    self.outcomes[f"{name} accepted"] += 1
                except SteeringError:
                    self.outcomes[f"{name} refused"] += 1
        finally:
            self.reading = False

    def watch(self, event: str, arguments: tuple[object, ...]) -> None:
        """Ends the process when a file that is being read does anything."""
        if not self.reading:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes or event.startswith(FORBIDDEN):
            self.outcomes["EXECUTIONS"] += 1
            print(f"a file made its reader do {event} {arguments!r:.300}", flush=True)
            os.abort()

    def warm_up(self) -> None:
        """What torch imports when it first loads something, or names a tensor in an error, is not the file's doing.

        Nor are the codecs of a pickle's texts.
        """
        import torch

        repr(torch.zeros(1))
        for codec in ("raw-unicode-escape", "unicode-escape", "ascii", "latin-1"):
            codecs.lookup(codec)
        with tempfile.TemporaryDirectory() as folder:
            write_seeds(Path(folder))
            for seed in Path(folder).iterdir():
                Target.__call__(self, seed.read_bytes())
        self.calls, self.outcomes = 0, Counter()

    def report(self, seconds: float) -> str:
        spent = {"seconds": round(seconds), "cpu_seconds": round(time.process_time())}
        return json.dumps({**spent, "inputs": self.calls, **dict(sorted(self.outcomes.items()))})


def readers(kind: bytes, content: bytearray):
    """The readers that get these bytes. The first byte says where in a file they stand, so that fuzzing comes deep."""
    from rotalabs_steer.files import gguf, other_tools, reading, torch_files
    from rotalabs_steer.files.safetensors_file import parse_safetensors, parse_safetensors_set
    from rotalabs_steer.importing import import_vectors
    from rotalabs_steer.vectors import SteeringVectorSet

    path = Path("stranger")
    number = kind[0] % 7 if kind else 0
    if number == 0:
        yield "json", lambda: reading.parse_json_object(content, path)
        yield "pt", lambda: torch_files.parse_vector(content, path)
        yield "foreign", lambda: other_tools.parse_other_tool(content, path)
    elif number == 1:
        archive = pt_archive(content)
        yield "pickle", lambda: torch_files.parse_vector(archive, path)
        yield "foreign pickle", lambda: other_tools.parse_other_tool(archive, path)
    elif number == 2:
        whole = bytearray(len(content).to_bytes(8, "little")) + content + bytes(64)
        yield "header", lambda: parse_safetensors(whole, path)
    elif number == 3:
        yield (
            "set document",
            lambda: SteeringVectorSet._from_stored(parse_safetensors_set(set_file(content), path), path).get_best(),
        )
    elif number == 4:
        array = b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little", signed=False) if len(content) < 65536 else b""
        yield "npy", lambda: other_tools.parse_other_tool(bytearray(array) + content + bytes(64), path)
    elif number == 5:
        yield "gguf", lambda: gguf.parse_control_vector(content, path)
    else:
        yield "one file", lambda: SteeringVectorSet._from_stored(parse_safetensors_set(content, path), path)
        yield (
            "import",
            lambda: import_vectors(other_tools.parse_other_tool(content, path), behavior="x", model_name="x"),
        )


def pt_archive(pickled: bytes | bytearray) -> bytearray:
    """A `.pt` file around a pickle, with two storages it may use."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for key in ("0", "1"):
            archive.writestr(f"archive/data/{key}", bytes(32))
        archive.writestr("archive/version", "3\n")
    return bytearray(buffer.getvalue())


def set_file(document: bytes | bytearray) -> bytearray:
    """A safetensors set of two layers whose document is these bytes."""
    about = {"format": "pt", "rotalabs_steer": document.decode("utf-8", "replace")}
    entries = {f"layer_{n}": {"dtype": "F32", "shape": [4], "data_offsets": [16 * n, 16 * n + 16]} for n in (0, 1)}
    header = json.dumps({"__metadata__": about, **entries}).encode()
    return bytearray(len(header).to_bytes(8, "little") + header + bytes(32))


def write_seeds(corpus: Path) -> None:
    """One good input for each place."""
    import numpy as np
    import torch

    from rotalabs_steer import SteeringVector, SteeringVectorSet
    from rotalabs_steer.files.safetensors_file import safetensors_set_bytes
    from rotalabs_steer.files.schema import json_bytes

    calm = SteeringVectorSet("calm", [SteeringVector("calm", n, torch.zeros(4), "m") for n in (0, 1)])
    stored = calm._stored()
    document = dict(stored.metadata) | {"vectors": {str(n): about for n, (about, _) in stored.vectors.items()}}
    buffer, many, arrays = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(torch.ones(8), buffer)
    torch.save({1: torch.ones(8), 2: torch.ones(8)}, many)
    np.savez(arrays, layer_1=np.ones(4, np.float32))
    array = io.BytesIO()
    np.save(array, np.ones(16, np.float32))
    with zipfile.ZipFile(buffer) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    with zipfile.ZipFile(many) as archive:
        pickled_dict = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    one_file = safetensors_set_bytes(stored)
    header = json.dumps({"layer_1": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}).encode()
    seeds = {
        "json": b"\0" + json_bytes(document),
        "pt": b"\0" + buffer.getvalue(),
        "pt-dict": b"\0" + many.getvalue(),
        "npz": b"\0" + arrays.getvalue(),
        "pickle": b"\1" + pickled,
        "pickle-dict": b"\1" + pickled_dict,
        "pickle-array": b"\1" + pickle.dumps(np.ones(8, np.float32), protocol=2),
        "pickle-object": b"\1\x80\x02csteering_vectors.steering_vector\nSteeringVector\n)\x81}"
        b"(X\x11\0\0\0layer_activations}X\x0a\0\0\0layer_typeX\x0d\0\0\0decoder_blockub.",
        "header": b"\2" + header,
        "document": b"\3" + json_bytes(document),
        "npy": b"\4" + array.getvalue()[10:-64],
        "gguf": b"\5" + control_vector_bytes(),
        "one-file": b"\6" + one_file,
    }
    for name, content in seeds.items():
        (corpus / f"seed-{name}").write_bytes(content)


def control_vector_bytes() -> bytes:
    import torch

    from rotalabs_steer.files.gguf import ControlVector, write_control_vector

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calm.gguf"
        write_control_vector(path, ControlVector({1: torch.ones(4), 2: torch.ones(4)}, "llama"))
        return path.read_bytes()


if __name__ == "__main__":
    main()
