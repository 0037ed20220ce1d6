"""Values and gradients agree with what PyTorch 2.13 gave (tests/reference/record.py wrote them down)."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchlet

REFERENCE = Path(__file__).parent / "reference"
sys.path.insert(0, str(REFERENCE))
from cases import CASES  # noqa: E402  found in that folder
from record import evaluate  # noqa: E402

with np.load(REFERENCE / "values.npz") as _file:
    VALUES = dict(_file)


@pytest.mark.parametrize("name, function, arrays", [pytest.param(*c, id=c[0]) for c in CASES])
def test_values_and_gradients_are_pytorchs(name: str, function: Any, arrays: Any) -> None:
    got = evaluate(torchlet, function, arrays)
    expected = [VALUES[f"{name}|{k}"] for k in range(sum(key.rpartition("|")[0] == name for key in VALUES))]
    assert len(got) == len(expected)
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype, f"result {k}: {a.shape} {a.dtype}; expected {b.shape} {b.dtype}"
        if b.dtype.kind in "fc":
            tolerance = 1e-8 if b.dtype.itemsize >= 8 else 2e-6  # float64 through other orders of summation; float32 to a few units
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=f"result {k}")
        else:
            assert a.tolist() == b.tolist(), f"result {k}"
