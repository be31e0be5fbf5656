import subprocess
import sys

import pytest

import rotalabs_steer
from rotalabs_steer import datasets, evaluation, extraction, judging, steering, tuning
from rotalabs_steer.integrations import langchain


@pytest.mark.parametrize(
    "module", [rotalabs_steer, datasets, evaluation, extraction, judging, langchain, steering, tuning]
)
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


def test_importing_the_package_takes_less_than_a_twentieth_of_a_second():
    # The processor's time is counted, so that other processes of the machine do not matter.
    code = "import time; start = time.process_time(); import rotalabs_steer; print(time.process_time() - start)"
    times = [float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(3)]
    assert min(times) < 0.05


def test_everything_that_steering_needs_comes_from_the_package():
    needed = {
        "AfterMarker", "Clamp", "LinearDecay", "NotSteeringWarning", "SteeredModel", "StopAfter", "TokenRange",
        "extract_vectors", "fit_condition", "load_pairs", "steer", "steering_of", "tune", "unsteered",
    }  # fmt: skip
    assert needed <= set(rotalabs_steer.__all__)
    assert rotalabs_steer.tune is evaluation.tune
    assert rotalabs_steer.load_pairs is datasets.load_pairs


def test_a_public_name_stays_what_it_is_when_the_modules_are_imported():
    code = (
        "import pkgutil, importlib, rotalabs_steer as rs\n"
        "for module in pkgutil.iter_modules(rs.__path__):\n"
        "    if not module.ispkg and module.name != '__main__':\n"
        "        importlib.import_module(f'rotalabs_steer.{module.name}')\n"
        "print([name for name in rs.__all__ if type(getattr(rs, name)).__name__ == 'module'])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
