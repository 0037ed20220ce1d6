"""What every test gets: fixed seeds, a compile cache of its own, golden texts."""

import difflib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# Before torchlet is imported: nothing is written to the user's cache, and worker processes, those of pytest-xdist too, share the
# folder of this run.
os.environ["TORCHLET_CACHE_DIR"] = CACHE = (
    os.environ["TORCHLET_CACHE_DIR"] if "PYTEST_XDIST_WORKER" in os.environ else tempfile.mkdtemp(prefix="torchlet-tests-")
)

import torchlet

# The same examples in every run; no limit on their time, for a compile takes longer than an example may.
hypothesis.settings.register_profile("torchlet", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("torchlet")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="rewrite the golden texts with what the tests produce")


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torchlet.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def seeds() -> Iterator[None]:
    """Every test starts from the same random numbers, and in eager, recording mode."""
    random.seed(0)
    np.random.seed(0)
    torchlet.manual_seed(0)
    yield
    assert torchlet.is_grad_enabled(), "the test left gradients switched off"
    assert torchlet.get_default_dtype() is torchlet.float32, "the test left another default dtype"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`golden(text)` compares with tests/golden/<name of the test>.txt; `pytest --accept` rewrites that file."""
    path = GOLDEN / f"{request.node.name}.txt"

    def check(text: str) -> None:
        if request.config.getoption("--accept"):
            GOLDEN.mkdir(exist_ok=True)
            path.write_text(text)
        expected = path.read_text() if path.exists() else ""
        if text != expected:
            diff = difflib.unified_diff(expected.splitlines(), text.splitlines(), str(path), "now", lineterm="")
            pytest.fail("\n".join([*diff, "accept with: pytest --accept"]), pytrace=False)

    return check
