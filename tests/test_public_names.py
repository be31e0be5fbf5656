import subprocess
import sys

import pytest

import rotalabs_steer
from rotalabs_steer import datasets, evaluation, extraction
from rotalabs_steer.integrations import langchain


@pytest.mark.parametrize("module", [rotalabs_steer, datasets, evaluation, extraction, langchain])
def test_every_public_name_can_be_imported(module):
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'SteeringWheel'"):
        rotalabs_steer.SteeringWheel  # noqa: B018


def test_dir_lists_the_public_names():
    assert set(dir(rotalabs_steer)) == set(rotalabs_steer.__all__)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, rotalabs_steer; print({'torch', 'transformers', 'numpy', 'tqdm'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
