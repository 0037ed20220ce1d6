"""Layers and optimizers give what PyTorch 2.13 gave: values, gradients, buffers, state dicts and reprs, eager and compiled."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.nn_cases import MODULES, OPTIMIZERS, lines, load, make, results, run, train

import torchlet as torch

RECORDED = load(Path(__file__).parent / "reference" / "nn.npz")
CASES = lines(MODULES)


def recorded(key: str) -> dict[str, Any]:
    """What was recorded of a case, by name."""
    return {k[len(key) + 3 :]: v for k, v in RECORDED.items() if k.startswith(key + " / ")}


def check(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(got) == set(expected) - {"repr", "state"}
    for name, value in got.items():
        scale = max(1.0, float(np.abs(expected[name]).max(initial=0)))
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)  # sums run in another order


@pytest.mark.parametrize("case", CASES, ids=" | ".join)
def test_layer_gives_what_pytorch_gave(case: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PyTorch warns of, these do too: lazy modules, old names
        module, x = make(torch, case)
        outs = run(torch, case, module, x)
    expected = recorded(" | ".join(case))
    check(results(outs, module, x), expected)
    assert repr(module) == expected["repr"]
    assert "\n".join(f"{k} {tuple(v.shape)}" for k, v in module.state_dict().items()) == expected["state"]


LONG = ("LSTM", "GRU", "RNN", "Transformer", "Multihead", "grid_sample", "CTCLoss")  # many kernels, or large ones
TO_COMPILE = [pytest.param(c, marks=[pytest.mark.slow] if any(name in "".join(c) for name in LONG) else []) for c in CASES]


@pytest.mark.parametrize("case", TO_COMPILE, ids=[" | ".join(c) for c in CASES])
def test_compiled_layer_gives_the_same(case: tuple[str, ...]) -> None:
    if "Lazy" in case[0]:
        pytest.skip("a lazy layer is an ordinary one after its first call")
    step = torch.compile(lambda module, x: run(torch, case, module, x))
    for _ in range(2):  # recorded and launched, then followed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module, x = make(torch, case)
            outs = step(module, x)
        check(results(outs, module, x), recorded(" | ".join(case)))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("expression", [e for (e,) in lines(OPTIMIZERS)])
def test_optimizer_goes_where_pytorch_went(expression: str, compiled: bool) -> None:
    if compiled and "LBFGS" in expression:
        pytest.skip("LBFGS decides in Python after each evaluation")
    # Muon computes in bfloat16; LBFGS makes more of each rounding
    rtol, atol = (2e-2, 2e-2) if "Muon" in expression else (1e-4, 2e-4) if "LBFGS" in expression else (1e-4, 1e-5)
    parameters = train(torch, expression, compiled=torch.compile if compiled else None)
    for got, (name, value) in zip(parameters, recorded(expression).items(), strict=True):
        np.testing.assert_allclose(got, value, rtol=rtol, atol=atol, err_msg=name)
