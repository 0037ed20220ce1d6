"""Prints nested C loops: names for buffers and axes, each expression at the outermost loop where all it depends on is known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchlet import dtypes
from torchlet.compiler.codegen import c_expr
from torchlet.compiler.generalize import SIZES
from torchlet.compiler.loops import Kernel, Store, data_terms, depends_on
from torchlet.expr import Expr, expr, walk
from torchlet.index import Axis, FloorDiv, Index, Mod

__all__ = ["Scopes", "identifier", "index_exprs", "may_vectorize", "positions", "separates", "strides", "walk_all"]

# C's words, and the names that printed functions use themselves
_RESERVED = frozenset(
    re.findall(
        r"\w+",
        """auto break case char const continue default do double else enum extern float for goto if inline int long register restrict
        return short signed sizeof static struct switch typedef union unsigned void volatile while
        b s tid nth lo hi ib jb je q flip once chunk thread env t ld dst rs ks row0 row1 col0 col1 z every g ways chosen streams""",
    )
)


def identifier(name: str) -> str:
    """`name` as a C identifier."""
    text = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
    return text + "_" if text in _RESERVED or text[0].isdigit() else text


@dataclass(slots=True)
class _Scope:
    """The body of one loop: its lines so far and what has a name in it."""

    header: tuple[str, ...]
    axes: frozenset[Axis]
    lines: list[str] = field(default_factory=list)
    names: dict[Expr, str] = field(default_factory=dict)


class Scopes:
    """Nested C loops being printed; an expression lands in the outermost loop where all it depends on is known.

    `shared`: the text is to have the same words for all sizes, so that only its numbers differ (see generalize.py).
    """

    def __init__(self, kernel: Kernel, shared: bool = False):
        self.kernel, self.shared = kernel, shared
        self.buffers = {b.name: b for b in kernel.buffers}
        taken: set[str] = set()
        self.pointer = {b.name: self._unique(b.name, taken, f"_{i}") for i, b in enumerate(kernel.buffers)}
        self.scalar = {a.name: self._unique(a.name, taken, f"_s{i}") for i, a in enumerate(kernel.scalars)}
        axes = dict.fromkeys([*kernel.grid, *(a for p in kernel.phases for a in p.reduce)])
        self.axis: dict[object, str] = {a: self._unique(a.name, taken, "") for a in axes}
        self.taken = taken
        self.values: dict[str, tuple[str, Axis | int]] = {}  # reduction results: text, and the axis or the scope they belong to
        self.uses: Counter[Expr] = Counter()
        self.scopes = [_Scope((), frozenset())]
        self._levels: dict[Expr, int] = {}
        self._depth = 0  # the scope that the expression being printed is for; 0: the innermost
        self.named = 0

    def _unique(self, name: str, taken: set[str], suffix: str) -> str:
        base = text = identifier(name) + suffix
        number = 0
        while text in taken:
            number += 1
            text = f"{base}_{number}"
        taken.add(text)
        return text

    def fresh(self, stem: str) -> str:
        """A new C name."""
        return self._unique(stem, self.taken, "")

    def line(self, text: str) -> None:
        """A statement in the innermost loop."""
        self.scopes[-1].lines.append(text)

    def open(self, *header: str, axes: Iterable[Axis] = ()) -> None:
        """Begin a loop or block; the last header line gets the brace."""
        self.scopes.append(_Scope(header, frozenset(axes)))
        self._levels.clear()

    def close(self) -> None:
        """End the innermost loop."""
        done = self.scopes.pop()
        self.scopes[-1].lines += [*done.header[:-1], f"{done.header[-1]} {{".lstrip(), *("    " + x for x in done.lines), "}"]
        self._levels.clear()

    def close_to(self, depth: int) -> None:
        """End loops until `depth` of them are open."""
        while len(self.scopes) > depth:
            self.close()

    def loop(self, axis: Axis, low: str = "0", high: str | None = None, simd: str | None = None) -> None:
        """Begin `for axis in [low, high)`; `simd` holds the clauses of the pragma."""
        i = self.axis[axis]
        head = f"for (int64_t {i} = {low}; {i} < {axis.extent if high is None else high}; {i}++)"
        self.open(*([f"#pragma omp simd{simd}"] if simd is not None else []), head, axes=(axis,))

    def declare_arguments(self) -> None:
        """The kernel's pointers and scalars as locals."""
        if self.shared:
            self.line(SIZES)
        written = {s.buffer for p in self.kernel.phases for s in p.stores}
        for i, b in enumerate(self.kernel.buffers):
            kind = c_expr.MEMORY[b.dtype]
            const = "" if b.name in written else "const "
            self.line(f"{const}{kind} *restrict {self.pointer[b.name]} = ({const}{kind} *)b[{i}];")
        for i, a in enumerate(self.kernel.scalars):
            value = f"tl_double(s[{i}])" if a.dtype is dtypes.float64 else f"s[{i}]"
            self.line(f"const {c_expr.VALUE[a.dtype]} {self.scalar[a.name]} = {value};")

    def count(self, roots: Iterable[Expr]) -> None:
        """Note how often each expression below the roots is used, so that what is used twice gets a name."""
        roots = list(roots)
        self.uses = Counter(roots)
        for e in walk_all(roots):
            self.uses.update(e.args)
            self.uses.update(positions(e))

    def level(self, e: Expr) -> int:
        """The number of the outermost scope where `e` can be computed."""
        found = self._levels.get(e)
        if found is None:
            named = [n for n, scope in enumerate(self.scopes) if e in scope.names]
            if named:
                found = named[-1]
            elif e.op == "value":
                where = self.values[e.attr][1]  # type: ignore[index]
                found = where if isinstance(where, int) else self._axis_level(where)
            else:
                parts = [self.level(x) for x in (*e.args, *positions(e))]
                if e.op in ("load", "index"):
                    parts += [self._axis_level(a) for a in (e.attr[1] if e.op == "load" else e.attr).axes()]  # type: ignore[index,union-attr]
                found = max(parts, default=1)  # scope 0 is the file, 1 the function
            self._levels[e] = found
        return found

    def _axis_level(self, axis: Axis) -> int:
        return next((n for n, scope in enumerate(self.scopes) if axis in scope.axes), 1)

    def ref(self, e: Expr, named: bool = False) -> str:
        """The C text of `e` in the innermost loop; declares names on the way where that saves work."""
        for scope in reversed(self.scopes):
            if e in scope.names:
                return scope.names[e]
        level, depth = self.level(e), self._depth or len(self.scopes) - 1
        named = named or self.uses[e] > 1 or level < depth
        outside, self._depth = self._depth, level if named else depth  # what is named farther out takes its arguments along
        text = self._text(e)
        self._depth = outside
        if not named or text.isidentifier() or e.op in ("const", "index", "value"):
            return text
        self.named += 1
        name = self.fresh(f"t{self.named}")
        plain = text[1:-1] if _wrapped(text) else text
        self.scopes[level].lines.append(f"const {c_expr.VALUE[e.dtype]} {name} = {plain};")
        self.scopes[level].names[e] = name
        return name

    def _text(self, e: Expr) -> str:
        if e.op == "const":
            return c_expr.constant(e.attr if not isinstance(e.attr, str) else float(e.attr), e.dtype)  # type: ignore[arg-type]
        if e.op == "scalar":
            declared = next(a.dtype for a in self.kernel.scalars if a.name == e.attr)
            return c_expr.convert(self.scalar[e.attr], declared, e.dtype)  # type: ignore[index]
        if e.op == "value":
            return self.values[e.attr][0]  # type: ignore[index]
        if e.op == "index":
            return c_expr.convert(self.position(e.attr), dtypes.int64, e.dtype)  # type: ignore[arg-type]
        if e.op == "load":
            return self._load(e)
        if (
            e.op == "div"
            and e.dtype.is_floating_point
            and self.level(e.args[1]) < (self._depth or len(self.scopes) - 1)
            and any(x.op == "value" for x in walk(e.args[1]))
        ):
            # one division for all of the loop; what a reduction gave is rounded anyway
            inverse = expr("reciprocal", (e.args[1],), e.dtype)
            return f"({self.ref(e.args[0])} * {self.ref(inverse, named=True)})"
        return c_expr.operation(e, [self.ref(x, named=e.op == "pow" and x.op not in ("const", "value")) for x in e.args])

    def _load(self, e: Expr) -> str:
        name: str = e.attr[0]  # type: ignore[index]
        index: Index = e.attr[1]  # type: ignore[index]
        buffer = self.buffers[name]
        at = self.position(index, top=True)
        if any(True for _ in data_terms(index)):
            at = f"tl_check({at}, {buffer.size})"
        text = c_expr.convert(c_expr.from_memory(f"{self.pointer[name]}[{at}]", buffer.dtype), buffer.dtype, e.dtype)
        if not e.args:
            return text
        other = self.ref(e.args[1]) if len(e.args) > 1 else c_expr.constant(0, e.dtype)
        return f"({self.ref(e.args[0])} ? {text} : {other})"

    def position(self, index: Index, top: bool = False) -> str:
        """The C text of an index."""
        parts = []
        terms: Iterable[tuple[Any, int]] = index.terms
        if self.shared:  # an index has its terms in the order of their factors, which depends on sizes
            terms = sorted(terms, key=lambda entry: re.sub(r"\b\d+", "", self.axis.get(entry[0]) or f"~{entry[0]}"))
        for term, c in terms:
            text = self._term(term)
            parts.append(text if c == 1 else f"{text} * {c}")
        if index.const or not parts:
            parts.append(str(index.const))
        text = " + ".join(parts).replace("+ -", "- ")
        return text if top or (len(parts) == 1 and text.isidentifier()) else f"({text})"

    def _term(self, term: object) -> str:
        if isinstance(term, Axis):
            return self.axis[term] if term.extent != 1 else "0"
        if isinstance(term, FloorDiv | Mod):
            sign = "/" if isinstance(term, FloorDiv) else "%"
            bounds = term.index.bounds()
            inner = self.position(term.index)
            if bounds is not None and bounds[0] >= 0 and bounds[1] < 2**31 and term.divisor < 2**31:
                return f"(int64_t)((uint32_t){inner} {sign} {term.divisor}u)"  # 32-bit quotients vectorize
            return f"({inner} {sign} {term.divisor})"
        assert isinstance(term, Expr)
        return f"(int64_t){self.ref(term, named=True)}"

    def stores(self, stores: Sequence[Store]) -> None:
        """One element of each written. All values come first: a load behind a store to another buffer at the same offset in its
        page waits for it (4 KiB aliasing), which made a product that stores a gradient and updates a weight 1.8 times slower."""
        values = []
        for s in stores:
            value = c_expr.convert(self.ref(s.value), s.value.dtype, self.buffers[s.buffer].dtype)
            if len(stores) > 1 and not value.isidentifier():
                name = self.fresh("v")
                self.line(f"const {c_expr.VALUE[self.buffers[s.buffer].dtype]} {name} = {value[1:-1] if _wrapped(value) else value};")
                value = name
            values.append(value)
        for s, value in zip(stores, values, strict=True):
            self._store(s, value)

    def _store(self, s: Store, value: str) -> None:
        buffer = self.buffers[s.buffer]
        at = self.position(s.index, top=True)
        target = f"{self.pointer[s.buffer]}[{at}]"
        if any(True for _ in data_terms(s.index)):
            name = self.fresh("at")
            self.line(f"const int64_t {name} = {at};")
            self.line(f"if (TL_UNLIKELY((uint64_t){name} >= {buffer.size}u)) tl_bad_index({name}, {buffer.size});")
            target = f"{self.pointer[s.buffer]}[{name}]"
            prefix = "else "
        else:
            prefix = ""
        if s.mode == "add":
            old = c_expr.from_memory(target, buffer.dtype)
            value = f"({old} {'|' if buffer.dtype is dtypes.bool_ else '+'} {value})"
        plain = c_expr.to_memory(value[1:-1] if _wrapped(value) else value, buffer.dtype)
        self.line(f"{prefix}{target} = {plain};")


def _wrapped(text: str) -> bool:
    """True when one pair of parentheses encloses all of the text."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0 and i < len(text) - 1:
            return False
    return text.startswith("(")


def positions(e: Expr) -> Iterator[Expr]:
    """The data-dependent expressions in the index of a load or index node (quotients included)."""
    if e.op in ("load", "index"):
        yield from index_exprs(e.attr[1] if e.op == "load" else e.attr)  # type: ignore[index,arg-type]


def index_exprs(index: Index) -> Iterator[Expr]:
    for term, _ in index.terms:
        if isinstance(term, Expr):
            yield term
        elif isinstance(term, FloorDiv | Mod):
            yield from index_exprs(term.index)


def walk_all(roots: Iterable[Expr]) -> list[Expr]:
    """Every distinct expression below the roots, also inside indices."""
    seen: dict[Expr, None] = {}
    todo = list(roots)
    while todo:
        for e in walk(*todo):
            seen.setdefault(e)
        todo = [p for e in seen for p in positions(e) if p not in seen]
    return list(seen)


def may_vectorize(roots: Iterable[Expr], stores: list[Store], axis: Axis | None) -> bool:
    """True when the iterations of the innermost loop (over `axis`) are independent and need no checked position."""
    if any(next(positions(e), None) is not None for e in walk_all(roots)) or any(
        next(index_exprs(s.index), None) is not None for s in stores
    ):
        return False
    return all(s.mode == "set" or (axis is not None and separates(s.index, axis)) for s in stores)


def strides(roots: Iterable[Expr]) -> Iterator[Index]:
    """The index of every load below the roots."""
    for e in walk_all(roots):
        if e.op == "load":
            yield e.attr[1]  # type: ignore[index,misc]


def separates(index: Index, axis: Axis) -> bool:
    """True when two positions that differ along `axis` are never the same, whatever the other axes and data are."""
    c = index.coefficient(axis)
    if c <= 0 or any(axis in t.index.axes() for t, _ in index.terms if isinstance(t, FloorDiv | Mod)):
        return False
    if any(isinstance(t, Expr) and depends_on(t, frozenset((axis,))) for t, _ in index.terms):
        return False
    span, low = c * axis.extent, Index()
    for term, k in index.terms:
        if term != axis and k % span:
            low = low + Index(((term, k),))
    bounds = low.bounds()
    return bounds is not None and bounds[1] - bounds[0] < c
