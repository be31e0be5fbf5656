import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from extraction.test_caa import PAIRS, Letters
from rotalabs_steer.errors import OptionError, VectorError
from rotalabs_steer.extraction import METHODS, extract_vectors, read_statistics, register_method
from rotalabs_steer.extraction.methods import get_method
from rotalabs_steer.extraction.statistics import MOST_SAMPLES, LayerStatistics, PairSums
from rotalabs_steer.model.layer_outputs import first_tensor

HIDDEN, COUNT = 12, 300
SAMPLES = frozenset({"samples"})


def sides(seed=0):
    """Activations `[pairs, 2, hidden]` whose sides differ along the first axis, amid unequal noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(COUNT, 2, HIDDEN, generator=generator) * torch.linspace(0.3, 2.0, HIDDEN)
    noise[:, 0, 0] += 1.0
    noise[:, 1, 0] -= 1.0
    return noise + 0.5 * torch.randn(HIDDEN, generator=generator)


def statistics(activations) -> LayerStatistics:
    sums = PairSums(1, HIDDEN, len(activations), SAMPLES)
    for start in range(0, len(activations), 7):
        part = activations[start : start + 7]
        sums.add(list(range(start, start + len(part))), part[None])
    return sums.layer(0, 3)


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.double(), torch.as_tensor(b).double(), dim=0))


def test_means_and_samples_are_those_of_all_pairs():
    activations = sides()
    found = statistics(activations)
    torch.testing.assert_close(found.positive_mean, activations.double()[:, 0].mean(dim=0))
    torch.testing.assert_close(found.negative_mean, activations.double()[:, 1].mean(dim=0))
    assert torch.equal(found.samples, activations)


def test_samples_are_bounded_and_drawn_from_a_dataset_whatever_its_order():
    count = 4 * MOST_SAMPLES
    sums = PairSums(1, 1, count, SAMPLES)
    sums.add(list(range(count)), torch.arange(count, dtype=torch.float32).reshape(1, count, 1, 1).expand(1, -1, 2, 1))
    kept = sums.layer(0, 0).samples[:, 0, 0].long()
    assert len(set(kept.tolist())) == MOST_SAMPLES
    for period in (2, 3, 4):  # pairs of several kinds, in turn: every kind is there in its proportion
        shares = torch.bincount(kept % period) / MOST_SAMPLES
        torch.testing.assert_close(shares, torch.full((period,), 1 / period), atol=0.05, rtol=0)
    again = PairSums(1, 1, count, SAMPLES)
    assert again._kept == sums._kept


def test_no_method_keeps_a_matrix_of_the_width():
    hidden, pairs, places = 4096, 50, 4
    needs = frozenset().union(*(method.needs for method in METHODS.values()))
    kept = sum(tensor.nbytes for tensor in PairSums(places, hidden, pairs, needs).tensors.values())
    assert kept == places * hidden * (2 * 8 + 2 * 4 * pairs), "means in fp64, samples in fp32"
    assert kept < hidden * hidden * 8


@pytest.mark.parametrize("method", ["pca", "pca_differences", "lda"])
def test_few_pairs_in_a_wide_model_give_what_the_dense_matrices_give(method):
    activations = torch.randn(5, 2, 64, generator=torch.Generator().manual_seed(4)) + torch.randn(64) * 0.1
    sums = PairSums(1, 64, 5, SAMPLES)
    sums.add(list(range(5)), activations[None])
    rows = activations.double()
    difference = rows[:, 0] - rows[:, 1]
    centred = rows - rows.mean(dim=0)
    within = sum(centred[:, side].T @ centred[:, side] / 5 for side in (0, 1)) / 2
    shrunk = 0.9 * within + 0.1 * within.trace() / 64 * torch.eye(64, dtype=torch.float64)
    expected = {
        "pca": torch.linalg.eigh(difference.T @ difference).eigenvectors[:, -1],
        "pca_differences": torch.linalg.eigh(difference.T.cov(correction=0)).eigenvectors[:, -1],
        "lda": torch.linalg.solve(shrunk, difference.mean(dim=0)),
    }[method]
    assert abs(cosine(get_method(method).direction(sums.layer(0, 0)), expected)) > 1 - 1e-10


def test_copies_of_one_pair_have_no_principal_component(llama):
    copies = [{"positive": "ax", "negative": "bdx"}] * 3
    with pytest.raises(VectorError, match=r"Method 'pca_differences' finds no direction at layer 1 .*copies of one"):
        extract_vectors(llama, Letters(), copies, [1], method="pca_differences", show_progress=False)


def test_sides_without_any_spread_are_told_apart_by_their_means():
    activations = torch.tensor([[1.0, 2.0], [0.5, -1.0]]).expand(3, 2, 2)
    sums = PairSums(1, 2, 3, SAMPLES)
    sums.add([0, 1, 2], activations[None])
    for method in ("lda", "pca"):
        assert abs(cosine(get_method(method).direction(sums.layer(0, 0)), torch.tensor([0.5, 3.0]))) > 1 - 1e-10


def test_pca_is_that_of_sides_centred_pair_by_pair():
    activations = sides().double()
    centred = (activations - activations.mean(dim=1, keepdim=True)).flatten(0, 1)
    expected = torch.linalg.svd(centred).Vh[0]
    assert abs(cosine(get_method("pca").direction(statistics(activations)), expected)) > 0.9999


def test_pca_of_differences_leaves_out_what_they_share():
    activations = sides().double()
    difference = activations[:, 0] - activations[:, 1]
    expected = torch.linalg.svd(difference - difference.mean(dim=0)).Vh[0]
    direction = get_method("pca_differences").direction(statistics(activations))
    assert abs(cosine(direction, expected)) > 0.9999
    assert abs(float(direction[0])) < 0.1, "the axis along which the sides differ"


def test_lda_is_the_mean_difference_whitened():
    activations = sides().double()
    within = sum(np.cov(activations[:, side].T.numpy(), bias=True) for side in (0, 1)) / 2
    within = 0.9 * within + 0.1 * np.trace(within) / HIDDEN * np.eye(HIDDEN)
    difference = (activations[:, 0] - activations[:, 1]).mean(dim=0).numpy()
    assert cosine(get_method("lda").direction(statistics(activations)), np.linalg.solve(within, difference)) > 0.9999


def test_the_probe_is_scikit_learns():
    activations = sides().double()
    rows = activations.flatten(0, 1).numpy()
    labels = np.tile([1, 0], COUNT)
    centred = rows - rows.mean(axis=0)
    # ours: mean loss + 0.01 w²; theirs: C × sum of losses + w² / 2
    peer = LogisticRegression(C=1 / (2 * 0.01 * len(rows)), fit_intercept=False, tol=1e-8, max_iter=1000)
    expected = peer.fit(centred / centred.std(ddof=1), labels).coef_[0]
    assert cosine(get_method("logistic").direction(statistics(activations)), expected) > 0.999


def test_per_cost_methods_solve_with_the_fisher_information():
    scores = torch.randn(40, HIDDEN, generator=torch.Generator().manual_seed(1)).double()
    found = statistics(sides())
    found = LayerStatistics(3, COUNT, found.positive_mean, found.negative_mean, gradient=found.positive_mean,
                            fisher_scores=scores)  # fmt: skip
    fisher = scores.T @ scores / 40
    level = fisher.diagonal().mean() * torch.eye(HIDDEN, dtype=torch.float64)
    for method, vector, damping in (
        ("natural_gradient", found.gradient, 1),
        ("mean_difference_per_cost", found.mean_difference, 10),
    ):
        damped = fisher + damping * level
        torch.testing.assert_close(get_method(method).direction(found), torch.linalg.solve(damped, vector))


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_points_to_the_positive_side_at_the_same_length(llama, method):
    vectors = extract_vectors(
        llama, Letters(), PAIRS, [1, 3], method=method, token_position="mean", neutral_texts=["abc", "defgh"],
        show_progress=False,
    )  # fmt: skip
    plain = extract_vectors(llama, Letters(), PAIRS, [1, 3], token_position="mean", show_progress=False)
    for layer in (1, 3):
        assert vectors[layer].norm == pytest.approx(plain[layer].norm, rel=1e-5)
        assert float(vectors[layer].vector @ plain[layer].vector) > 0
    assert vectors[1].extraction_method == ("caa" if method == "mean_difference" else method)


def test_one_pass_serves_many_methods_positions_and_components(llama):
    calls = []
    handle = llama.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    read = {"methods": ["mean_difference", "pca", "lda"], "token_positions": ["last", "mean"],
            "components": ["residual", "mlp"]}  # fmt: skip
    everything = read_statistics(llama, Letters(), PAIRS, [2], **read, show_progress=False)
    assert len(calls) == 5, "a probe of three calls, one to find the parts, one batch"
    handle.remove()
    for position in ("last", "mean"):
        for component in ("residual", "mlp"):
            for method in read["methods"]:
                alone = extract_vectors(llama, Letters(), PAIRS, [2], method=method, token_position=position,
                                        component=component, show_progress=False)  # fmt: skip
                vector = everything.vectors(method, position, component)[2]
                torch.testing.assert_close(vector.vector, alone[2].vector)
                assert vector.metadata["component"] == component
    with pytest.raises(OptionError, match=r"at None were read; there are \['last', 'mean'\]"):
        everything.vectors()
    with pytest.raises(OptionError, match="needs gradient, not read: pass methods="):
        everything.vectors("gradient", "last")


def test_neutral_text_is_read_in_the_component_of_the_pairs(llama):
    options = {"methods": ["mean_centred"], "neutral_texts": ["abcd"], "show_progress": False}
    found = read_statistics(llama, Letters(), PAIRS, [1, 2], components=["residual", "mlp"], **options)
    outputs = {}
    parts = {("residual", 2): llama.model.layers[2], ("mlp", 2): llama.model.layers[2].mlp}
    handles = [
        part.register_forward_hook(lambda *call, place=place: outputs.update({place: first_tensor(call[2])}))
        for place, part in parts.items()
    ]
    with torch.no_grad():
        llama(torch.tensor([Letters()("abcd")["input_ids"]]))
    for handle in handles:
        handle.remove()
    for (component, layer), output in outputs.items():
        expected = output[0, 1:].mean(dim=0).double()
        torch.testing.assert_close(found.layers[component, "last"][layer].neutral_mean, expected, atol=1e-6, rtol=1e-5)


def test_what_to_read_may_be_a_generator_but_not_nothing(llama):
    found = read_statistics(llama, Letters(), PAIRS, [2], components=(c for c in ["mlp"]), show_progress=False)
    assert list(found.layers) == [("mlp", "last")]
    for name in ("methods", "components", "token_positions"):
        with pytest.raises(OptionError, match=f"{name} is empty; give at least one"):
            read_statistics(llama, Letters(), PAIRS, [2], **{name: []}, show_progress=False)
    with pytest.raises(OptionError, match="components is one string"):
        read_statistics(llama, Letters(), PAIRS, [2], components="mlp", show_progress=False)


def test_methods_can_be_added(llama):
    @register_method("tenfold")
    def tenfold(statistics):
        return 10 * statistics.mean_difference

    try:
        vectors = extract_vectors(llama, Letters(), PAIRS, [1], method="tenfold", show_progress=False)
        assert vectors[1].extraction_method == "tenfold"
        with pytest.raises(OptionError, match="There is a method 'tenfold' already"):
            register_method("tenfold")
        with pytest.raises(OptionError, match=r"Unknown needs \['gold'\].*samples"):
            register_method("eleven", needs=["gold"])
    finally:
        del METHODS["tenfold"]


def test_sides_that_do_not_differ_are_an_error(llama):
    same_end = [{"positive": "ax", "negative": "bx"}, {"positive": "cx", "negative": "dx"}]
    with pytest.raises(VectorError, match=r"do not differ at layer 1 \(residual, only_x\)"):

        def only_x(text):
            return [0]

        swapped = [*same_end, *({"positive": p["negative"], "negative": p["positive"]} for p in same_end)]
        extract_vectors(llama, Letters(), swapped, [1], token_position=only_x, show_progress=False)
