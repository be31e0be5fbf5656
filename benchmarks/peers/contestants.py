"""Who is measured, and the virtual environments they need: peers whose requirements exclude each other, and ours."""

from __future__ import annotations

import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Contestant:
    """A library, or the yardstick.

    Attributes:
        adapter: module in `adapters/` with `extract(model, tokenizer, pairs, layers)`.
        distribution: what pip installs, without its dependencies; None to use the Python that runs the benchmark.
        needs: what it imports besides torch and transformers.
        mean_difference: whether its vectors must agree with the yardstick's.
    """

    name: str
    adapter: str
    distribution: str | None = None
    needs: tuple[str, ...] = ()
    mean_difference: bool = True

    def python(self, venvs: Path) -> Path:
        """The interpreter it runs in."""
        return Path(sys.executable) if self.distribution is None else venvs / self.distribution / "bin" / "python"


YARDSTICK = Contestant("written by hand", "by_hand")
OURS = Contestant("rotalabs-steer, this version", "with_rotalabs_steer")
CONTESTANTS = (
    YARDSTICK,
    OURS,
    Contestant("rotalabs-steer 1.2.0", "with_rotalabs_steer", "rotalabs-steer==1.2.0", ("accelerate", "pyyaml")),
    Contestant(
        "steering-vectors 0.12.2, batch 16", "with_steering_vectors", "steering-vectors==0.12.2", ("scikit-learn",)
    ),
    Contestant(
        "repeng 0.4.0, batch 32, PCA",
        "with_repeng",
        "repeng==0.4.0",
        ("numpy<2", "scikit-learn", "gguf"),
        mean_difference=False,
    ),
)


def make_venvs(folder: Path) -> None:
    """Builds or completes the environments, all with the torch and transformers of this one.

    torch comes first and alone: a free choice would pull gigabytes of CUDA. The peers come without their dependencies,
    because steering-vectors asks for transformers 4, with which it would not run the same forward pass as the others.
    """
    torch, transformers = (f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "transformers"))
    for contestant in CONTESTANTS:
        if contestant.distribution is None:
            continue
        python = contestant.python(folder)
        print(f"making {python.parent.parent}", flush=True)
        if not python.exists():
            venv.create(python.parent.parent, with_pip=True)
        for packages in ([torch], [transformers, *contestant.needs], ["--no-deps", contestant.distribution]):
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
            subprocess.run(pip, check=True)
