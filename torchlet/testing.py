"""torchlet.testing: assertions on tensors, with PyTorch's tolerances and messages, and random tensors for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.autograd import force
from torchlet.ops.public import FUNCTIONS
from torchlet.tensor import Tensor

__all__ = ["assert_allclose", "assert_close", "make_tensor"]

_TOLERANCES = {
    dtypes.float16: (1e-3, 1e-5),
    dtypes.bfloat16: (1.6e-2, 1e-5),
    dtypes.float32: (1.3e-6, 1e-5),
    dtypes.float64: (1e-7, 1e-7),
    dtypes.complex64: (1.3e-6, 1e-5),
    dtypes.complex128: (1e-7, 1e-7),
}


def _fail(text: str, where: str, msg: Any) -> AssertionError:
    text += f"\n\nThe failure occurred for item {where}" if where else ""
    return AssertionError(msg(text) if callable(msg) else msg or text)


def assert_close(
    actual: Any,
    expected: Any,
    *,
    allow_subclasses: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
    equal_nan: bool = False,
    check_device: bool = True,
    check_dtype: bool = True,
    check_layout: bool = True,
    check_stride: bool = False,
    msg: str | Callable[[str], str] | None = None,
) -> None:
    """Raise AssertionError unless |actual - expected| <= atol + rtol * |expected| everywhere.

    Takes tensors, arrays, numbers, and sequences or mappings of them. The tolerances follow the dtypes unless both are given.
    """
    if (rtol is None) != (atol is None):
        missing = "rtol" if rtol is None else "atol"
        raise ValueError(f"rtol and atol must both be specified or both be unspecified, but got no {missing}.")
    _compare(actual, expected, "", (rtol, atol, equal_nan, check_dtype, check_stride, msg))


def _compare(actual: Any, expected: Any, where: str, how: tuple[Any, ...]) -> None:
    rtol, atol, equal_nan, check_dtype, check_stride, msg = how
    if isinstance(actual, Mapping) and isinstance(expected, Mapping):
        if actual.keys() != expected.keys():
            raise _fail(
                "The keys of the mappings do not match:\nMissing keys in the actual mapping: "
                f"{sorted(expected.keys() - actual.keys())}\nAdditional keys in the actual mapping: "
                f"{sorted(actual.keys() - expected.keys())}",
                where,
                msg,
            )
        for key in actual:
            _compare(actual[key], expected[key], f"{where}[{key!r}]", how)
        return
    if isinstance(actual, Sequence) and isinstance(expected, Sequence) and not isinstance(actual, str):
        if len(actual) != len(expected):
            raise _fail(f"The length of the sequences mismatch: {len(actual)} != {len(expected)}", where, msg)
        for k, (a, b) in enumerate(zip(actual, expected, strict=True)):
            _compare(a, b, f"{where}[{k}]", how)
        return
    if actual is None or expected is None:
        if actual is not expected:
            raise _fail(f"None mismatch: {actual} is not {expected}", where, msg)
        return
    if not isinstance(actual, Tensor | np.ndarray | int | float | complex | np.generic):
        raise TypeError(f"No comparison pair was able to handle inputs of type {type(actual)} and {type(expected)}.")
    numbers = not isinstance(actual, Tensor | np.ndarray)
    what = "Scalars" if numbers else "Tensor-likes"
    a, b = (
        x if isinstance(x, Tensor) else FUNCTIONS["tensor"](x, dtype=dtypes.float64 if isinstance(x, float) else None)
        for x in (actual, expected)
    )
    if a.shape != b.shape:
        raise _fail(f"The values for attribute 'shape' do not match: {a.shape} != {b.shape}.", where, msg)
    if check_dtype and not numbers and a.dtype is not b.dtype:
        raise _fail(f"The values for attribute 'dtype' do not match: {a.dtype} != {b.dtype}.", where, msg)
    if check_stride and a.stride() != b.stride():
        raise _fail(f"The values for attribute 'stride()' do not match: {a.stride()} != {b.stride()}.", where, msg)
    if rtol is None:
        pairs = [_TOLERANCES.get(d, (0.0, 0.0)) for d in (a.dtype, b.dtype)]
        rtol, atol = max(p[0] for p in pairs), max(p[1] for p in pairs)
    common = dtypes.promote_types(dtypes.promote_types(a.dtype, b.dtype), dtypes.float64)
    x, y = (np.asarray(force(t)).astype(common.np) for t in (a, b))
    with np.errstate(all="ignore"):
        close = (
            (x == y) | ((np.abs(x - y) <= atol + rtol * np.abs(y)) & np.isfinite(y)) | (np.isnan(x) & np.isnan(y) if equal_nan else False)
        )
        if close.all():
            return
        difference = np.abs(x - y)
        relative = difference / np.abs(y)
    exact = rtol == atol == 0
    if numbers or not x.ndim:
        raise _fail(
            f"{what if numbers else 'Scalars'} are not {'equal' if exact else 'close'}!\n\nExpected {b.item()} but got {a.item()}.\n"
            f"Absolute difference: {difference.item()} (up to {atol} allowed)\nRelative difference: {relative.item()} "
            f"(up to {rtol} allowed)",
            where,
            msg,
        )
    bad = int((~close).sum())
    masked = np.where(close, 0, difference), np.where(close, 0, relative)
    at = [tuple(int(i) for i in np.unravel_index(np.nanargmax(np.nan_to_num(m, nan=np.inf)), m.shape)) for m in masked]
    lines = [f"Mismatched elements: {bad} / {x.size} ({bad / x.size:.1%})"]
    for name, m, i, limit in (("absolute", difference, at[0], atol), ("relative", relative, at[1], rtol)):
        lines.append(f"Greatest {name} difference: {m[i]} at index {i}" + ("" if exact else f" (up to {limit} allowed)"))
    raise _fail(f"{what} are not {'equal' if exact else 'close'}!\n\n" + "\n".join(lines), where, msg)


def assert_allclose(
    actual: Any, expected: Any, rtol: float | None = None, atol: float | None = None, equal_nan: bool = True, msg: str = ""
) -> None:
    """`assert_close` that does not look at dtypes."""
    assert_close(actual, expected, rtol=rtol, atol=atol, equal_nan=equal_nan, check_dtype=False, msg=msg or None)


def make_tensor(
    *shape: Any,
    dtype: dtypes.dtype,
    device: Any = "cpu",
    low: float | None = None,
    high: float | None = None,
    requires_grad: bool = False,
    noncontiguous: bool = False,
    exclude_zero: bool = False,
    memory_format: Any = None,
) -> Tensor:
    """A random tensor with values in [low, high), by default [-9, 9] ([0, 9] for uint8, both truths for bool)."""
    size = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    if dtype is dtypes.bool_:
        out = FUNCTIONS["randint"](0, 2, size).to(dtype)
    elif not dtype.has_gradient:
        out = FUNCTIONS["randint"](
            (0 if dtype is dtypes.uint8 else -9) if low is None else int(low), 10 if high is None else int(high), size, dtype=dtype
        )
    else:
        lowest, highest = -9.0 if low is None else low, 9.0 if high is None else high
        out = FUNCTIONS["rand"](size) * (highest - lowest) + lowest
        out = FUNCTIONS["complex"](out, FUNCTIONS["rand"](size)).to(dtype) if dtype.is_complex else out.to(dtype)
    if exclude_zero:
        out = FUNCTIONS["where"](out.eq(0), 1, out).to(dtype)
    if noncontiguous and out.numel() > 1:
        out = out.repeat_interleave(2, -1)[..., ::2]
    return out.requires_grad_(requires_grad)  # type: ignore[no-any-return]
