"""Puts the repository root on sys.path, keeps torch to one thread, leaves out slow tests, runs the pipeline once."""

import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Tiny tensors gain nothing from many threads, and the scripts that the tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: left out unless -m asks for it (-m slow, or -m 'slow or not slow')")


def pytest_collection_modifyitems(config, items):
    """Without -m, slow tests are left out; a test that is named (file.py::test) runs, slow or not."""
    if config.option.markexpr or any("::" in argument for argument in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture(scope="session", autouse=True)
def quick_timing():
    """Scripts called in this process measure for a moment only. Scripts started by a test measure as usual."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformer.evaluation.SECONDS", 0.05)
        patch.setattr("transformer.evaluation.RESAMPLES", 20)
        yield


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """All scripts run in order on tiny data, a `pipeline.Pipeline`. Tests change a `copy` of it, never itself."""
    from pipeline import run_pipeline  # imports torch, for which the environment is set above

    return run_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def no_pictures():
    """No script called in this process draws. Most of the pipeline, and the tests of pictures, do."""
    import pipeline

    with pipeline.no_pictures():
        yield


@pytest.fixture
def copy(pipeline, tmp_path, no_pictures):
    """A copy of the finished pipeline's folder that a test may change, with the short augmented file."""
    from pipeline import shorten

    folder = shutil.copytree(pipeline.folder, tmp_path / "copy")
    shorten(folder / "glue" / "SST-2" / "train_aug.tsv", tmp_path / "whole")
    return folder
