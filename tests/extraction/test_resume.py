import pytest
import torch

from extraction.test_caa import PAIRS, Letters
from rotalabs_steer.errors import FileFormatError, OptionError
from rotalabs_steer.extraction import extract_vectors, read_statistics
from tiny import count_hooks, tiny_llama

OPTIONS = {"batch_size": 2, "methods": ["lda", "logistic"], "show_progress": False}


def stop_after(model, calls):
    """Makes the model fail as Ctrl-C would, in its next call but `calls`."""
    made = []

    def count(*_):
        made.append(1)
        if len(made) > calls:
            raise KeyboardInterrupt

    return model.model.layers[0].register_forward_pre_hook(count)


@pytest.mark.parametrize("done", [1, 2])
def test_a_stopped_extraction_goes_on_to_the_same_result(tmp_path, llama, done):
    whole = read_statistics(llama, Letters(), PAIRS, **OPTIONS)
    file = tmp_path / "deep" / "state"
    handle = stop_after(llama, done)
    with pytest.raises(KeyboardInterrupt):
        read_statistics(llama, Letters(), PAIRS, resume=file, **OPTIONS)
    handle.remove()
    assert count_hooks(llama) == 0
    calls = []
    handle = llama.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    resumed = read_statistics(llama, Letters(), PAIRS, resume=file, **OPTIONS)
    handle.remove()
    assert len(calls) == 3 - done
    for method in ("lda", "logistic"):
        for vector in resumed.vectors(method):
            assert torch.equal(vector.vector, whole.vectors(method)[vector.layer_index].vector)
    assert [path.name for path in file.parent.iterdir()] == ["state"]


def test_a_finished_extraction_is_not_run_again(tmp_path, llama):
    first = extract_vectors(llama, Letters(), PAIRS, [1], resume=tmp_path / "state", show_progress=False)
    handle = stop_after(llama, 0)
    again = extract_vectors(llama, Letters(), PAIRS, [1], resume=tmp_path / "state", show_progress=False)
    handle.remove()
    assert torch.equal(first[1].vector, again[1].vector)


def test_other_work_is_refused_and_left_alone(tmp_path, llama):
    file = tmp_path / "state"
    extract_vectors(llama, Letters(), PAIRS, [1], resume=file, show_progress=False)
    before = file.read_bytes()
    for pairs, layers, options in (
        (PAIRS[::-1], [1], {}),
        (PAIRS, [2], {}),
        (PAIRS, [1], {"token_position": "mean"}),
        (PAIRS, [1], {"method": "lda"}),
        (PAIRS, [1], {"batch_size": 1}),
    ):
        with pytest.raises(OptionError, match=r"continues another extraction .* Choose another file for resume="):
            extract_vectors(llama, Letters(), pairs, layers, resume=file, show_progress=False, **options)
    with pytest.raises(OptionError, match="continues another extraction"):
        extract_vectors(tiny_llama(num_hidden_layers=3), Letters(), PAIRS, [1], resume=file, show_progress=False)
    assert file.read_bytes() == before
    file.write_text("{}")
    with pytest.raises(FileFormatError, match="is not a checkpoint of an extraction"):
        extract_vectors(llama, Letters(), PAIRS, [1], resume=file, show_progress=False)


def test_an_extraction_of_other_weights_of_the_same_name_is_refused(tmp_path, llama):
    read_statistics(llama, Letters(), PAIRS, **OPTIONS)
    handle = stop_after(llama, 1)
    with pytest.raises(KeyboardInterrupt):
        read_statistics(llama, Letters(), PAIRS, resume=tmp_path / "state", **OPTIONS)
    handle.remove()
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight.mul_(1.7)
    with pytest.raises(OptionError, match="a model whose weights or adapters have changed is another"):
        read_statistics(llama, Letters(), PAIRS, resume=tmp_path / "state", **OPTIONS)
