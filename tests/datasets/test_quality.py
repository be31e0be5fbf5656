import builtins
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotalabs_steer.datasets import ContrastPair, check_pairs, persona_pairs, quality
from rotalabs_steer.datasets.bag_of_words import measure_bag_of_words
from rotalabs_steer.datasets.overlap import overlapping_rows, split_words
from rotalabs_steer.errors import DatasetError, MissingDependencyError, SteeringWarning

WORDS = [f"word{number}" for number in range(500)]


def random_text(chance, words=12):
    return " ".join(chance.choices(WORDS, k=words))


def random_pairs(count, seed=0, positive="", categories=10, **fields):
    chance = random.Random(seed)
    return [
        ContrastPair(
            f"{random_text(chance)} {positive}",
            random_text(chance),
            prompt=random_text(chance),
            category=f"c{n % categories}" if categories else "",
            **fields,
        )
        for n in range(count)
    ]


def findings(report, measure):
    return [(finding.rows, finding.reason) for finding in report.findings if finding.measure == measure]


def test_pairs_without_fault_have_no_findings():
    report = check_pairs(random_pairs(60))
    assert report.findings == ()
    assert (report.pairs, len(report.categories), report.splits) == (60, 10, {})
    assert report.length_ratio == pytest.approx(1.0)
    assert (report.positive_length, report.length_unit) == (12.0, "words")
    assert report.bag_of_words.low < 0.5 < report.bag_of_words.high


def test_a_word_that_gives_the_side_away_is_found_and_can_be_a_marker():
    pairs = random_pairs(40, positive="indeed")
    report = check_pairs(pairs)
    assert report.bag_of_words.accuracy == 1.0
    assert report.bag_of_words.positive_words[0] == "indeed"
    ((rows, reason),) = findings(report, "words")
    assert len(rows) == 5
    assert "single words tell the sides apart with accuracy 1.00 (0.91 to 1.00, 40 pairs)" in reason
    assert "positive: indeed," in reason
    for marker in ("indeed", "Inde*", "*deed"):
        assert check_pairs(pairs, markers=[marker]).bag_of_words.accuracy < 0.75
    assert check_pairs(pairs, markers=["deed", "in"]).bag_of_words.accuracy == 1.0


def test_a_wildcard_takes_contractions_and_phrases_go_first():
    pairs = random_pairs(40, positive="it’s not")
    assert check_pairs(pairs).bag_of_words.accuracy == 1.0
    assert check_pairs(pairs, markers=["*'s"]).bag_of_words.accuracy == 1.0  # "not" is left
    assert check_pairs(pairs, markers=["*'s not", "*'s"]).bag_of_words.accuracy < 0.75


def test_training_and_tested_pairs_are_kept_apart():
    split = [*random_pairs(20, metadata={"split": "train"}), *random_pairs(10, 1, metadata={"split": "test"})]
    bag = measure_bag_of_words(split)
    assert (bag.trained_pairs, bag.tested_pairs) == (20, 10)
    assert bag.method == "trained on the train split, tested on the test split"
    assert measure_bag_of_words(random_pairs(30)).method == "5-fold cross-validation by category"
    assert measure_bag_of_words(random_pairs(30, categories=2)).method == "2-fold cross-validation by category"
    assert measure_bag_of_words(random_pairs(30, categories=0)).method == "5-fold cross-validation by pair"
    # A word for each category: learnt from the category's own pairs it would tell the sides apart.
    pairs = [ContrastPair(f"{p.positive} mark{p.category}", p.negative, category=p.category) for p in random_pairs(300)]
    assert measure_bag_of_words(pairs).accuracy < 0.75
    by_pair = [ContrastPair(pair.positive, pair.negative) for pair in pairs]
    assert measure_bag_of_words(by_pair).accuracy > 0.8


def test_too_few_pairs_are_not_measured():
    report = check_pairs(random_pairs(9, positive="indeed"))
    assert report.bag_of_words is None
    assert findings(report, "words") == []


def test_pairs_without_words_besides_the_markers_are_not_measured():
    pairs = [ContrastPair("Yes.", "No.")] * 12
    assert check_pairs(pairs).bag_of_words.accuracy == 1.0
    assert check_pairs(pairs, markers=["yes", "no"]).bag_of_words is None
    assert check_pairs([ContrastPair("😀", "😢")] * 12).bag_of_words is None


def test_lengths():
    pairs = [*random_pairs(20), ContrastPair("long " * 200, "short one")]
    report = check_pairs(pairs, rows=range(101, 122))
    ((rows, reason),) = findings(report, "length")
    assert report.length_ratio > 1.25
    assert 121 in rows
    assert f"positive responses have {report.length_ratio:.2f} times the words of negative ones, 0.8 to 1.25" in reason
    swapped = [ContrastPair(pair.negative, pair.positive) for pair in pairs]
    ((rows, reason),) = findings(check_pairs(swapped), "length")
    assert 21 in rows


@pytest.mark.real_model
def test_lengths_in_tokens(tokenizer):
    report = check_pairs([ContrastPair("antidisestablishmentarianism", "yes")], tokenizer)
    assert report.length_unit == "tokens"
    assert report.positive_length == len(tokenizer("antidisestablishmentarianism")["input_ids"]) > 1
    assert report.negative_length == 1


def test_repeated_prompts_and_responses_are_named():
    pairs = random_pairs(30)
    again = ContrastPair(pairs[4].positive, pairs[4].negative, prompt="Hello", category="c1")
    other = ContrastPair(
        "Anything at all would do here.", "Something else, then.", prompt=pairs[7].prompt, category="c1"
    )
    report = check_pairs([*pairs, again, other, ContrastPair("p", "n", prompt="hello!", category="c2")])
    assert [rows for rows, _ in findings(report, "responses")] == [(5, 31)]
    assert [rows for rows, _ in findings(report, "prompts")] == [(8, 32), (31, 33)]
    assert "their prompts share 100% of their word 4-grams, at most 60% is good" in findings(report, "prompts")[0][1]


def test_categories():
    report = check_pairs(random_pairs(20, categories=3))
    assert findings(report, "categories") == [
        ((), "3 categories, at least 8 are good: with few topics the vector learns the topics.")
    ]
    pairs = random_pairs(20)
    pairs[0].metadata["split"] = "train"
    pairs[10].metadata["split"] = "test"
    ((rows, reason),) = findings(check_pairs(pairs), "categories")
    assert rows == (1, 11)
    assert "category 'c0' is in the splits test, train" in reason


def test_personas_without_responses_have_prompts_only():
    report = check_pairs(persona_pairs(["Who are you?", "Plan my day.", "Plan my day!"], "Bold.", "Shy."))
    assert report.length_ratio is None
    assert report.bag_of_words is None
    assert [(finding.measure, finding.rows) for finding in report.findings] == [("prompts", (2, 3))]


def test_no_pairs():
    with pytest.raises(DatasetError, match="There are no pairs to check"):
        check_pairs([])


def test_without_scikit_learn_the_install_line_is_shown(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="sklearn")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match=r"needs the package 'sklearn'.*rotalabs-steer\[quality\]"):
        check_pairs(random_pairs(20))


def test_importing_datasets_does_not_import_scikit_learn():
    code = "import sys, rotalabs_steer.datasets; print(sorted({'sklearn', 'scipy', 'torch'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def grams_by_hand(texts, pad):
    grams = set()
    for text in texts:
        words = split_words(text)
        words += [""] * (4 - len(words)) if pad and words else []
        grams |= {tuple(words[start : start + 4]) for start in range(len(words) - 3)}
    return grams


short_texts = st.lists(st.sampled_from("abc"), max_size=9).map(" ".join)


@given(st.lists(st.lists(short_texts, max_size=2), max_size=10), st.booleans(), st.sampled_from([0, 60, 90]))
def test_overlaps_are_those_that_comparing_all_pairs_gives(rows, pad, percent):
    grams = [grams_by_hand(texts, pad) for texts in rows]
    shares = {
        (low, high): len(grams[low] & grams[high]) / min(len(grams[low]), len(grams[high]))
        for high in range(len(rows))
        for low in range(high)
        if grams[low] and grams[high]
    }
    over = {pair: share for pair, share in shares.items() if 100 * share > percent + 1e-9}
    found = overlapping_rows(rows, percent, pad)
    assert {row for group in found for row in group.rows} == {row for pair in over for row in pair}
    for group in found:
        inside = [share for pair, share in over.items() if set(pair) <= set(group.rows)]
        assert group.share == pytest.approx(max(inside))


def test_rows_from_a_template_are_told_from_copies():
    chance = random.Random(0)
    rows = [("one and the same prompt every time",)] * 40 + [(random_text(chance),) for _ in range(40)]
    rows += [("here are five words more " + random_text(chance, 20),) for _ in range(40)]
    (group,) = overlapping_rows(rows, 60)
    assert (group.rows, group.share) == (tuple(range(40)), 1.0)
    rows[100] = (rows[110][0] + " end",)
    assert [found.rows for found in overlapping_rows(rows, 60)] == [tuple(range(40)), (100, 110)]


def test_a_warning_says_how_many_pairs_are_compared(monkeypatch):
    monkeypatch.setattr(quality, "MOST_COMPARED_ROWS", 20)
    pairs = random_pairs(20)
    with pytest.warns(SteeringWarning, match="the first 20 of 22 pairs only. Check the others in parts"):
        report = check_pairs([*pairs, pairs[0], pairs[0]])
    assert report.findings == ()
    ((rows, _),) = findings(check_pairs([pairs[0], *pairs[:19]]), "responses")
    assert rows == (1, 2)


def test_shared_words_are_counted_in_unicode_and_with_either_apostrophe():
    assert split_words("Don’t naïve-ly стоп, web_search!") == ["don't", "naïve", "ly", "стоп", "web_search"]
    assert overlapping_rows([], 60) == []
