"""The built packages: what a user of PyPI gets."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"


def files_under(folder):
    return {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_index_would_take_both(built):
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *built.iterdir()], check=True)


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel):
    packaged = {name for name in wheel if ".dist-info/" not in name}
    assert packaged == {path.relative_to(SOURCE).as_posix() for path in files_under(SOURCE)}
    for name in (
        "py.typed",
        "model/data/models.json",
        "datasets/data/refusal/pairs.jsonl",
        "measures/data/capability.jsonl",
        "judging/data/refusal_phrases.json",
    ):
        assert f"rotalabs_steer/{name}" in packaged
    assert [name for name in wheel if name.endswith("/licenses/LICENSE")]


def test_links_of_the_description_work_away_from_the_repository(wheel):
    (metadata,) = (text.decode() for name, text in wheel.items() if name.endswith("/METADATA"))
    targets = re.findall(r"\]\(([^)]*)\)", metadata)
    assert len(targets) > 10
    assert all(target.startswith("https://") for target in targets)


def test_the_source_package_can_be_tested(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        packaged = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    for folder in ("src", "tests", "docs", "benchmarks", "examples"):
        assert {path.relative_to(ROOT) for path in files_under(ROOT / folder)} <= packaged
    assert {
        Path(name) for name in ("LICENSE", "Makefile", "README.md", "constraints-dev.txt", "mkdocs.yml")
    } <= packaged
