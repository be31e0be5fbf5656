"""The sample model in llama.cpp."""

import pytest

from engines.gguf_models import write_fp32_model


@pytest.fixture(scope="session")
def fp32_gguf(tmp_path_factory):
    """SmolLM2-135M-Instruct as a GGUF file of the numbers that `smollm` has."""
    path = tmp_path_factory.mktemp("gguf") / "smollm2.gguf"
    write_fp32_model(path)
    yield path
    path.unlink()


@pytest.fixture(scope="session")
def load_llama():
    """Loads a GGUF model with caches and arithmetic in fp32, so that transformers computes the same."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="make test-llama-cpp installs llama-cpp-python")

    def load(path, **options):
        settings = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "logits_all": True, "verbose": False}
        exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
        return llama_cpp.Llama(str(path), **(settings | exact | options))

    return load


@pytest.fixture(scope="session")
def llama_model(load_llama, fp32_gguf):
    """The sample model. Tests must leave it unsteered."""
    return load_llama(fp32_gguf)
