"""How many of transformers' causal architectures can be baked, for docs/baking.md.

    python benchmarks/baked_architectures.py      # five minutes

A tiny random instance of each (those of tests/architectures) is baked once with vectors at its first and last layer,
and once with a direction taken out. What is neither baked nor refused is a crash, and makes the exit code 1.
"""

from __future__ import annotations

import collections
import sys
import warnings
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from architectures.tiny_instances import ARCHITECTURES, DRAFTS, Architecture, build
from rotalabs_steer import SteeringVector
from rotalabs_steer.baking import bake
from rotalabs_steer.errors import ArchitectureError
from rotalabs_steer.model.decoder import decoder_layers, hidden_size


def outcome(architecture: Architecture, intervention: str) -> str:
    model = build(architecture)
    layers = {"add": sorted({0, len(decoder_layers(model)) - 1}), "ablate": [0]}[intervention]
    direction = torch.randn(hidden_size(model), generator=torch.Generator().manual_seed(0))
    vectors = [SteeringVector("any", layer, direction, "tiny") for layer in layers]
    try:
        bake(model, vectors, 0.5, intervention=intervention, check_model=False)
    except ArchitectureError:
        return "refused"
    except Exception as error:
        print(f"{architecture.model_type}, {intervention}: {error!r}", file=sys.stderr)
        return "crashed"
    return "baked"


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    causal = [each for each in ARCHITECTURES if each.group == "causal" and each.model_type not in DRAFTS]
    print(f"{len(causal)} causal architectures, transformers {transformers.__version__}")
    crashed = 0
    for intervention in ("add", "ablate"):
        counts = collections.Counter(outcome(each, intervention) for each in causal)
        crashed += counts["crashed"]
        print(intervention, dict(counts))
    sys.exit(crashed > 0)


if __name__ == "__main__":
    main()
