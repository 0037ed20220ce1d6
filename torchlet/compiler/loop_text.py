"""Loop nests as text: `to_text` to be read, `to_python` to be run again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from torchlet import dtypes, expr
from torchlet.compiler.group import Grouped
from torchlet.compiler.loops import Dot, Kernel, Phase, Reduction, Store, data_terms, depends_on
from torchlet.compiler.simplify_loops import substitute_axes
from torchlet.expr import Expr, const_value, walk
from torchlet.index import Axis, FloorDiv, Index

__all__ = ["PRELUDE", "readable", "to_python", "to_text"]

PRELUDE = """\
from torchlet.compiler.group import Grouped
from torchlet.compiler.loops import Buffer, Dot, Kernel, Phase, Reduction, ScalarArg, Store
from torchlet.dtypes import bfloat16, bool_, float16, float32, float64, int8, int16, int32, int64, uint8
from torchlet.expr import const, expr
from torchlet.index import ZERO, Axis, FloorDiv, Mod, of
from torchlet.compiler.attention import Attention, Operand
from torchlet.compiler.recurrent import Recurrent
"""
"""The imports that the text of `to_python` needs."""

_PLAIN = frozenset(("const", "scalar", "value", "index", "arg"))  # read as well in place as under a name
_LONGEST = 110  # characters of an expression that stands in one line


def readable(kernel: Kernel) -> Kernel:
    """The kernel with axes named i, j, k, … (grid) and r, s, t, … (reduce): its text does not depend on what was compiled before."""
    new: dict[Axis, Axis | None] = {}
    for axes, letters in ((kernel.grid, "ijklmn"), ([a for p in kernel.phases for a in p.reduce], "rstuvw")):
        for number, a in enumerate(dict.fromkeys(a for a in axes if a not in new)):
            new[a] = Axis(letters[number] if number < len(letters) else f"{letters[0]}{number}", a.extent)
    return substitute_axes(kernel, new)


# ------------------------------------------------------------------------------------------------ to read


def to_text(kernel: Kernel) -> str:
    """The nest as loops and assignments. Values used twice get a name; `sum x = …` takes part in a reduction."""
    kernel = readable(kernel)
    parts = [f"{b.name}: {b.dtype.name}[{b.size}]" + ("" if b.role == "input" else f" {b.role}") for b in kernel.buffers]
    parts += [f"{s.name}: {s.dtype.name}" for s in kernel.scalars]
    lines = [f"kernel {kernel.name}({', '.join(parts)})" + (f"  # {', '.join(kernel.origin)}" if kernel.origin else "")]
    if kernel.body is not None:
        if isinstance(kernel.body, Grouped):
            lines += [f"    for each of {len(kernel.body.lengths)} members, of lengths {kernel.body.lengths}:", to_text(kernel.body.member)]
            return "\n".join(lines)
        return "\n".join([*lines, f"    {kernel.body}"]) + "\n"
    indent = "    "
    for a in kernel.grid:
        lines.append(f"{indent}for {a} < {a.extent}:")
        indent += "    "
    names = _counter("t")
    for phase in kernel.phases:
        nested = [s for s in phase.stores if _is_nested(s, phase)]
        inner = indent
        for a in phase.reduce:
            lines.append(f"{inner}for {a} < {a.extent}:")
            inner += "    "
        lines += _statements(phase.reductions, nested, inner, names)
        lines += _statements((), [s for s in phase.stores if s not in nested], indent, names)
    return "\n".join(lines) + "\n"


def _is_nested(s: Store, phase: Phase) -> bool:
    axes = frozenset(phase.reduce)
    return bool(axes & set(s.index.axes())) or depends_on(s.value, axes) or any(depends_on(t, axes) for t in data_terms(s.index))


def _statements(reductions: Iterable[Reduction | Dot], stores: Iterable[Store], indent: str, names: Iterator[str]) -> list[str]:
    reductions, stores = list(reductions), list(stores)
    roots = [x for r in reductions for x in ((r.a, r.b) if isinstance(r, Dot) else (r.value,))] + [s.value for s in stores]
    uses = Counter(a for e in walk(*roots) for a in e.args) + Counter(roots)
    memo: dict[Expr, Expr] = {}
    lines: list[str] = []
    for e in walk(*roots):
        new = expr.expr(e.op, tuple(memo[a] for a in e.args), e.dtype, e.attr)
        if e.op not in _PLAIN and (uses[e] > 1 or len(repr(new)) > _LONGEST):
            name = next(names)
            lines.append(f"{indent}{name} = {_bare(new)}")
            new = expr.expr("value", (), e.dtype, name)
        memo[e] = new
    for r in reductions:
        if isinstance(r, Dot):
            lines.append(f"{indent}dot {r.name} += {memo[r.a]} * {memo[r.b]}")
        else:
            lines.append(f"{indent}{r.combine} {r.name} = {_bare(memo[r.value])}")
    lines += [f"{indent}{s.buffer}[{s.index}] {'+=' if s.mode == 'add' else '='} {_bare(memo[s.value])}" for s in stores]
    return lines


def _bare(e: Expr) -> str:
    """The text of an expression without parentheses around all of it."""
    text = repr(e)
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0 and i < len(text) - 1:
            return text
    return text[1:-1] if text.startswith("(") else text


def _counter(letter: str) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"{letter}{number}"


# ------------------------------------------------------------------------------------------------ to run


def to_python(kernel: Kernel) -> str:
    """Statements that make the kernel again, with axes renamed by `readable`, under the name `kernel`. They need `PRELUDE`."""
    kernel = readable(kernel)
    body = repr(kernel.body) if kernel.body else ""
    before = ""
    if isinstance(kernel.body, Grouped):
        before = to_python(kernel.body.member).replace("kernel = Kernel(", "member = Kernel(")
        body = f"Grouped(member, {kernel.body.lengths!r})"
    lines = [f'{a} = Axis("{a.name}", {a.extent})' for a in dict.fromkeys([*kernel.grid, *(a for p in kernel.phases for a in p.reduce)])]
    names: dict[Expr, str] = {}
    fresh = _counter("e")

    def index(i: Index) -> str:
        parts = [f"{place(t)}" + ("" if c == 1 else f" * {c}") for t, c in i.terms]
        return " + ".join(parts + ([str(i.const)] if i.const else [])) if parts else f"ZERO + {i.const}" if i.const else "ZERO"

    def place(term: object) -> str:
        if isinstance(term, Axis):
            return f"of({term})"
        if isinstance(term, Expr):
            return f"of({text(term)})"
        kind = "FloorDiv" if isinstance(term, FloorDiv) else "Mod"
        return f"of({kind}({index(term.index)}, {term.divisor}))"  # type: ignore[attr-defined]

    def text(root: Expr) -> str:
        for e in walk(root):
            if e not in names:
                line = node(e)
                if e.op in ("const", "value", "scalar"):
                    names[e] = line
                else:
                    name = next(fresh)
                    lines.append(f"{name} = {line}")
                    names[e] = name
        return names[root]

    def node(e: Expr) -> str:
        kind = _dtype(e.dtype)
        if e.op == "const":
            value = const_value(e)
            return f"const({value!r}, {kind})" if value == value and abs(value) != float("inf") else f'const(float("{value}"), {kind})'
        args = _tuple([names[a] for a in e.args])
        if e.op == "load":
            return f'expr("load", {args}, {kind}, ("{e.attr[0]}", {index(e.attr[1])}))'  # type: ignore[index]
        if e.op == "index":
            return f'expr("index", (), {kind}, {index(e.attr)})'  # type: ignore[arg-type]
        return f'expr("{e.op}", {args}, {kind}' + ("" if e.attr is None else f", {e.attr!r}") + ")"

    phases = [_phase(p, text, index) for p in kernel.phases]
    buffers = [f'Buffer("{b.name}", {_dtype(b.dtype)}, {b.size}, "{b.role}")' for b in kernel.buffers]
    scalars = [f'ScalarArg("{s.name}", {_dtype(s.dtype)})' for s in kernel.scalars]
    lines.append("kernel = Kernel(")
    lines.append(f'    "{kernel.name}", {_tuple([str(a) for a in kernel.grid])},')
    for parts in (phases, buffers, scalars):
        lines += ["    (", *(f"        {p}," for p in parts), "    ),"] if parts else ["    (),"]
    lines += [f"    {tuple(kernel.origin)!r},", *([f"    {body},"] if body else []), ")"]
    return before + "\n".join(lines) + "\n"


def _phase(p: Phase, text: Callable[[Expr], str], index: Callable[[Index], str]) -> str:
    parts = []
    for r in p.reductions:
        if isinstance(r, Dot):
            groups = ", ".join(_tuple([str(a) for a in axes]) for axes in (r.batch, r.m, r.n, r.k))
            parts.append(f'Dot("{r.name}", {text(r.a)}, {text(r.b)}, {groups})')
        else:
            parts.append(f'Reduction("{r.name}", "{r.combine}", {text(r.value)})')
    stores = []
    for s in p.stores:
        for t in data_terms(s.index):
            text(t)
        stores.append(f'Store("{s.buffer}", {index(s.index)}, {text(s.value)}' + (f', "{s.mode}")' if s.mode != "set" else ")"))
    return f"Phase({_tuple([str(a) for a in p.reduce])}, {_tuple(parts)}, {_tuple(stores)})"


def _dtype(d: dtypes.dtype) -> str:
    return "bool_" if d is dtypes.bool_ else d.name


def _tuple(parts: list[str]) -> str:
    return "(" + ", ".join(parts) + ("," if len(parts) == 1 else "") + ")"
