"""Element types: names, NumPy counterparts, promotion rules."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

__all__ = [
    "dtype", "float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool_",
    "complex64", "complex128", "half", "float_", "double", "short", "int_", "long", "cfloat", "cdouble", "ALL", "FLOATS", "INTS",
    "finfo", "from_numpy", "of_scalar", "promote_types", "get_default_dtype", "set_default_dtype",
]


PACKAGE = "torchlet"  # how dtypes, sizes and tensor types name the package when printed; `compat` makes it the name the program imports


class dtype:
    """An element type. There is one object per type, so `is` compares.

    Attributes: `name` ("float32"), `np` (the NumPy dtype), `itemsize` (bytes), `category` (0 bool, 1 integer, 2 float, 3 complex),
    `has_gradient` (float or complex). NumPy knows bfloat16 through ml_dtypes, whose import takes longer than most of torchlet's: it
    waits until somebody asks for `bfloat16.np`.
    """

    __slots__ = ("name", "np", "itemsize", "category", "is_floating_point", "is_signed", "is_complex", "has_gradient")

    def __init__(self, name: str, np_type: type | None, category: int):
        self.name = name
        if np_type is not None:
            self.np = np.dtype(np_type)
        self.itemsize = 2 if np_type is None else self.np.itemsize
        self.category = category
        self.is_floating_point = category == 2
        self.is_signed = name not in ("uint8", "bool")
        self.is_complex = category == 3
        self.has_gradient = category >= 2

    def __getattr__(self, name: str) -> Any:  # of what `__init__` left out
        if name != "np":
            raise AttributeError(f"'dtype' object has no attribute '{name}'")
        self.np = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
        _FROM_NUMPY[self.np] = self
        return self.np

    def __repr__(self) -> str:
        return f"{PACKAGE}.{self.name}"

    def __reduce__(self) -> str:  # pickled by name, so that identity survives worker processes
        return {"bool": "bool_"}.get(self.name, self.name)


float16 = dtype("float16", np.float16, 2)
bfloat16 = dtype("bfloat16", None, 2)
float32 = dtype("float32", np.float32, 2)
float64 = dtype("float64", np.float64, 2)
int8 = dtype("int8", np.int8, 1)
int16 = dtype("int16", np.int16, 1)
int32 = dtype("int32", np.int32, 1)
int64 = dtype("int64", np.int64, 1)
uint8 = dtype("uint8", np.uint8, 1)
bool_ = dtype("bool", np.bool_, 0)
complex64 = dtype("complex64", np.complex64, 3)
complex128 = dtype("complex128", np.complex128, 3)
half, float_, double, short, int_, long = float16, float32, float64, int16, int32, int64
cfloat, cdouble = complex64, complex128

ALL = (float32, float64, float16, bfloat16, int8, int16, int32, int64, uint8, bool_, complex64, complex128)
FLOATS = (float16, bfloat16, float32, float64)
INTS = (uint8, int8, int16, int32, int64)
_FROM_NUMPY = {d.np: d for d in ALL if d is not bfloat16}
_default = float32


def from_numpy(np_dtype: np.dtype) -> dtype:
    """The torchlet dtype of a NumPy dtype. Raises TypeError where there is none (strings, objects, unsigned beyond 8 bits …)."""
    found = _FROM_NUMPY.get(np_dtype) or _FROM_NUMPY.get(np.dtype(np_dtype).newbyteorder("="))
    if found is None and "ml_dtypes" in sys.modules and np_dtype == bfloat16.np:
        return bfloat16
    if found is None:
        raise TypeError(
            f"can't convert a numpy array of type {np_dtype}; the supported types are: {', '.join(d.name for d in ALL)}"
        )
    return found


def get_default_dtype() -> dtype:
    """The dtype of new floating-point tensors (float32 unless `set_default_dtype` changed it)."""
    return _default


def set_default_dtype(d: dtype) -> None:
    """Make `d` the dtype of new floating-point tensors. Raises TypeError if it is not a floating-point dtype."""
    global _default
    if not (isinstance(d, dtype) and d.is_floating_point):
        raise TypeError(f"set_default_dtype: got {d}; expected a floating-point dtype")
    _default = d


def of_scalar(value: object) -> dtype:
    """The dtype that a Python number would have as a tensor: bool, int64, the default float dtype or its complex counterpart."""
    if isinstance(value, (bool, np.bool_)):
        return bool_
    if isinstance(value, complex):
        return complex_of(_default)
    return int64 if isinstance(value, (int, np.integer)) else _default


def finfo(d: dtype) -> Any:
    """NumPy's description of a floating-point dtype: `max`, `eps`, `smallest_normal` …"""
    return importlib.import_module("ml_dtypes").finfo(d.np) if d is bfloat16 else np.finfo(d.np)


def complex_of(real: dtype) -> dtype:
    """The complex dtype whose parts have this dtype (complex64 for 16-bit floats and integers)."""
    return complex128 if real in (float64, complex128) else complex64


def real_of(d: dtype) -> dtype:
    """The dtype of the parts of a complex dtype; any other dtype itself."""
    return {complex64: float32, complex128: float64}.get(d, d)


def _promote_pair(a: dtype, b: dtype) -> dtype:
    if a is b:
        return a
    if a.is_complex or b.is_complex:
        return complex128 if complex128 in (a, b) or float64 in (a, b) else complex64
    if a.category != b.category:
        return a if a.category > b.category else b
    if a.category == 2:
        if a.itemsize == b.itemsize:  # float16 with bfloat16
            return float32
        return a if a.itemsize > b.itemsize else b
    if a.is_signed == b.is_signed:
        return a if a.itemsize > b.itemsize else b
    signed = a if a.is_signed else b  # uint8 with a signed type: int8 cannot hold it
    return int16 if signed is int8 else signed


_PROMOTE = {(a, b): _promote_pair(a, b) for a in ALL for b in ALL}


def promote_types(a: dtype, b: dtype) -> dtype:
    """The smallest dtype that both convert to, by PyTorch's lattice (integers never widen floats)."""
    return _PROMOTE[a, b]
