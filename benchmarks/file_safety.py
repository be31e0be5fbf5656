"""What becomes of vector files under kills, a full disk, many writers and strangers' files, for docs/security.md.

    python benchmarks/file_safety.py kills --count 500
    python benchmarks/file_safety.py full-disk            # as root: it mounts a small tmpfs
    python benchmarks/file_safety.py writers --count 4 --saves 100
    python benchmarks/file_safety.py attacks

Each prints one JSON object; the exit code is 1 if anything was not as it should be. POSIX only: it forks.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.errors import SteeringError
from rotalabs_steer.importing import import_vectors

LAYERS = (1, 2, 3)


def calm(value: float, size: int = 64) -> SteeringVectorSet:
    return SteeringVectorSet("calm", [SteeringVector("calm", n, torch.full((size,), value), "m") for n in LAYERS])


FORMS = {
    "folder": (lambda value, place: calm(value).save(place / "folder"), "folder"),
    "one file": (lambda value, place: calm(value).save(place / "one.safetensors"), "one.safetensors"),
    "to share": (lambda value, place: calm(value).save_pretrained(place / "shared"), "shared"),
}


def read_value(form: str, place: Path) -> float:
    """The number that the whole set is made of; an error if it is made of two."""
    path = place / FORMS[form][1]
    found = SteeringVectorSet.from_pretrained(path) if form == "to share" else SteeringVectorSet.load(path)
    (value,) = {number for vector in found for number in vector.vector.tolist()}
    return value


def strays(place: Path) -> list[str]:
    return sorted(path.name for path in place.rglob("*") if path.name.startswith("."))


def forked(work) -> int:
    """A child that does the work and ends, with exit code 1 if it raises."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    return child


def forked_save_seconds(form: str, place: Path) -> float:
    """How long a save takes in a child: the median of five."""
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        os.waitpid(forked(lambda: FORMS[form][0](0.0, place)), 0)
        seconds.append(time.monotonic() - started)
    return sorted(seconds)[2]


def kills(count: int) -> dict:
    """Kills writers at random moments. Whatever is found afterwards must be one whole set that was saved."""
    chance, found = random.Random(0), {"kills": 0, "old": 0, "new": 0, "mixed or unreadable": 0}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        longest = {form: 1.5 * forked_save_seconds(form, place) for form in FORMS}
        for number in range(1, count + 1):
            form = list(FORMS)[number % len(FORMS)]
            before = read_value(form, place)

            def write(form=form, number=number) -> None:
                FORMS[form][0](float(number), place)
                time.sleep(10)

            child = forked(write)
            time.sleep(chance.uniform(0.0, longest[form]))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            found["kills"] += 1
            try:
                value = read_value(form, place)
                found["old" if value == before else "new" if value == number else "mixed or unreadable"] += 1
            except (SteeringError, OSError, ValueError) as error:
                print(error, file=sys.stderr)
                found["mixed or unreadable"] += 1
        found["stray files before the next save"] = len(strays(place))
        for form in FORMS:
            FORMS[form][0](-1.0, place)
        found["stray files after the next save"] = len(strays(place))
    found["sound"] = found["mixed or unreadable"] == 0 and found["stray files after the next save"] == 0
    return found


def full_disk(size: str = "256k") -> dict:
    """Saves ever larger sets onto a small disk until it is full."""
    found = {"saves refused for want of space": 0, "old set intact": 0, "stray files after the next save": 0}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
        try:
            place = Path(folder)
            for form, (write, name) in FORMS.items():
                write(1.0, place)
                for width in (1_000, 4_000, 16_000, 64_000):
                    large = calm(2.0, width)
                    save = large.save_pretrained if form == "to share" else large.save
                    before = read_value(form, place)
                    try:
                        save(place / name)
                    except OSError as error:
                        if error.errno != errno.ENOSPC:
                            raise
                        found["saves refused for want of space"] += 1
                        found["old set intact"] += read_value(form, place) == before
                write(3.0, place)
            found["stray files after the next save"] = len(strays(place))
        finally:
            subprocess.run(["umount", folder], check=True)
    refused = found["saves refused for want of space"]
    found["sound"] = refused == found["old set intact"] > 0 == found["stray files after the next save"]
    return found


def writers(count: int, saves: int) -> dict:
    """Several processes save to one path while this one reads."""
    found = {"writers": count, "saves each": saves, "reads": 0, "mixed or unreadable": 0}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for write, _ in FORMS.values():
            write(0.0, place)

        def work(number: int) -> None:
            for save in range(saves):
                for write, _ in FORMS.values():
                    write(float(1 + number * saves + save), place)

        children = {forked(lambda number=number: work(number)) for number in range(count)}
        failed = 0
        while children:
            for form in FORMS:
                found["reads"] += 1
                try:
                    read_value(form, place)
                except (SteeringError, OSError, ValueError) as error:
                    print(error, file=sys.stderr)
                    found["mixed or unreadable"] += 1
            ended, status = os.waitpid(-1, os.WNOHANG)
            children -= {ended}
            failed += bool(ended and status)
        found["writers that failed"] = failed
        found["stray files"] = len(strays(place))
    found["sound"] = not failed and found["mixed or unreadable"] == found["stray files"] == 0
    return found


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def tensor_file(entries: dict, data: bytes = b"", about: str = "") -> bytes:
    header = json.dumps({"__metadata__": {"rotalabs_steer": about}, **entries}).encode()
    return len(header).to_bytes(8, "little") + header + data


def sparse(size: int) -> torch.Tensor:
    return torch.sparse_coo_tensor([[0]], [1.0], (size,), check_invariants=True)


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200_000_000))
    return buffer.getvalue()


def asking(count: int) -> bytes:
    """A pickle of three instructions that asks for zeros."""
    return pickled(b"cbuiltins\nbytearray\n\x8a\x06" + count.to_bytes(6, "little") + b"\x85R.")


def dictionaries(count: int) -> bytes:
    """Each takes a byte in the file, and 64 in memory."""
    return pickled(b"(" + b"}" * count + b"t.")


def many_members(count: int) -> bytes:
    """An archive with a list of empty files, each of 47 bytes in it and some 500 in memory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", b"")
    content = buffer.getvalue()
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    size = count * (end - start)
    sizes = size.to_bytes(4, "little") + start.to_bytes(4, "little")
    return content[:start] + content[start:end] * count + content[end : end + 12] + sizes + bytes(2)


def pickled(program: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (("x/data.pkl", b"\x80\x02" + program), ("x/byteorder", b"little"), ("x/version", b"3\n")):
            archive.writestr(name, content)
    return buffer.getvalue()


def strangers_files() -> dict[str, tuple[str, bytes]]:
    """Name of a file and its content, by what it attempts."""
    entry = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    many = {f"layer_{n}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]} for n in range(300_000)}
    nan = np.full(4, np.nan, np.float32).tobytes()
    good = {"layer_1": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    return {
        "pickle that runs a command": ("x.pt", saved(Bomb())),
        "sparse tensor of 2^40": ("x.pt", saved(sparse(2**40))),
        "stride 0, 2^40 numbers": ("x.pt", saved(torch.ones(1).expand(2**40))),
        "no data, 2^40 numbers": ("x.pt", saved(torch.empty(2**40, device="meta"))),
        "zip bomb, 200 MB": ("x.pt", zip_bomb()),
        "pickle that asks for 2 GB": ("x.pt", asking(2 * 10**9)),
        "pickle of 4,000,000 dictionaries": ("x.pt", dictionaries(4_000_000)),
        "archive of 500,000 empty files": ("x.npz", many_members(500_000)),
        "int64": ("x.pt", saved(torch.ones(4, dtype=torch.int64))),
        "NaN": ("x.safetensors", tensor_file(good, nan)),
        "header that claims 2^40 numbers": ("x.safetensors", tensor_file({"layer_1": entry}, bytes(16))),
        "header of 300,000 tensors": ("x.safetensors", tensor_file(many, bytes(1_200_000))),
        "header that claims 2^62 bytes": ("x.safetensors", (2**62).to_bytes(8, "little") + b"{" + bytes(64)),
        "JSON 100,000 deep": ("x.safetensors", tensor_file(good, bytes(16), "[" * 100_000)),
        "JSON of 2,000,000 empty lists": ("x.json", b"[" + b"[]," * 1_300_000 + b"[]]"),
        "integer of 10^6 digits": ("x.json", b'{"behavior": ' + b"9" * 1_000_000 + b"}"),
        "array that claims 2^40 numbers": ("x.npy", npy(2**40 - 1)),
    }


def npy(size: int) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size},)}}\n".encode()
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header


def write_files(place: Path) -> None:
    """A folder for each attempt, and for two sound files that readers are measured on too."""
    files = strangers_files()
    for attempt, (name, content) in files.items():
        (place / attempt).mkdir()
        (place / attempt / name).write_bytes(content)
    for attempt in ("integer of 10^9 digits (1 GB file)", "pipe that never ends", "link to another folder"):
        (place / attempt).mkdir()
    with (place / "integer of 10^9 digits (1 GB file)" / "x.json").open("wb") as file:
        file.truncate(10**9)
    os.mkfifo(place / "pipe that never ends" / "x.pt")
    (place / "link to another folder" / "x.safetensors").symlink_to("/etc/hostname")
    calm(1.0, 4_000_000).save(place / "(sound, safetensors)" / "x.safetensors")
    calm(1.0, 4_000_000)[1].save(place / "(sound, pt)" / "x")
    (place / "(sound, pt)" / "x.json").rename(place / "(sound, pt)" / "about.json")
    calm(1.0, 1_000).save(place / "warm.safetensors")
    calm(1.0, 1_000)[1].save(place / "warm")


def attacks() -> dict:
    """Reads each file in a process of its own, and says what it cost."""
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.waitpid(forked(lambda: write_files(place)), 0)  # else the readers would inherit memory to use again
        files = {path.parent.name: path for path in sorted(place.glob("*/x.*"))}
        with contextlib.chdir(place):
            for attempt, path in files.items():
                found[attempt] = attack(path)
            found["executed"] = Path("executed").exists()
    wrong = [
        attempt
        for attempt, row in found.items()
        if isinstance(row, dict) and (row["refused"] == attempt.startswith("(") or row["peak_over_size"] > 2)
    ]
    return {**found, "wrong": wrong, "sound": not wrong and not found["executed"]}


def attack(path: Path) -> dict:
    size = path.stat().st_size
    reading, writing = os.pipe()

    def read() -> None:
        for sound in ("warm.safetensors", "warm.json"):
            import_vectors(sound)  # what torch takes once is not the file's doing
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            import_vectors(path, layers=None if path.parent.name == "(sound, safetensors)" else [1])
            message = ""
        except SteeringError as error:
            message = str(error)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        os.write(writing, json.dumps([grown, message.replace(str(path), path.name)[:300]]).encode())

    _, status = os.waitpid(forked(read), 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        content = answer.read()
    grown, message = json.loads(content) if status == 0 else (0, f"CRASHED with status {status}")
    allowance = 2 * 2**20
    return {
        "bytes": size,
        "grown_mb": round(grown / 2**20, 1),
        "peak_over_size": round(max(0, grown - allowance) / max(size, 1), 2),
        "refused": bool(message) and status == 0,
        "message": message,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "full-disk", "writers", "attacks"])
    parser.add_argument("--count", type=int, default=None, help="kills, or writing processes")
    parser.add_argument("--saves", type=int, default=100, help="of each writing process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    if options.what == "kills":
        found = kills(options.count or 500)
    elif options.what == "writers":
        found = writers(options.count or 4, options.saves)
    else:
        found = full_disk() if options.what == "full-disk" else attacks()
    print(json.dumps({**found, "seconds": round(time.monotonic() - started, 1)}, indent=2, ensure_ascii=False))
    if not found["sound"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
