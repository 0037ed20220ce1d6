"""Prints kernels whose work is one matrix product: a call of the runtime's packed product, with generated packing and tile functions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torchlet import dtypes
from torchlet.compiler.codegen import c_expr
from torchlet.compiler.codegen.c_loops import Scopes, index_exprs, may_vectorize, separates, strides
from torchlet.compiler.loops import Dot, Kernel, Store, depends_on
from torchlet.config import config
from torchlet.expr import Expr, walk
from torchlet.index import Axis, Index

__all__ = ["Product", "emit_product", "product_of"]

_SUFFIX = {dtypes.float32: "f32", dtypes.float64: "f64"}
_MAX_BATCH_AXES = 8  # of tl_env.at
_MAX_STREAMS = 8  # TL_STREAMS
_FAR = 1 << 18  # elements of a result that is not in the cache when it is written
_LARGE = 1 << 22  # multiply-adds; with fewer, tl_amx.c would leave every product to tl_gemm.c
_PARTS = {"ieee": 0, "bf16x6": 3, "bf16x3": 2, "bf16": 1}  # how many bfloat16 numbers may stand for a float32


@dataclass(frozen=True, slots=True)
class Product:
    """A kernel seen as `stores(dot)` for every batch position: the dot, its batch axes, the stores that take its tiles."""

    dot: Dot
    batch: tuple[Axis, ...]
    stores: tuple[Store, ...]
    shared: bool = False  # the text is to have the same words for all sizes


def product_of(kernel: Kernel, shared: bool = False) -> Product | None:
    """The kernel as one matrix product with stores, None where it is something else."""
    dots = [r for p in kernel.phases for r in p.reductions if isinstance(r, Dot)]
    if len(dots) != 1 or sum(len(p.reductions) for p in kernel.phases) != 1 or dots[0].dtype not in _SUFFIX:
        return None
    dot = dots[0]
    stores = tuple(s for p in kernel.phases for s in p.stores)
    inner = frozenset(a for p in kernel.phases for a in p.reduce)
    if inner != frozenset(dot.k) or any(inner & _axes_of(s) for s in stores):
        return None
    batch = tuple(a for a in kernel.grid if a not in dot.m and a not in dot.n)
    crossed = depends_on(dot.a, frozenset(dot.n)) or depends_on(dot.b, frozenset(dot.m))
    if crossed or len(batch) > _MAX_BATCH_AXES or not set(dot.m + dot.n) <= set(kernel.grid):
        return None
    return Product(dot, batch, stores, shared)


def _axes_of(store: Store) -> frozenset[Axis]:
    found = set(store.index.axes())
    for e in walk(store.value, *index_exprs(store.index)):
        if e.op in ("load", "index"):
            index: Index = e.attr[1] if e.op == "load" else e.attr  # type: ignore[index,assignment]
            found |= set(index.axes())
            for position in index_exprs(index):
                found |= {a for x in walk(position) if x.op in ("load", "index") for a in (x.attr[1] if x.op == "load" else x.attr).axes()}  # type: ignore[index,union-attr]
    return frozenset(found)


def emit_product(kernel: Kernel, product: Product) -> list[str]:
    """The C functions of the kernel: how operands are packed, what happens to a tile, and the call."""
    dot = product.dot
    suffix = _SUFFIX[dot.dtype]
    lines: list[str] = []
    operands = []
    for letter, e, rows in (("a", dot.a, dot.m), ("b", dot.b, dot.n)):
        plain = _plain(kernel, e, rows, dot)
        if plain is None:
            name = f"{kernel.name}_{letter}"
            text, along_rows = _eval_function(kernel, name, e, rows, product)
            lines += text
            operands.append(f"{{0, {int(along_rows)}, {int(not along_rows)}, {name}}}")
        else:
            operands.append(plain)
    lines += _tile_function(kernel, product)
    c = Scopes(kernel, product.shared)
    c.open(f"void {kernel.name}(char *const *restrict b, const int64_t *restrict s, int tid, int nth)")
    c.declare_arguments()
    c.line("tl_env env = {b, s, {0}};")
    m, n, k = (math.prod(a.extent for a in axes) for axes in (dot.m, dot.n, dot.k))
    count = math.prod(a.extent for a in product.batch)
    offsets = [_offset(c, e, product.batch) if plain.startswith("{%") else "" for e, plain in zip((dot.a, dot.b), operands, strict=True)]
    run = f"tl_gemm_run_{suffix}"
    parts = _parts(dot) if product.shared or m * n * k >= _LARGE else 0

    def launch(thread: str) -> None:
        at = [text.replace("%", offset) for text, offset in zip(operands, offsets, strict=True)]
        streams = _streams(c, product)
        if streams:
            c.line(f"const tl_stream streams[] = {{{', '.join(streams)}}};")
        fetched = f"streams, {len(streams)}" if streams else "0, 0"
        numbers = ", ".join(
            [f"{m}, {n}, {k}, {at[0]}, {at[1]}, {kernel.name}_tile, {fetched}, &env", *([f".parts = {parts}"] if parts else [])]
        )
        c.line(f"const tl_gemm_{suffix} g = {{{numbers}}};")
        c.line(f"{run}(&g, {thread});")

    if not product.batch:
        launch("tid, nth")
    else:
        ordered = any(s.mode == "add" and not all(separates(s.index, a) for a in product.batch) for s in product.stores)
        # few products that the threads cannot share out evenly are each done by all threads
        whole = "nth" if ordered else f"({count} % nth && {count} < 8 * nth)"
        c.line(f"const int every = {'1' if ordered else f'{whole} ? 1 : nth'};")
        c.open(f"for (int64_t z = every == 1 ? 0 : {count}L * tid / nth; z < (every == 1 ? {count} : {count}L * (tid + 1) / nth); z++)")
        stride = count
        for i, a in enumerate(product.batch):
            stride //= a.extent
            c.line(f"const int64_t {c.axis[a]} = env.at[{i}] = z / {stride} % {a.extent};")
        launch("every == 1 ? tid : 0, every == 1 ? nth : 1")
        if ordered:
            c.line("tl_barrier(nth);")
        c.close()
    c.close()
    return [*lines, *c.scopes[0].lines]


def _parts(dot: Dot) -> int:
    """How many bfloat16 numbers may stand for a factor where the processor multiplies those faster; 0: none may."""
    if dot.dtype is not dtypes.float32:
        return 0
    exact = dot.a.dtype is dot.b.dtype is dtypes.bfloat16
    return 1 if exact else _PARTS[config.cpu_float32_dot]


def _plain(kernel: Kernel, e: Expr, rows: tuple[Axis, ...], dot: Dot) -> str | None:
    """The operand as `{pointer, row stride, column stride, 0}` (% stands for the pointer) where it is one strided load."""
    if e.op != "load" or e.args or e.dtype is not dot.dtype:
        return None
    name: str = e.attr[0]  # type: ignore[index]
    index: Index = e.attr[1]  # type: ignore[index]
    if not index.is_affine() or next(b.dtype for b in kernel.buffers if b.name == name) is not dot.dtype:
        return None
    row, column = _stride(index, rows), _stride(index, dot.k)
    return None if row is None or column is None else f"{{%, {row}, {column}, 0}}"


def _stride(index: Index, axes: tuple[Axis, ...]) -> int | None:
    """The step in memory of the row-major position in `axes`, None where it is not one step."""
    for outer, inner in pairwise(axes):
        if index.coefficient(outer) != index.coefficient(inner) * inner.extent:
            return None
    return index.coefficient(axes[-1]) if axes else 0


def _offset(c: Scopes, e: Expr, batch: tuple[Axis, ...]) -> str:
    """The address of an operand's first element in the batch position of the loop."""
    name: str = e.attr[0]  # type: ignore[index]
    index: Index = e.attr[1]  # type: ignore[index]
    kept = Index(tuple((t, k) for t, k in index.terms if t in batch), index.const)
    text = c.position(kept, top=True)
    return c.pointer[name] if text == "0" else f"{c.pointer[name]} + {text}"


def _begin(kernel: Kernel, product: Product, header: str) -> Scopes:
    c = Scopes(kernel, product.shared)
    c.open(header)
    c.line("char *const *b = env->b;")
    c.line("const int64_t *s = env->s;")
    c.line("(void)b, (void)s;")
    c.declare_arguments()
    for i, a in enumerate(product.batch):
        c.line(f"const int64_t {c.axis[a]} = env->at[{i}];")
    c.scopes[-1].axes = frozenset(product.batch)
    return c


def _open_flat(c: Scopes, axes: tuple[Axis, ...], stem: str, simd: bool) -> str:
    """A loop over `[stem0, stem1)` of the row-major position in `axes`; returns the name of the position."""
    name = c.axis[axes[0]] if len(axes) == 1 else c.fresh(f"{stem}_flat")
    header = [f"for (int64_t {name} = {stem}0; {name} < {stem}1; {name}++)"]
    c.open(*(["#pragma omp simd"] if simd else []), *header, axes=axes)
    if len(axes) > 1:
        stride = math.prod(a.extent for a in axes)
        for a in axes:
            stride //= a.extent
            c.line(f"const int64_t {c.axis[a]} = (int64_t)((uint32_t){name} / {stride}u % {a.extent}u);")
    return name


def _eval_function(kernel: Kernel, name: str, e: Expr, rows: tuple[Axis, ...], product: Product) -> tuple[list[str], bool]:
    """The function that computes an operand, and whether its inner loop is the one over rows."""
    dot = product.dot
    kind = c_expr.VALUE[dot.dtype]
    c = _begin(
        kernel,
        product,
        f"static void {name}(const tl_env *env, int64_t row0, int64_t row1, int64_t col0, int64_t col1, "
        f"{kind} *restrict dst, int64_t rs, int64_t ks)",
    )
    c.count([e])

    def contiguous(axes: tuple[Axis, ...]) -> int:
        return sum(i.coefficient(axes[-1]) == 1 for i in strides([e])) if axes else -1

    nest = [(rows, "row"), (dot.k, "col")]
    along_rows = contiguous(rows) > contiguous(dot.k)
    if along_rows:
        nest.reverse()
    names = {}
    for position, (axes, stem) in enumerate(nest):
        names[stem] = _open_flat(c, axes, stem, position == 1 and may_vectorize([e], [], None))
    value = c_expr.convert(c.ref(e), e.dtype, dot.dtype)
    c.line(f"dst[({names['row']} - row0) * rs + ({names['col']} - col0) * ks] = {value};")
    c.close()
    c.close()
    c.close()
    return c.scopes[0].lines, along_rows


def _tile_function(kernel: Kernel, product: Product) -> list[str]:
    dot = product.dot
    kind = c_expr.VALUE[dot.dtype]
    c = _begin(
        kernel,
        product,
        f"static void {kernel.name}_tile(const tl_env *env, const {kind} *restrict t, int64_t ld, "
        f"int64_t row0, int64_t row1, int64_t col0, int64_t col1)",
    )
    roots = list(_store_roots(product.stores))
    c.count(roots)
    row = _open_flat(c, dot.m, "row", simd=False)
    column = _open_flat(c, dot.n, "col", may_vectorize(roots, list(product.stores), dot.n[-1] if dot.n else None))
    c.values[dot.name] = (f"t[({row} - row0) * ld + ({column} - col0)]", len(c.scopes) - 1)
    c.stores(product.stores)
    c.close()
    c.close()
    c.close()
    return c.scopes[0].lines


def _streams(c: Scopes, product: Product) -> list[str]:
    """The memory that the tile function reads and writes per element, where it reads such memory at all or writes much: it is fetched while
    the product is computed. The update of a weight and its moments would otherwise wait for it line by line, with the arithmetic idle
    (measured: 1.5 times slower), and so would the stores of a large result (1.2 times)."""
    if len(product.dot.m) != 1 or len(product.dot.n) != 1:
        return []
    (row,), (column,) = product.dot.m, product.dot.n

    def streams(index: Index) -> bool:
        return index.is_affine() and index.coefficient(column) == 1 and index.coefficient(row) >= column.extent

    loads = [e for e in walk(*_store_roots(product.stores)) if e.op == "load" and streams(e.attr[1])]  # type: ignore[index]
    if not loads and not product.shared and row.extent * column.extent < _FAR:
        return []
    places = dict.fromkeys([(e.attr[0], e.attr[1]) for e in loads] + [(s.buffer, s.index) for s in product.stores if streams(s.index)])  # type: ignore[index]
    found = []
    for name, index in list(places)[:_MAX_STREAMS]:
        start = c.position(Index(tuple((t, k) for t, k in index.terms if t not in (row, column)), index.const), top=True)
        size = c.buffers[name].dtype.itemsize
        found.append(f"{{(const char *)&{c.pointer[name]}[{start}], {index.coefficient(row) * size}, {size}}}")
    return found


def _store_roots(stores: tuple[Store, ...]) -> Iterator[Expr]:
    for s in stores:
        yield s.value
        yield from index_exprs(s.index)
