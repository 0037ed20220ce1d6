"""Runs a dumped kernel or graph again on seeded inputs, checks it against NumPy or eager, and times it: what the dump's scripts call."""

from __future__ import annotations

import argparse
import ctypes
import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.autograd import no_grad
from torchlet.compiler import tile
from torchlet.compiler.codegen import triton
from torchlet.compiler.function import compile
from torchlet.compiler.interpret import interpret_kernel
from torchlet.compiler.load import LoadedKernel, load
from torchlet.compiler.loops import Kernel, ScalarArg
from torchlet.compiler.simplify_loops import map_kernel, substitute_axes
from torchlet.dtypes import dtype
from torchlet.index import Axis, of
from torchlet.op import OPS
from torchlet.runtime import cc, cpu, interpreter
from torchlet.tensor import Tensor, wrap

__all__ = ["draw", "graph_script", "kernel_script", "ops"]

Array = np.ndarray[Any, Any]
# the operators as `ops.exp(x)`, the spelling of the dumped graphs; in a graph every value is dense, so that any view of it is possible
ops = SimpleNamespace(**{**OPS, "view": lambda x, shape: OPS["view"](x.contiguous(), shape=shape)})

NEST = 1 << 22  # points of a nest that the interpreter holds at once
ROUNDING = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}  # of the largest magnitude in a buffer


# ------------------------------------------------------------------------------------------------ inputs


def draw(shape: Sequence[int] | int, d: dtype, rng: np.random.Generator, limit: int = 2, positive: bool = False) -> Array:
    """Random values: standard normal (or from 0.25 to 1.25), integers in [0, limit), fair coins."""
    if d is dtypes.bool_:
        return rng.random(shape) < 0.5
    if d.is_floating_point:
        return np.asarray(rng.random(shape) + 0.25 if positive else rng.standard_normal(shape)).astype(d.np)
    return rng.integers(0, max(limit, 1), shape).astype(d.np)


def _number(s: ScalarArg, given: Mapping[str, float]) -> float | int | bool:
    if s.name in given:
        return given[s.name]
    return True if s.dtype is dtypes.bool_ else 3 if s.dtype is dtypes.int64 else 0.5


# ------------------------------------------------------------------------------------------------ comparison


def _error(found: Array, expected: Array, d: dtype) -> tuple[float, float]:
    """(largest difference, what is allowed); equal infinities and NaNs agree."""
    if not d.is_floating_point:
        return float(np.count_nonzero(found != expected)), 0.0
    with np.errstate(all="ignore"):
        a, b = found.astype(np.float64), expected.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        difference = np.where(same, 0.0, np.abs(a - b))
        finite = np.abs(b[np.isfinite(b)])
    worst = float(np.max(difference, initial=0.0))
    return (math.inf if math.isnan(worst) else worst), TOLERANCE[d.name] * max(float(np.max(finite, initial=0.0)), 1e-3)


def _nudged(arrays: Sequence[Array]) -> list[Array]:
    """The inputs with every float moved by one rounding, up or down."""
    rng = np.random.default_rng(1)
    out = []
    for a in arrays:
        d = dtypes.from_numpy(a.dtype)
        if d.is_floating_point:
            sign = rng.integers(0, 2, a.shape) * 2 - 1
            a = (a.astype(np.float64) * (1 + sign * ROUNDING[d.name])).astype(a.dtype)
        out.append(a.copy())
    return out


def _compare(
    title: str, names: Sequence[str], found: Sequence[Array], expected: Sequence[Array], kinds: Sequence[dtype],
    nudged: Callable[[], Sequence[Array]],
) -> bool:
    """Print a line for each result. Beyond the tolerance, eight times what one rounding of the inputs (`nudged`) changes is allowed."""
    good, moved = True, None
    for i, (name, a, b, d) in enumerate(zip(names, found, expected, kinds, strict=True)):
        error, allowed = _error(a, b, d)
        if error > allowed and d.is_floating_point:
            moved = nudged() if moved is None else moved
            allowed = max(allowed, 8 * _error(moved[i], b, d)[0])
        good &= error <= allowed
        verdict = "ok   " if error <= allowed else "WRONG"
        print(f"{verdict} {title}: {name} {d.name}[{a.size}]: largest difference {error:.3g}, allowed {allowed:.3g}")
    return good


# ------------------------------------------------------------------------------------------------ a kernel


def kernel_script(kernel: Kernel, limits: Mapping[str, int], numbers: Mapping[str, float], in_c: bool = True) -> int:
    """The main program of a kernel's script: `--check` against NumPy, `--time`, `--triton`, `--source FILE`. Returns 0 when all agree.

    `limits`: integer buffers hold values below these; `numbers`: values of the kernel's scalars; `in_c`: False where Triton alone has it.
    """
    parser = argparse.ArgumentParser(description=f"Run the kernel {kernel.name} alone, on seeded inputs of its shapes.")
    parser.add_argument("--check", action="store_true", help="compare with the same loop nest run in NumPy (the default)")
    parser.add_argument("--time", action="store_true", help="the time of one run, and memory and arithmetic per second")
    parser.add_argument("--triton", action="store_true", help="run the Triton kernel too, in Triton's interpreter")
    parser.add_argument("--source", metavar="FILE", help="use this C file (an edited copy) instead of printing the kernel")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    values = [_number(s, numbers) for s in kernel.scalars]
    loaded = load([kernel])[0] if in_c else None
    if options.source and loaded is not None:
        loaded = replace(loaded, address=_address(Path(options.source), kernel.name))
    good = True
    if options.check or not options.time:
        for title, positive in (("normal inputs", False), ("positive inputs", True)):  # roots of normal numbers are mostly NaN
            good &= _check(kernel, loaded, values, _arrays(kernel, options.seed, limits, positive), title, options.triton)
    if options.time and loaded is not None:
        seconds = _time(kernel, loaded, values, _arrays(kernel, options.seed, limits, True))
        moved, work = tile.bytes_moved(kernel), tile.flops(kernel)
        rates = f"{moved / seconds / 1e9:.2f} GB/s, {work / seconds / 1e9:.2f} GFLOP/s"
        print(f"{kernel.name}: {seconds * 1e6:.2f} us, {rates}, {cpu.get_num_threads()} thread(s)")
    return 0 if good else 1


def _address(path: Path, name: str) -> int:
    text = '#include "tl_runtime.h"\n' + path.read_text()
    library, _ = cc.library("edited-" + hashlib.sha256((cc.fingerprint() + text).encode()).hexdigest()[:40], text)
    return ctypes.cast(getattr(ctypes.CDLL(str(library)), name), ctypes.c_void_p).value or 0


def _arrays(kernel: Kernel, seed: int, limits: Mapping[str, int], positive: bool) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [draw(max(b.size, 1), b.dtype, rng, limits.get(b.name, 10), positive)[: b.size] for b in kernel.buffers]


def _check(kernel: Kernel, loaded: LoadedKernel | None, numbers: list[Any], arrays: list[Array], title: str, with_triton: bool) -> bool:

    def interpreted(arrays: list[Array]) -> list[Array]:
        for part in _parts(kernel):
            interpret_kernel(part, arrays, numbers)
        return arrays

    expected = interpreted([a.copy() for a in arrays])
    written = [i for i, b in enumerate(kernel.buffers) if b.role != "input"]
    names, kinds = [kernel.buffers[i].name for i in written], [kernel.buffers[i].dtype for i in written]

    def compare(what: str, found: Sequence[Array]) -> bool:
        results = [found[i] for i in written], [expected[i] for i in written]
        return _compare(f"{what}, {title}", names, *results, kinds, lambda: [interpreted(_nudged(arrays))[i] for i in written])

    good = True
    if loaded is not None:
        found = [a.copy() for a in arrays]
        _launch(kernel, loaded, found, numbers).run()
        good = compare("C", found)
    if with_triton or loaded is None:
        found = [a.copy() for a in arrays]
        interpreter.run(triton.emit(kernel), found, numbers)
        good &= compare("Triton", found)
    return good


def _parts(kernel: Kernel) -> Iterator[Kernel]:
    """The kernel in pieces of the grid that are small enough for the interpreter; grid points do not depend on each other."""
    if kernel.body is not None:
        yield kernel
        return
    inner = max((math.prod(a.extent for a in p.reduce) for p in kernel.phases), default=1)
    if kernel.points * inner <= NEST or not kernel.grid:
        yield kernel
        return
    axis = max(kernel.grid, key=lambda a: a.extent)
    if axis.extent == 1:
        yield kernel
        return
    step = max(1, axis.extent * NEST // (kernel.points * inner))
    for start in range(0, axis.extent, step):
        part = Axis(f"{axis.name}_part", min(step, axis.extent - start))
        renamed = substitute_axes(replace(kernel, phases=()), {axis: part})
        place = of(part) + start
        moved = map_kernel(kernel, lambda e: None, lambda t, place=place: place if t == axis else None)  # type: ignore[misc]
        yield from _parts(replace(moved, grid=renamed.grid))


def _launch(kernel: Kernel, loaded: LoadedKernel, arrays: Sequence[Array], numbers: Sequence[Any]) -> cpu.Program:
    program = cpu.Program([(loaded, range(len(arrays)), range(len(numbers)))], len(arrays), len(numbers))
    for i, a in enumerate(arrays):
        program.pointers[i] = a.ctypes.data
    for i, (s, v) in enumerate(zip(kernel.scalars, numbers, strict=True)):
        program.scalars[i] = int(np.float64(v).view(np.int64)) if s.dtype.is_floating_point else int(v)
    return program


def _time(kernel: Kernel, loaded: LoadedKernel, numbers: Sequence[Any], arrays: list[Array]) -> float:
    """The least time of one run in seconds, of as many as fit in 0.3 s."""
    program = _launch(kernel, loaded, arrays, numbers)
    program.run()
    best, end = math.inf, time.perf_counter() + 0.3
    while time.perf_counter() < end:
        start = time.perf_counter()
        program.run()
        best = min(best, time.perf_counter() - start)
    return best


# ------------------------------------------------------------------------------------------------ a graph


def graph_script(functions: Sequence[tuple[Callable[..., Any], Sequence[tuple[Any, ...]], Sequence[Any], Sequence[str]]]) -> int:
    """The main program of `repro.py`: functions compiled against eager. Returns 0 when all agree.

    Each entry: a function, (shape, dtype, limit of integers) of its tensors, its numbers, names of its results.
    """
    good = True
    for function, tensors, numbers, names in functions:
        for positive in (False, True):
            rng = np.random.default_rng(0)
            arrays = [draw(shape, d, rng, limit, positive) for shape, d, limit in tensors]
            title = f"{function.__name__}, {'positive' if positive else 'normal'} inputs"
            expected = _results(function, arrays, numbers)
            found = _results(compile(function), arrays, numbers)
            kinds = [dtypes.from_numpy(a.dtype) for a in expected]
            good &= _compare(title, names, found, expected, kinds, functools.partial(_results, function, _nudged(arrays), numbers))
    return 0 if good else 1


def _results(function: Callable[..., Any], arrays: Sequence[Array], numbers: Sequence[Any]) -> list[Array]:
    with no_grad():
        results = function(*[wrap(a.copy()) for a in arrays], *numbers)
    return [t.numpy() if isinstance(t, Tensor) else np.asarray(t) for t in results]
