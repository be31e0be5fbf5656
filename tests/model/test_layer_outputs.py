import pytest
import torch
from transformers import CONFIG_MAPPING

from remote_code import WIDTH, remote_model
from rotalabs_steer import ActivationHook, ActivationInjector, extract_activations
from rotalabs_steer.errors import ArchitectureError
from rotalabs_steer.model.architectures import architecture_table
from rotalabs_steer.model.layer_outputs import ResidualLayout, first_tensor, with_first_tensor
from tiny import count_hooks, make_vector


def test_the_hidden_state_is_found_and_replaced_in_every_kind_of_output():
    old, new = torch.zeros(1), torch.ones(1)
    for output in (old, (old, "cache"), [old, "cache"]):
        assert first_tensor(output) is old
        replaced = with_first_tensor(output, new)
        assert type(replaced) is type(output)
        assert first_tensor(replaced) is new
        assert len(replaced) == len(output)
    with pytest.raises(ArchitectureError, match="A layer returned str"):
        first_tensor("nothing")


COLUMNS = {"all": slice(None), "first": slice(0, 1), "last": slice(-1, None)}


def added_by_hand(model, ids, vector, columns, sequence_first):
    """The logits with the vector at some columns, added by a hook that knows the layout."""
    selection = torch.zeros(ids.shape[1], 1)
    selection[columns] = 1.0

    def add(module, args, output):
        return output[0] + (selection[:, None] if sequence_first else selection) * vector.vector, output[1]

    handle = model.layers[1].register_forward_hook(add)
    try:
        with torch.no_grad():
            return model(ids).logits
    finally:
        handle.remove()


@pytest.mark.parametrize("layout", ["sequence_first", "batch_first"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (4, 4), (3, 5), (5, 2), (2, 2), (1, 1)])
def test_layers_of_remote_code_are_read_and_steered_at_the_right_tokens(layout, rows, columns):
    model = remote_model(layout)
    ids = torch.randint(3, 60, (rows, columns), generator=torch.Generator().manual_seed(1))
    vector = make_vector(model)
    for mode, chosen in COLUMNS.items():
        with ActivationInjector(model, [vector], injection_mode=mode), torch.no_grad():
            found = model(ids).logits
        torch.testing.assert_close(found, added_by_hand(model, ids, vector, chosen, layout == "sequence_first"))
    batch = extract_activations(model, {"input_ids": ids}, [1], token_position="all")[1]
    assert batch.shape == (rows, columns, WIDTH)
    for number, row in enumerate(ids):
        alone = extract_activations(model, {"input_ids": row[None]}, [1], token_position="all")[1]
        torch.testing.assert_close(batch[number], alone[0])
    assert count_hooks(model) == 0


def test_layers_of_transformers_are_known_without_running_the_model(llama):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    calls = []
    llama.register_forward_pre_hook(lambda *_: calls.append(1))
    for wrap in (lambda layer: layer, checkpoint_wrapper):
        llama.model.layers[0] = wrap(llama.model.layers[0])
        assert ResidualLayout.of(llama) == ResidualLayout("plain", 16)
    assert not calls
    assert ResidualLayout.of(remote_model("sequence_first")).kind == "sequence_first"
    assert ResidualLayout.of(remote_model("batch_first")).kind == "plain"
    assert ResidualLayout.of(remote_model("wants_more")).kind == "unknown"


def test_outputs_that_do_not_fit_the_call_are_refused_before_anything_is_read_or_steered():
    model, ids = remote_model("flat"), torch.randint(3, 60, (2, 3))
    message = r"A layer returned \[1, 6, 16\] for 2 rows of 3 tokens and a residual stream of width 16"
    with pytest.raises(ArchitectureError, match=message), ActivationHook(model, [1]):
        model(ids)
    with pytest.raises(ArchitectureError, match=message), ActivationInjector(model, [make_vector(model)]):
        model(ids)
    assert count_hooks(model) == 0


def test_a_layout_that_cannot_be_measured_comes_from_the_call_unless_it_is_square():
    model, vector = remote_model("wants_more"), make_vector(remote_model("batch_first"))
    plain = remote_model("batch_first")
    ids = torch.randint(3, 60, (2, 3))
    with ActivationInjector(model, [vector], injection_mode="last"), torch.no_grad():
        found = model(ids, wanted=1).logits
    torch.testing.assert_close(found, added_by_hand(plain, ids, vector, slice(-1, None), sequence_first=False))
    with (
        pytest.raises(ArchitectureError, match=r"for 3 rows of 3 tokens .*unknown layout.* more or fewer rows"),
        ActivationInjector(model, [vector], injection_mode="last"),
    ):
        model(torch.randint(3, 60, (3, 3)), wanted=1)


@pytest.mark.parametrize(("kind", "shape", "expected"), [
    ("plain", (2, 5, 8), (1, 2, 5)),
    ("plain", (2, 5, 24), (3, 2, 5)),
    ("plain", (2, 5, 4, 8), (4, 2, 5)),
    ("sequence_first", (5, 2, 8), (1, 2, 5)),
    ("streams_first", (4, 2, 5, 8), (4, 2, 5)),
    ("streams_in_sequence", (2, 15, 8), (3, 2, 5)),
    ("tokens_before", (2, 7, 8), (1, 2, 5)),
    ("padding_after", (2, 8, 8), (1, 2, 5)),
    ("last_columns", (2, 1, 8), (1, 2, 1)),
    ("patches", (2, 3, 8), (1, 2, 3)),
    ("unknown", (5, 2, 8), (1, 2, 5)),
    ("unknown", (2, 5, 8), (1, 2, 5)),
])  # fmt: skip
def test_every_layout_is_read_and_written_back(kind, shape, expected):
    layout, hidden = ResidualLayout(kind, 8), torch.randn(shape)
    streams = layout.streams(hidden, 2, 5)
    assert streams.shape == (*expected, 8)
    replaced = layout.replace(hidden, streams * 2)
    torch.testing.assert_close(layout.streams(replaced, 2, 5), streams * 2)
    assert int((replaced != hidden).sum()) == streams.numel(), "what is no token of the call stays as it was"


@pytest.mark.parametrize(("kind", "shape"), [
    ("plain", (5, 2, 8)),
    ("plain", (2, 4, 8)),
    ("plain", (2, 6, 8)),
    ("plain", (1, 5, 8)),
    ("plain", (2, 5, 12)),
    ("plain", (10, 8)),
    ("plain", (4, 2, 5, 8)),
    ("sequence_first", (2, 5, 8)),
    ("streams_first", (2, 5, 4, 8)),
    ("streams_in_sequence", (2, 14, 8)),
    ("tokens_before", (2, 4, 8)),
    ("padding_after", (2, 4, 8)),
    ("last_columns", (2, 6, 8)),
    ("unknown", (3, 5, 8)),
])  # fmt: skip
def test_shapes_that_a_layout_does_not_have_are_refused(kind, shape):
    with pytest.raises(ArchitectureError, match=r"for 2 rows of 5 tokens and a residual stream of width 8"):
        ResidualLayout(kind, 8).tokens(torch.randn(shape), 2, 5)


def test_the_hidden_state_of_prophetnet_is_its_first_stream():
    hidden = torch.randn(2, 15, 8)
    assert torch.equal(ResidualLayout("streams_in_sequence", 8).tokens(hidden, 2, 5), hidden[:, :5])


def test_the_table_names_model_types_that_there_are():
    table = architecture_table()
    assert set(table.layouts) | set(table.layer_paths) <= set(CONFIG_MAPPING)
    kinds = {"sequence_first", "streams_first", "streams_in_sequence", "tokens_before", "padding_after", "patches",
             "last_columns"}  # fmt: skip
    assert set(table.layouts.values()) == kinds
