"""How programs are compared: run plainly and compiled, everything that can be observed side by side."""

from __future__ import annotations

import dataclasses
import itertools
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import torchlet as torch
import torchlet.nn as nn

Program = Callable[[Callable[..., Any]], Any]


def registry() -> tuple[dict[str, Program], Callable[[Program], Program]]:
    """(programs by name, decorator that enters one). A program is `f(compile)`: it builds state, compiles functions with `compile`,
    calls them, changes state in between, and returns everything that can be observed."""
    programs: dict[str, Program] = {}

    def program(f: Program) -> Program:
        assert f.__name__ not in programs, f"{f.__name__} is there already"
        programs[f.__name__] = f
        return f

    return programs, program


def compare(program: Program) -> None:
    """Assert that the program does the same plainly and compiled."""
    torch.manual_seed(0)
    expected = plain(program(lambda f=None, **options: f if f is not None else lambda g: g))
    torch.manual_seed(0)
    same(expected, plain(program(torch.compile)))


def plain(x: Any) -> Any:
    """Observations without tensors, so that they can be compared."""
    if isinstance(x, torch.Tensor):
        return ["tensor", str(tuple(x.shape)), x.stride(), x.dtype, x.requires_grad, x.detach().clone().numpy()]
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return plain(dataclasses.astuple(x))
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [plain(v) for v in x]
    return x


def same(a: Any, b: Any, where: str = "result") -> None:
    """Assert that two observations are equal, numbers up to rounding."""
    if isinstance(a, list):
        assert isinstance(b, list) and len(a) == len(b), f"{where}: {a} != {b}"
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    elif isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys(), where
        for k in a:
            same(a[k], b[k], f"{where}[{k!r}]")
    elif isinstance(a, np.ndarray):
        assert a.shape == b.shape and a.dtype == b.dtype, where
        # fused kernels add in another order than NumPy and use other polynomials: a few float32 ulps
        wide = complex if a.dtype.kind == "c" else float
        np.testing.assert_allclose(a.astype(wide), b.astype(wide), rtol=3e-5, atol=3e-6, err_msg=where)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=3e-5, abs=3e-6, nan_ok=True), where
    else:
        assert a == b, f"{where}: {a!r} != {b!r}"


def catch(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a call does when it may fail: its result, or the class and text of its exception."""
    try:
        return f(*args, **kwargs)
    except Exception as error:
        return [type(error).__name__, str(error)]


def randn(*shape: int, seed: int = 0, grad: bool = False) -> Any:
    """Normal numbers that depend on the seed alone."""
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), requires_grad=grad)


def mlp(seed: int = 0, sizes: tuple[int, ...] = (6, 8, 3)) -> Any:
    """Linear layers with tanh between."""
    torch.manual_seed(seed)
    layers: list[Any] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def state(model: Any) -> dict[str, Any]:
    """Parameters, buffers and gradients of a module."""
    return {k: v.clone() for k, v in model.state_dict().items()} | {
        f"grad.{k}": (None if p.grad is None else p.grad.clone()) for k, p in model.named_parameters()
    }


def attempt(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """As `catch`, for every exception, with the lines of the program that it came through."""
    try:
        return f(*args, **kwargs)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        return [type(error).__name__, str(error), [f.lineno for f in frames if "/capture/test_" in f.filename]]


def ramp(*shape: int, r: bool = False, k: int = 0, dt: Any = None) -> Any:
    """Numbers between -1 and 1 that depend on `k` alone; `r`: they require grad."""
    t = torch.tensor(((np.arange(int(np.prod(shape))) * 7 + k) % 11 / 5 - 1).astype(np.float32).reshape(shape), dtype=dt)
    return t.requires_grad_(True) if r else t


def filled(module: Any, k: int = 0) -> Any:
    """The module, its parameters filled with numbers that depend on `k` alone."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(ramp(*p.shape, k=k + i) * 0.5)
    return module


def trained(module: Any) -> Any:
    """Parameters with their gradients, and buffers."""
    parameters = [(n, p.detach().clone(), None if p.grad is None else p.grad.clone()) for n, p in module.named_parameters()]
    return [parameters, [(n, b.clone()) for n, b in module.named_buffers()]]


def optimizer_state(optimizer: Any) -> Any:
    """The numbers of its groups, and what it keeps of each parameter."""
    numbers = ("lr", "momentum", "weight_decay", "betas", "initial_lr")
    out: list[Any] = []
    for group in optimizer.param_groups:
        out.append({k: v for k, v in sorted(group.items()) if k in numbers})
        for p in group["params"]:
            kept = optimizer.state.get(p, {})
            out.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in sorted(kept.items())})
    return out
