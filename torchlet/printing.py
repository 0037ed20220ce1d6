"""How a tensor reads in the terminal: PyTorch's layout, rounded, aligned, shortened in the middle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.tensor import Array

__all__ = ["set_printoptions", "tensor_text"]


class _Options:
    precision = 4
    threshold = 1000
    edgeitems = 3
    linewidth = 80
    sci_mode: bool | None = None


OPTIONS = _Options()
_PROFILES: dict[str, dict[str, Any]] = {
    "default": {"precision": 4, "threshold": 1000, "edgeitems": 3, "linewidth": 80},
    "short": {"precision": 2, "threshold": 1000, "edgeitems": 2, "linewidth": 80},
    "full": {"precision": 4, "threshold": 2**62, "edgeitems": 3, "linewidth": 80},
}


def set_printoptions(
    precision: int | None = None, threshold: float | None = None, edgeitems: int | None = None, linewidth: int | None = None,
    profile: str | None = None, sci_mode: bool | None = None,
) -> None:
    """Change how tensors are printed: digits, from how many elements on the middle is left out, elements kept at each edge."""
    changes = dict(_PROFILES[profile]) if profile is not None else {}
    given = {"precision": precision, "threshold": threshold, "edgeitems": edgeitems, "linewidth": linewidth}
    changes |= {name: value for name, value in given.items() if value is not None}
    for name, value in changes.items():
        setattr(OPTIONS, name, 2**62 if value == math.inf else int(value))
    OPTIONS.sci_mode = sci_mode


class _ComplexFormatter:
    """A width and a notation for the real parts, one for the imaginary parts."""

    def __init__(self, values: Array):
        self.real, self.imaginary = _Formatter(values.real, True), _Formatter(np.abs(values.imag), True)
        self.width = self.real.width + self.imaginary.width + 2

    def __call__(self, value: complex) -> str:
        sign = "-" if math.copysign(1.0, value.imag) < 0 else "+"
        return f"{self.real(value.real)}{sign}{self.imaginary(abs(value.imag))}j"


class _Formatter:
    """One width and one notation for all elements that are shown."""

    def __init__(self, values: Array, floating: bool):
        self.floating, self.whole, self.scientific, self.width = floating, True, False, 1
        flat = values.reshape(-1)
        if not floating:
            self.width = max((len(str(v)) for v in flat.tolist()), default=1)
            return
        flat = flat[np.isfinite(flat) & (flat != 0)]
        if not flat.size:
            return
        magnitude = np.abs(flat)
        low, high = float(magnitude.min()), float(magnitude.max())
        self.whole = bool((flat == np.ceil(flat)).all())
        spread = high / low > 1000 or high > 1e8
        self.scientific = spread or (low < 1e-4 and not self.whole) if OPTIONS.sci_mode is None else OPTIONS.sci_mode
        self.width = max(len(self._text(v)) for v in flat.tolist())

    def _text(self, value: Any) -> str:
        if not self.floating:
            return str(value)
        if self.scientific:
            return f"{value:.{OPTIONS.precision}e}"
        if self.whole:
            return f"{value:.0f}" + ("." if math.isfinite(value) else "")
        return f"{value:.{OPTIONS.precision}f}"

    def __call__(self, value: Any) -> str:
        return self._text(value).rjust(self.width)


def _edges(a: Array) -> Array:
    """The elements that a shortened print shows."""
    edge = OPTIONS.edgeitems
    for axis, n in enumerate(a.shape):
        if n > 2 * edge:
            a = np.take(a, [*range(edge), *range(n - edge, n)], axis)
    return a


def _body(a: Array, indent: int, shorten: bool, text: _Formatter | _ComplexFormatter) -> str:
    edge = OPTIONS.edgeitems
    cut = shorten and a.ndim > 0 and a.shape[0] > 2 * edge
    if a.ndim == 0:
        return text(a.tolist())
    if a.ndim == 1:
        items = [text(v) for v in (np.concatenate((a[:edge], a[-edge:])) if cut else a).tolist()]
        if cut:
            items.insert(edge, " ...")
        step = max(1, (OPTIONS.linewidth - indent) // (text.width + 2))
        lines = [", ".join(items[i : i + step]) for i in range(0, len(items), step)]
        return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"
    rows = [_body(row, indent + 1, shorten, text) for row in (np.concatenate((a[:edge], a[-edge:])) if cut else a)]
    if cut:
        rows.insert(edge, "...")
    return "[" + ("," + "\n" * (a.ndim - 1) + " " * (indent + 1)).join(rows) + "]"


def tensor_text(a: Array, dtype: dtypes.dtype, notes: list[str], prefix: str = "tensor(") -> str:
    """`tensor([…], dtype=…, notes…)` of an array; `notes` are device, requires_grad, grad_fn as they shall appear."""
    a = a.astype(np.float32) if dtype in (dtypes.bfloat16, dtypes.float16) else a
    indent = len(prefix)
    suffixes = []
    usual: tuple[dtypes.dtype, ...] = (
        dtypes.get_default_dtype(),
        dtypes.int64,
        dtypes.bool_,
        dtypes.complex_of(dtypes.get_default_dtype()),
    )
    if a.size == 0:
        text = "[]"
        if a.ndim != 1:
            suffixes.append(f"size=({', '.join(map(str, a.shape))})")
        usual = usual[:1]
    else:
        shorten = a.size > OPTIONS.threshold
        shown = _edges(a) if shorten else a
        text = _body(a, indent, shorten, _ComplexFormatter(shown) if dtype.is_complex else _Formatter(shown, dtype.is_floating_point))
    if dtype not in usual:
        suffixes.append(f"dtype={dtype}")
    out = prefix + text
    column = len(out) - out.rfind("\n") + 1
    for suffix in suffixes + notes:
        if column + len(suffix) + 2 > OPTIONS.linewidth:
            out += ",\n" + " " * indent + suffix
            column = indent + len(suffix)
        else:
            out += ", " + suffix
            column += len(suffix) + 2
    return out + ")"
