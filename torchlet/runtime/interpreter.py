"""Runs Triton source on NumPy arrays with Triton's interpreter, repaired for bfloat16 and made fast enough for tests.

Nothing stays patched after a run, so that the same process can also compile. One run at a time (a lock sees to it).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import triton.experimental.gluon.nvidia.hopper  # noqa: F401 - copies names of tl when first imported, so before they are patched
import triton.language as tl
import triton.runtime.interpreter as stock
from triton.runtime.jit import JITFunction

from torchlet.kernels import source

if TYPE_CHECKING:
    from torchlet.compiler.codegen.triton import TritonKernel
    from torchlet.runtime.cuda import TensorMap

_LOCK = threading.Lock()
_INTERPRETED: dict[JITFunction, stock.InterpretedFunction] = {}
_POINTED = {
    "*fp16": (tl.float16, "float16"),
    "*bf16": (tl.bfloat16, "bfloat16"),
    "*fp32": (tl.float32, "float32"),
    "*fp64": (tl.float64, "float64"),
    "*i8": (tl.int8, "int8"),
    "*i16": (tl.int16, "int16"),
    "*i32": (tl.int32, "int32"),
    "*i64": (tl.int64, "int64"),
    "*u8": (tl.uint8, "uint8"),
}
_SCALARS = {"fp32": tl.float32, "fp64": tl.float64, "i32": tl.int32, "i64": tl.int64}


def run(kernel: TritonKernel, arrays: Sequence[np.ndarray], scalars: Sequence[float | int | bool] = ()) -> None:
    """Run the kernel in place on contiguous arrays, in the order of its pointer arguments. bool arrays stand for `*u8`.

    Raises TypeError where an array's dtype is not the signature's, ValueError where it is not contiguous.
    """
    names = source.load(kernel.source)
    if kernel.table is not None:
        held = arrays  # they must outlive the run
        arrays, scalars = [kernel.table([a.ctypes.data for a in held], scalars)], ()
    kinds = kernel.types
    pointers = [_pointer(a, k) for a, k in zip(arrays, kinds[: len(arrays)], strict=True)]
    numbers = [_scalar(s, k) for s, k in zip(scalars, kinds[len(arrays) :], strict=True)]
    with _LOCK, _interpreted_language(), np.errstate(all="ignore"):
        maps = [_descriptor(pointers[m.buffer], m, kernel.signature[name]) for name, m in kernel.maps.items()]
        sizes = [_scalar(n, kernel.signature[name]) for name, n in kernel.sizes.items()]
        arguments = [*pointers, *numbers, *sizes, *maps, *kernel.constexprs.values()]
        function = _interpreted(names[kernel.name]).rewrite()
        with _replaced(function.__globals__, {n: _interpreted(v) for n, v in names.items() if isinstance(v, JITFunction)}):
            stock.interpreter_builder.set_grid_dim(*kernel.grid)
            for position in product(*map(range, kernel.grid)):
                stock.interpreter_builder.set_grid_idx(*position)
                function(*arguments)


def _pointer(array: np.ndarray, kind: str) -> tl.tensor:
    pointed, dtype = _POINTED[kind]
    name = "uint8" if array.dtype == np.bool_ else array.dtype.name
    if name != dtype:
        raise TypeError(f"interpreter: array of {array.dtype}; the signature has {kind}")
    if not array.flags.c_contiguous:
        raise ValueError("interpreter: the array is not contiguous")
    return _tensor(np.array([array.ctypes.data], np.uint64), tl.pointer_type(pointed))


def _descriptor(pointer: tl.tensor, m: TensorMap, kind: str) -> Any:
    """What a tensor map is to the interpreter. `kind`: the argument's type, "tensordesc<bf16[128, 64]>"."""
    block = [tl.constexpr(int(n)) for n in kind[kind.index("[") + 1 : kind.index("]")].split(",")]
    start = pointer.handle.data + np.uint64(m.start * pointer.dtype.element_ty.primitive_bitwidth // 8)
    strides = [_scalar(s, "i64") for s in m.strides[:-1]]
    return stock.interpreter_semantic.make_tensor_descriptor(
        _tensor(start, pointer.dtype), [_scalar(n, "i32") for n in m.shape], [*strides, tl.constexpr(1)], block, "zero"
    )


def _scalar(value: float | int | bool, kind: str) -> tl.tensor:
    dtype = _SCALARS[kind]
    return _tensor(np.array([value], stock._get_np_dtype(dtype)), dtype)


def _tensor(data: np.ndarray, dtype: Any, shape: Sequence[int] | None = None) -> tl.tensor:
    return tl.tensor(stock.TensorHandle(data, dtype), tl.block_type(dtype, list(shape)) if shape else dtype)


def _interpreted(function: JITFunction) -> stock.InterpretedFunction:
    found = _INTERPRETED.get(function)
    if found is None:
        found = _INTERPRETED[function] = stock.InterpretedFunction(function.fn)
    return found


@contextmanager
def _replaced(names: dict[str, Any], new: dict[str, Any]) -> Iterator[None]:
    old = {n: names[n] for n in new}
    names.update(new)
    try:
        yield
    finally:
        names.update(old)


@contextmanager
def _interpreted_language() -> Iterator[None]:
    """`triton.language` as the interpreter needs it: jit functions interpreted, builtins bound to the repaired builder."""
    scope = stock._LangPatchScope()
    try:
        for module in (tl, tl.standard, tl.core, tl.math, tl.random):
            for name, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    scope.set_attr(module, name, _interpreted(value))
        # one patch for the run; the stock code patches again in every nested call, and leaves it
        scope.set_attr(stock.InterpretedFunction, "__call__", lambda self, *a, **k: self.rewrite()(*a, **k))
        for name, repair in _repairs().items():
            scope.set_attr(stock.InterpreterBuilder, name, repair)
        scope.set_attr(stock.ReduceOps, "generic_reduce", _generic_reduce)
        for module in (tl, tl.core):
            stock._patch_builtin(module, stock.interpreter_builder, scope)
            stock._patch_lang_core(module, scope)
        stock._patch_builtin(tl.tensor, stock.interpreter_builder, scope)
        stock._patch_builtin(tl.math, stock.interpreter_builder, scope)
        stock._patch_lang_tensor(tl.tensor, scope)
        stock._patch_builtin(tl.core.tensor_descriptor_base, stock.interpreter_builder, scope)
        scope.set_attr(tl.tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))  # for Triton 3.6 with NumPy >= 2.4
        yield
    finally:
        scope.restore()


# ---- repairs ---------------------------------------------------------------------------------------------------------------------


def _rounded(data: np.ndarray) -> np.ndarray:
    """float32 as bits of bfloat16, rounded to the nearest even; the stock interpreter truncates."""
    return np.ascontiguousarray(data, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)


def _single(handle: stock.TensorHandle) -> stock.TensorHandle:
    """A bfloat16 handle as float32; others unchanged. The stock interpreter computes with the bits."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return stock.TensorHandle(np.ascontiguousarray(handle.data).view(ml_dtypes.bfloat16).astype(np.float32), tl.float32)


def _repairs() -> dict[str, Callable[..., Any]]:
    builder = stock.InterpreterBuilder
    dot, convert = builder.create_dot, builder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, _single(a), _single(b), *rest)

    def cast_impl(self: Any, src: Any, to: Any) -> Any:
        if to.scalar == tl.bfloat16 and src.dtype.scalar != tl.bfloat16:
            return stock.TensorHandle(_rounded(src.data), tl.bfloat16)
        return (
            convert(self, src, to)
            if src.dtype.scalar != tl.bfloat16
            else convert(self, _single(src), to)
            if to.scalar != tl.bfloat16
            else src
        )

    def binary(original: Callable[..., Any]) -> Callable[..., Any]:
        def compute(self: Any, x: Any, y: Any) -> Any:
            if x.dtype.scalar != tl.bfloat16:
                return original(self, x, y)
            return cast_impl(self, original(self, _single(x), _single(y)), tl.bfloat16)

        return compute

    def comparison(original: Callable[..., Any]) -> Callable[..., Any]:
        # the stock result says it has the operands' dtype, which turns a scalar one into numbers when it is broadcast
        return lambda self, x, y: stock.TensorHandle(original(self, _single(x), _single(y)).data, tl.int1)

    found: dict[str, Callable[..., Any]] = {"create_dot": create_dot, "cast_impl": cast_impl}
    for name in ("create_fp_ext", "create_fp_trunc", "create_si_to_fp", "create_ui_to_fp", "create_fp_to_si", "create_fp_to_ui"):
        found[name] = lambda self, src, to: cast_impl(self, src, to)
    arithmetic = (
        "create_fadd",
        "create_fsub",
        "create_fmul",
        "create_fdiv",
        "create_maximumf",
        "create_maxnumf",
        "create_minimumf",
        "create_minnumf",
    )
    for name in dir(builder):
        if name in arithmetic:
            found[name] = binary(getattr(builder, name))
        elif name.startswith(("create_fcmp", "create_icmp")):
            found[name] = comparison(getattr(builder, name))
    return found


def _generic_reduce(self: Any, inputs: tuple[tl.tensor, ...]) -> list[tl.tensor]:
    """A reduction with any combine function, pairs of neighbours at a time; the stock one calls it for every element."""
    axis = 0 if self.axis is None else self.axis
    kinds = [x.dtype for x in inputs]
    data = [x.handle.data.reshape(-1) if self.axis is None else x.handle.data for x in inputs]
    while (n := data[0].shape[axis]) > 1:
        sides = [[d[(slice(None),) * axis + (slice(start, n, 2),)] for d in data] for start in (0, 1)]
        parts = [_tensor(d, k, d.shape) for side in sides for d, k in zip(side, kinds, strict=True)]
        combined = self.combine_fn(*parts)
        data = [c.handle.data for c in (combined if isinstance(combined, tuple | tl.tuple) else (combined,))]
    if not self.keep_dims:
        data = [np.squeeze(d, axis) for d in data]
    return [self.to_tensor(d if d.ndim else d.item(), k) for d, k in zip(data, kinds, strict=True)]
