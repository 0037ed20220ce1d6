"""Rewrites loop nests into simpler ones with the same meaning: fewer axes, one name for equal reduce axes, no reductions of few terms."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

from torchlet import dtypes
from torchlet import index as ix
from torchlet.compiler.loops import Dot, Kernel, Phase, Reduction, Store, data_terms, depends_on
from torchlet.expr import Expr, call, cast, const, expr, rewrite, walk, where
from torchlet.index import Axis, FloorDiv, Index, Mod

__all__ = ["collapse_axes", "flatten_short_rows", "map_kernel", "substitute_axes", "unroll_windows"]

Rule = Callable[[Expr], Expr | None]
SHORT_ROW = 16  # elements: less than a vector
WINDOW_SIDE, WINDOW_TERMS = 4, 16  # of a reduction that is written out: the windows of pooling


def collapse_axes(kernel: Kernel) -> Kernel:
    """Drop axes of extent 1, give equal reduce axes of later phases one name, and merge neighbours that walk memory as one axis."""
    kernel = _drop_unit_axes(kernel)
    kernel = _share_reduce_axes(kernel)
    merged = True
    while merged:
        merged = False
        for outer, inner in _neighbours(kernel):
            if all(_walks_as_one(i, outer, inner) for i in _indices(kernel)):
                kernel = _merge(kernel, outer, inner)
                merged = True
                break
    return kernel


def map_kernel(kernel: Kernel, rule: Rule, index_rule: Callable[[ix.Term], Index | None] = lambda term: None) -> Kernel:
    """The kernel with `rule` applied bottom-up to every expression and `index_rule` to every term of an index, also nested ones."""
    memo: dict[Expr, Expr] = {}

    def term(t: ix.Term) -> Index | None:
        return ix.of(visit(t)) if isinstance(t, Expr) else index_rule(t)

    def node(e: Expr) -> Expr | None:
        if e.op == "load":
            e = expr("load", e.args, e.dtype, (e.attr[0], e.attr[1].substitute(term)))  # type: ignore[index]
        elif e.op == "index":
            e = expr("index", (), e.dtype, e.attr.substitute(term))  # type: ignore[union-attr,attr-defined]
        changed = rule(e)
        return e if changed is None else changed

    def visit(e: Expr) -> Expr:
        return rewrite(e, node, memo)

    def part(r: Reduction | Dot) -> Reduction | Dot:
        return replace(r, a=visit(r.a), b=visit(r.b)) if isinstance(r, Dot) else replace(r, value=visit(r.value))

    phases = tuple(
        Phase(
            p.reduce,
            tuple(part(r) for r in p.reductions),
            tuple(replace(s, index=s.index.substitute(term), value=visit(s.value)) for s in p.stores),
        )
        for p in kernel.phases
    )
    return replace(kernel, phases=phases)


def substitute_axes(kernel: Kernel, new: Mapping[Axis, Axis | None]) -> Kernel:
    """The kernel with axes replaced by others (None: the axis is 0 and goes away), in the loops as in the indices."""

    def renamed(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(b for a in axes if (b := new.get(a, a)) is not None)

    def term(t: ix.Term) -> Index | None:
        if not isinstance(t, Axis) or t not in new:
            return None
        b = new[t]
        return ix.ZERO if b is None else Index(((b, 1),))

    def part(r: Reduction | Dot) -> Reduction | Dot:
        return replace(r, batch=renamed(r.batch), m=renamed(r.m), n=renamed(r.n), k=renamed(r.k)) if isinstance(r, Dot) else r

    kernel = map_kernel(kernel, lambda e: None, term)
    phases = tuple(Phase(renamed(p.reduce), tuple(part(r) for r in p.reductions), p.stores) for p in kernel.phases)
    return replace(kernel, grid=renamed(kernel.grid), phases=phases)


def unroll_windows(kernel: Kernel) -> Kernel:
    """A kernel whose reductions all have few terms without them, each written out as an expression, so that grid points vectorize."""
    for p in kernel.phases:
        terms = math.prod(a.extent for a in p.reduce)
        axes = frozenset(p.reduce)
        inside = any(depends_on(s.value, axes) or axes & set(s.index.axes()) or any(data_terms(s.index)) for s in p.stores)
        large = any(a.extent > WINDOW_SIDE for a in p.reduce) or terms > WINDOW_TERMS or 0 in [a.extent for a in p.reduce]
        nodes = sum(1 for r in p.reductions if isinstance(r, Reduction) for _ in walk(r.value))
        if large or inside or any(isinstance(r, Dot) for r in p.reductions) or nodes * terms > 16 * WINDOW_TERMS:
            return kernel
    if not any(p.reductions for p in kernel.phases):
        return kernel
    results: dict[object, Expr] = {}

    def known(e: Expr) -> Expr | None:
        return results.get(e.attr) if e.op == "value" else None

    phases = []
    for p in kernel.phases:
        entered = map_kernel(replace(kernel, phases=(p,)), known).phases[0]
        results |= {r.name: _written_out(r, p.reduce) for r in entered.reductions if isinstance(r, Reduction)}
        phases.append(replace(map_kernel(replace(kernel, phases=(replace(p, reductions=()),)), known).phases[0], reduce=()))
    return replace(kernel, phases=tuple(phases))


def flatten_short_rows(kernel: Kernel) -> Kernel:
    """A kernel without reductions whose last axis is shorter than a vector, with one axis for it and the one before, where all stores
    walk these as one: what loads do not is a quotient or a remainder, and gathering them is faster than a loop without vectors."""
    if len(kernel.grid) < 2 or any(p.reduce or p.reductions for p in kernel.phases):
        return kernel
    *others, outer, inner = kernel.grid
    size = outer.extent * inner.extent
    if inner.extent >= SHORT_ROW or not 4 * SHORT_ROW <= size < 2**31 or any(True for i in _indices(kernel) for _ in data_terms(i)):
        return kernel
    wide = Axis(f"{outer.name}_{inner.name}", size)
    new = {outer: ix.floordiv(ix.of(wide), inner.extent), inner: ix.mod(ix.of(wide), inner.extent)}
    flat = map_kernel(kernel, lambda e: None, lambda t: new.get(t) if isinstance(t, Axis) else None)
    plain = all(s.mode == "set" and s.index.is_affine() and s.index.coefficient(wide) == 1 for p in flat.phases for s in p.stores)
    return replace(flat, grid=(*others, wide)) if plain else kernel


def _written_out(r: Reduction, axes: tuple[Axis, ...]) -> Expr:
    """The reduction as an expression of all its terms, in row-major order."""
    store = Store("", ix.ZERO, r.value)
    at = Kernel("", (), (Phase((), (), (store,)),), ())
    terms = []
    for place in itertools.product(*(range(a.extent) for a in axes)):
        fixed: dict[ix.Term, Index] = {a: Index((), k) for a, k in zip(axes, place, strict=True)}
        terms.append(map_kernel(at, lambda e: None, fixed.get).phases[0].stores[0].value)
    if r.combine in ("any", "all"):
        tests = [x if x.dtype is dtypes.bool_ else call("ne", x, 0) for x in terms]
        return functools.reduce(lambda a, b: call("or" if r.combine == "any" else "and", a, b), tests)
    if r.combine in ("sum", "prod"):
        op = "add" if r.combine == "sum" else "mul"
        return functools.reduce(lambda a, b: call(op, a, b), [cast(x, r.dtype) for x in terms])
    best = functools.reduce(lambda a, b: call("maximum" if r.combine in ("max", "argmax") else "minimum", a, b), terms)
    if r.combine in ("max", "min"):
        return best
    found = const(len(terms) - 1, dtypes.int64)
    for number, x in reversed(list(enumerate(terms[:-1]))):  # where the best is NaN, the first NaN is it
        hit = call("eq", x, best)
        found = where(call("or", hit, call("isnan", x)) if x.dtype.is_floating_point else hit, const(number, dtypes.int64), found)
    return found


def _drop_unit_axes(kernel: Kernel) -> Kernel:
    units = {a: None for a in (*kernel.grid, *(r for p in kernel.phases for r in p.reduce)) if a.extent == 1}
    return substitute_axes(kernel, units) if units else kernel


def _share_reduce_axes(kernel: Kernel) -> Kernel:
    """Phases that reduce over the same extents get the same axes, so that equal expressions of different phases are equal."""
    phases = list(kernel.phases)
    for position, phase in enumerate(phases):
        for earlier in phases[:position]:
            if earlier.reduce != phase.reduce and [a.extent for a in earlier.reduce] == [a.extent for a in phase.reduce]:
                new = dict(zip(phase.reduce, earlier.reduce, strict=True))
                phases[position] = substitute_axes(replace(kernel, grid=(), phases=(phase,)), new).phases[0]
                break
    return replace(kernel, phases=tuple(phases))


def _groups(kernel: Kernel) -> Iterator[tuple[Axis, ...]]:
    """Axis tuples within which neighbours may merge, and outside which they may not."""
    for phase in kernel.phases:
        for r in phase.reductions:
            if isinstance(r, Dot):
                yield from (r.batch, r.m, r.n)


def _neighbours(kernel: Kernel) -> list[tuple[Axis, Axis]]:
    group_of: dict[Axis, list[int]] = {}
    for number, group in enumerate(_groups(kernel)):
        for a in group:
            group_of.setdefault(a, []).append(number)
    nests = [kernel.grid, *(p.reduce for p in kernel.phases)]
    pairs = [pair for nest in nests for pair in pairwise(nest)]
    return [
        (a, b)
        for a, b in dict.fromkeys(pairs)
        if group_of.get(a) == group_of.get(b)
        and all((a in nest) == (b in nest) and (a not in nest or _adjacent(nest, a, b)) for nest in nests)
        and all(a not in group or _adjacent(group, a, b) for group in _groups(kernel))
    ]


def _adjacent(nest: tuple[Axis, ...], a: Axis, b: Axis) -> bool:
    return nest.index(a) + 1 == nest.index(b)


def _merge(kernel: Kernel, outer: Axis, inner: Axis) -> Kernel:
    wide = Axis(f"{outer.name}_{inner.name}", outer.extent * inner.extent)
    return substitute_axes(kernel, {outer: None, inner: wide})


def _indices(kernel: Kernel) -> list[Index]:
    """Every index of the kernel, the ones inside data-dependent positions included."""
    found: dict[Index, None] = {}

    def add(index: Index) -> None:
        if index not in found:
            found[index] = None
            for position in data_terms(index):
                rewrite(position, node)

    def node(e: Expr) -> None:
        if e.op == "load":
            add(e.attr[1])  # type: ignore[index]
        elif e.op == "index":
            add(e.attr)  # type: ignore[arg-type]

    memo: dict[Expr, Expr] = {}
    for root in kernel.roots():
        rewrite(root, node, memo)
    for phase in kernel.phases:
        for s in phase.stores:
            add(s.index)
    return list(found)


def _walks_as_one(index: Index, outer: Axis, inner: Axis) -> bool:
    """True when `outer` and `inner` occur only as outer * extent(inner) + inner, in the index and inside its quotients."""
    if index.coefficient(outer) != index.coefficient(inner) * inner.extent:
        return False
    return all(_walks_as_one(t.index, outer, inner) for t, _ in index.terms if isinstance(t, FloorDiv | Mod))

