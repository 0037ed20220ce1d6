"""Scalar expressions as data: what one element of a result is computed from.

An operator's lowering is written with these (`ops/`), the loop IR holds them (`compiler/loops.py`), every target prints
them, and `evaluate` runs them on NumPy arrays. Nodes are interned: structurally equal expressions are the same object.

Grammar (op: args; attr)
    const            -                              attr: Python number
    load             [mask [, other]]               attr: (buffer name, Index)      other: value where the mask is false
    index            -                              attr: Index                     an int64 made from axes
    scalar           -                              attr: name of a scalar argument (a Python number of this call)
    value            -                              attr: name of a reduction or dot result of the same kernel
    arg              -                              attr: position of the operator's input (in the op table only)
    cast             x                              dtype of the node is the target
    neg abs sign exp expm1 log log1p log2 sqrt rsqrt sin cos tan asin acos atan sinh cosh tanh erf sigmoid
    floor ceil round trunc isnan isinf not reciprocal                                x
    add sub mul div floordiv mod fmod pow maximum minimum atan2 and or xor lshift rshift eq ne lt le gt ge     x y
    where            condition x y
    philox           seed offset index              attr: lane 0..3; uint32 bits held in an int64
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator

from torchlet import dtypes
from torchlet.dtypes import dtype

COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
PREDICATES = frozenset(("isnan", "isinf", "not")) | COMPARISONS


class Expr:
    """One node; build it with `expr`, `const` or Python's operators, never directly."""

    __slots__ = ("op", "args", "dtype", "attr", "__weakref__")

    def __init__(self, op: str, args: tuple[Expr, ...], dtype: dtype, attr: Hashable = None):
        self.op, self.args, self.dtype, self.attr = op, args, dtype, attr

    def __add__(self, other: Operand) -> Expr:
        return call("add", self, other)

    def __radd__(self, other: Operand) -> Expr:
        return call("add", other, self)

    def __sub__(self, other: Operand) -> Expr:
        return call("sub", self, other)

    def __rsub__(self, other: Operand) -> Expr:
        return call("sub", other, self)

    def __mul__(self, other: Operand) -> Expr:
        return call("mul", self, other)

    def __rmul__(self, other: Operand) -> Expr:
        return call("mul", other, self)

    def __truediv__(self, other: Operand) -> Expr:
        return call("div", self, other)

    def __rtruediv__(self, other: Operand) -> Expr:
        return call("div", other, self)

    def __and__(self, other: Operand) -> Expr:
        return call("and", self, other)

    def __rand__(self, other: Operand) -> Expr:
        return call("and", other, self)

    def __or__(self, other: Operand) -> Expr:
        return call("or", self, other)

    def __ror__(self, other: Operand) -> Expr:
        return call("or", other, self)

    def __neg__(self) -> Expr:
        return call("neg", self)

    def __invert__(self) -> Expr:
        return call("not", self)

    def __gt__(self, other: Operand) -> Expr:
        return call("gt", self, other)

    def __lt__(self, other: Operand) -> Expr:
        return call("lt", self, other)

    def __ge__(self, other: Operand) -> Expr:
        return call("ge", self, other)

    def __le__(self, other: Operand) -> Expr:
        return call("le", self, other)

    def eq(self, other: Operand) -> Expr:
        """`self == other` as an expression (Python's `==` compares identity here)."""
        return call("eq", self, other)

    def __repr__(self) -> str:
        return to_text(self)


Operand = Expr | int | float | bool
_INTERNED: weakref.WeakValueDictionary[tuple[Hashable, ...], Expr] = weakref.WeakValueDictionary()


def expr(op: str, args: tuple[Expr, ...], dtype: dtype, attr: Hashable = None) -> Expr:
    """The one Expr with these parts."""
    key = (op, args, dtype, attr.__class__, attr)
    found = _INTERNED.get(key)
    if found is None:
        found = _INTERNED[key] = Expr(op, args, dtype, attr)
    return found


def const(value: int | float | bool, dtype: dtype) -> Expr:
    """A number. −0.0 and 0.0 are kept apart by their text."""
    if dtype.is_floating_point:
        value = float(value)
        return expr("const", (), dtype, repr(value))
    return expr("const", (), dtype, bool(value) if dtype is dtypes.bool_ else int(value))


def const_value(e: Expr) -> int | float | bool:
    """The number in a `const` node."""
    return float(e.attr) if isinstance(e.attr, str) else e.attr  # type: ignore[return-value]


def call(op: str, *operands: Operand) -> Expr:
    """Apply `op`; Python numbers take the dtype of the expressions beside them, which must agree among themselves."""
    kinds = [o.dtype for o in (operands[1:] if op == "where" else operands) if isinstance(o, Expr)]
    common = kinds[0] if kinds else dtypes.float32
    args = tuple(o if isinstance(o, Expr) else const(o, common) for o in operands)
    assert all(k is common for k in kinds), f"{op}: mixed dtypes {kinds}"
    return expr(op, args, dtypes.bool_ if op in PREDICATES else common)


def cast(x: Expr, to: dtype) -> Expr:
    """`x` converted to `to`; no node where it has that dtype already."""
    if x.dtype is to:
        return x
    return const(const_value(x), to) if x.op == "const" and _exact(const_value(x), to) else expr("cast", (x,), to)


def _exact(value: int | float | bool, to: dtype) -> bool:
    return to in (dtypes.float32, dtypes.float64) or (to.category == 1 and float(value).is_integer() and abs(value) < 100)


def where(condition: Expr, x: Operand, y: Operand) -> Expr:
    """`x` where `condition` holds, else `y`."""
    return call("where", condition, x, y)


def walk(*roots: Expr) -> Iterator[Expr]:
    """Every distinct node below the roots, arguments before users."""
    seen: set[Expr] = set()
    stack: list[Expr | tuple[Expr]] = [*roots[::-1]]
    while stack:
        e = stack.pop()
        if isinstance(e, tuple):  # its arguments have been given
            yield e[0]
        elif e not in seen:
            seen.add(e)
            if e.args:
                stack.append((e,))
                stack += e.args[::-1]
            else:
                yield e


def rewrite(root: Expr, rule: Callable[[Expr], Expr | None], memo: dict[Expr, Expr] | None = None) -> Expr:
    """Rebuild bottom-up; `rule(node with new args)` gives the replacement or None to keep it."""
    memo = {} if memo is None else memo
    for e in walk(root):
        if e in memo:
            continue
        args = tuple(memo[a] for a in e.args)
        new = e if args == e.args else expr(e.op, args, e.dtype, e.attr)
        replaced = rule(new)
        memo[e] = new if replaced is None else replaced
    return memo[root]


_SYMBOLS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "and": "&",
    "or": "|",
}


def to_text(e: Expr) -> str:
    """A one-line reading of the expression."""
    a = [to_text(x) for x in e.args]
    if e.op in _SYMBOLS:
        return f"({a[0]} {_SYMBOLS[e.op]} {a[1]})"
    if e.op in ("const", "scalar", "value"):
        return str(e.attr)
    if e.op == "arg":
        return f"arg{e.attr}"
    if e.op == "load":
        place: tuple[str, object] = e.attr  # type: ignore[assignment]
        return f"{place[0]}[{place[1]}]" + (f" if {a[0]} else {a[1] if len(a) > 1 else 0}" if a else "")
    if e.op == "index":
        return f"({e.attr})"
    if e.op == "cast":
        return f"{e.dtype.name}({a[0]})"
    return f"{e.op}({', '.join(a)})"
