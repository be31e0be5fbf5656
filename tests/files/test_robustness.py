"""Short runs of the programs behind docs/security.md: kills, a full disk, many writers, strangers' files."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from rotalabs_steer.errors import SteeringError

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and kills processes")


def run(*arguments):
    command = [sys.executable, str(BENCHMARKS / "file_safety.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_killed_writers_leave_the_old_set_or_the_new():
    found = run("kills", "--count", "30")
    assert (found["kills"], found["mixed or unreadable"], found["stray files after the next save"]) == (30, 0, 0)


def test_processes_that_write_at_once_leave_a_whole_set():
    found = run("writers", "--count", "4", "--saves", "5")
    assert found["reads"] > 0
    assert found["mixed or unreadable"] == found["writers that failed"] == found["stray files"] == 0


def test_strangers_files_cost_no_more_than_twice_their_size():
    found = run("attacks")
    assert found["wrong"] == []
    assert found["executed"] is False


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk: needs root")
def test_a_full_disk_leaves_the_old_set():
    found = run("full-disk")
    assert found["saves refused for want of space"] == found["old set intact"] > 0
    assert found["stray files after the next save"] == 0


def test_damaged_files_raise_this_packages_errors_only(tmp_path, monkeypatch):
    """What the fuzzer does for an hour, here for a second, by mutations of its own seeds."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from fuzz_readers import readers, write_seeds

    write_seeds(tmp_path)
    seeds = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    chance, outcomes = random.Random(0), set()
    for _ in range(600):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(4)):
            place = chance.randrange(1, len(data))
            data[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(4))
        for name, read in readers(bytes(data[:1]), data[1:]):
            try:
                read()
                outcomes.add((name, "accepted"))
            except SteeringError:
                outcomes.add((name, "refused"))
    assert len(outcomes) > 12
