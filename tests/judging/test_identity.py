"""Judges that score alike have one identity, in this process and in another; judges that do not have others."""

import dataclasses
import functools
import os
import re
import subprocess
import sys
import threading
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch

from rotalabs_steer.datasets import load_formality_pairs
from rotalabs_steer.errors import OptionError
from rotalabs_steer.judging.identity import judge_identity
from rotalabs_steer.judging.text_judge import TextJudge

WEIGHT = 1.0


def closing_over(word):
    return lambda texts: np.array([float(text.count(word)) for text in texts])


class Attribute:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, texts):
        return [self.weight] * len(texts)

    def score(self, texts):
        return [self.weight] * len(texts)

    @classmethod
    def of_class(cls, texts):
        return [2.0] * len(texts)


class Slots:
    __slots__ = ("weight",)

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, texts):
        return [self.weight] * len(texts)


@dataclasses.dataclass(frozen=True)
class Data:
    weight: float

    def __call__(self, texts):
        return [self.weight] * len(texts)


class Holding:
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, texts):
        return self.inner(texts)


def weighted(weight, texts):
    return [weight for _ in texts]


def array_with(weight):
    numbers = np.ones(5000)
    numbers[2500] = weight
    return numbers


def linear(weight):
    layer = torch.nn.Linear(2000, 1)
    with torch.no_grad():
        layer.weight.fill_(0.5)[0, 1000] = weight
        layer.bias.zero_()
    return layer


def default(weight):
    def judge(texts, by=weight, *, and_by=1.0):
        return [by * and_by for _ in texts]

    return judge


def nested(weight):
    def outer(texts):
        def inner(text):
            return weight * len(text)

        return list(map(inner, texts))

    return outer


def of_class(weight):
    class Judge:
        factor = weight

        def __call__(self, texts):
            return [self.factor for _ in texts]

    return Judge()


def remembered(weight):
    return functools.lru_cache(lambda text: weight * len(text))


KINDS = {
    "closure": lambda weight: closing_over(f"w{weight}"),
    "attribute": Attribute,
    "slots": Slots,
    "dataclass": Data,
    "bound method": lambda weight: Attribute(weight).score,
    "partial": lambda weight: functools.partial(weighted, weight),
    "held slots": lambda weight: Holding(Slots(weight)),
    "large array": lambda weight: Holding(array_with(weight)),
    "large tensor": lambda weight: Holding(torch.tensor(array_with(weight))),
    "array of objects": lambda weight: Holding(np.array([weight, "text"], dtype=object)),
    "layer": lambda weight: Holding(linear(weight)),
    "default": default,
    "nested function": nested,
    "attribute of a class": of_class,
    "pattern": lambda weight: Holding(re.compile(f"w{weight}")),
    "ordered dictionary": lambda weight: Holding(OrderedDict(weight=weight)),
    "set": lambda weight: Holding({"a", "b", weight}),
    "method of a builtin": lambda weight: Holding({1: weight}.get),
    "remembering function": lambda weight: Holding(remembered(weight)),
    "numbers of numpy": lambda weight: Holding(np.float64(weight)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_judges_are_told_apart_by_all_that_they_hold(kind):
    make = KINDS[kind]
    assert judge_identity(make(1.5)) == judge_identity(make(1.5))
    assert judge_identity(make(1.5)) != judge_identity(make(2.5))


def test_no_two_kinds_share_an_identity():
    judges = [None, *(make(1.5) for make in KINDS.values()), Attribute.of_class]
    judges += [
        lambda texts: np.zeros(len(texts)),
        lambda texts: np.ones(len(texts)),
        lambda texts: np.ones(len(texts)) - 1,
    ]
    assert len({judge_identity(judge) for judge in judges}) == len(judges)


def test_what_a_function_looks_up_in_its_module_counts(monkeypatch):
    def judge(texts):
        return [helper(text) for text in texts]

    before = judge_identity(judge)
    assert judge_identity(judge) == before
    monkeypatch.setitem(globals(), "WEIGHT", 2.0)
    assert judge_identity(judge) != before


def helper(text):
    return WEIGHT * len(text)


def test_a_function_that_has_the_name_of_a_builtin_counts(monkeypatch):
    def judge(texts):
        return [round(text) for text in texts]

    monkeypatch.setitem(globals(), "round", lambda text: 1.0)
    before = judge_identity(judge)
    monkeypatch.setitem(globals(), "round", lambda text: 2.0)
    assert judge_identity(judge) != before


def test_a_module_of_the_user_counts_by_its_file(monkeypatch, tmp_path):
    file = tmp_path / "own_measure.py"
    file.write_text("def score(text): return 1.0")
    module = types.ModuleType("own_measure")
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "own_measure", module)

    def judge(texts):
        return [module.score(text) for text in texts]

    before = judge_identity(judge)
    file.write_text("def score(text): return 2.0")
    assert judge_identity(judge) != before


def test_a_judge_that_refers_to_itself_has_an_identity():
    def judge(texts):
        return [1.0 + sum(judge(texts[1:]))] if texts else []

    held = Holding(None)
    held.inner = held
    assert judge_identity(judge) == judge_identity(judge)
    assert judge_identity(held) == judge_identity(held)


def test_a_learnt_judge_is_told_by_what_it_learnt():
    pairs = list(load_formality_pairs("train"))
    first, again, other = (TextJudge.fit(some) for some in (pairs, pairs, pairs[:30]))
    assert judge_identity(first) == judge_identity(again) != judge_identity(other)


@pytest.mark.parametrize("part", [threading.Lock(), (number for number in range(3)), torch.ones(2, device="meta")],
                         ids=["lock", "generator", "meta tensor"])  # fmt: skip
def test_what_has_no_content_to_read_needs_a_name(part):
    judge = Holding(Holding([part]))
    with pytest.raises(OptionError, match=r"cannot be told from other judges .* judge\.identity = "):
        judge_identity(judge)
    judge.identity = "one"
    named = judge_identity(judge)
    judge.identity = "two"
    assert judge_identity(judge) != named


def test_another_process_finds_the_same_identity(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import re, numpy as np\nfrom dataclasses import dataclass\nfrom torch import sqrt\nNAMES = {'b', 'a', 'c'}\n"
        "@dataclass\nclass Judge:\n    words: frozenset\n    numbers: np.ndarray\n"
        "    def __call__(self, texts): return [sqrt(len(NAMES)) + len(re.findall('a', text)) for text in texts]\n"
        "from rotalabs_steer.judging.identity import judge_identity\n"
        "print(judge_identity(Judge(frozenset('xyz'), np.arange(3))))"
    )
    found = {
        subprocess.run(
            [sys.executable, tmp_path / "mine.py"],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1
