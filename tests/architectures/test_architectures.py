"""Every text-generating architecture in transformers: found, read, steered, restored, cached and padded right."""

from __future__ import annotations

import pytest
import torch

from architectures.checks import CHECKS, NotApplicable, Subject
from architectures.table import PAGE, architectures_in
from architectures.tiny_instances import ARCHITECTURES, DRAFTS, build


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost more than they bring on matrices this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")  # of transformers about tiny configurations
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_architecture(architecture):
    if architecture.model_type in DRAFTS:
        pytest.skip("drafts for a target model and does not run without it")
    subject = Subject(build(architecture))
    failures = []
    for name, check in CHECKS.items():
        try:
            check(subject)
        except NotApplicable:
            pass
        except Exception as error:  # all checks are reported at once
            failures.append(f"{name}: {error}")
    assert not failures, "\n".join(failures)


def test_the_table_names_the_architectures_that_there_are():
    assert architectures_in(PAGE.read_text()) == [(a.group, a.model_type, a.class_name) for a in ARCHITECTURES]
