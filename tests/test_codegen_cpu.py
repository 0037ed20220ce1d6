"""Printed C against NumPy in double precision: every nest shape, odd sizes, dtypes, one and two threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from torchlet import dtypes
from torchlet import index as ix
from torchlet.compiler.codegen import cpu as codegen
from torchlet.compiler.generalize import SIZES
from torchlet.compiler.load import LoadedKernel, Source, canonical, load
from torchlet.compiler.loops import Buffer, Dot, Kernel, Phase, Reduction, ScalarArg, Store
from torchlet.compiler.simplify_loops import collapse_axes
from torchlet.dtypes import dtype
from torchlet.expr import Expr, call, cast, const, expr, where
from torchlet.index import Axis, Index
from torchlet.ops import create
from torchlet.runtime import cpu as runtime

Array = np.ndarray[Any, Any]
F32, F64, F16, BF16, I64, I32, BOOL = (
    dtypes.float32,
    dtypes.float64,
    dtypes.float16,
    dtypes.bfloat16,
    dtypes.int64,
    dtypes.int32,
    dtypes.bool_,
)
# 16-bit results are rounded once from float32; half an ulp of the format, and what inputs of that format lose is not counted
TOLERANCE = {F32: 2e-6, F64: 1e-13, F16: 1e-3, BF16: 8e-3}


def load_of(name: str, index: Index, d: dtype = F32, *mask: Expr) -> Expr:
    return expr("load", mask, d, (name, index))


def value(name: str, d: dtype = F32) -> Expr:
    return expr("value", (), d, name)


def at(*axes: Axis) -> Index:
    """The row-major position."""
    return ix.flatten(tuple(ix.of(a) for a in axes), tuple(a.extent for a in axes))


@dataclass
class Case:
    kernel: Kernel
    arrays: dict[str, Array]
    expected: dict[str, Array]
    scalars: tuple[float, ...] = ()
    tolerance: float | None = None  # relative to the largest expected value; None: by dtype
    given: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.given = {n: a.copy() for n, a in self.arrays.items()}


def make(
    name: str, grid: tuple[Axis, ...], phases: tuple[Phase, ...], arrays: dict[str, Array], scalars: tuple[ScalarArg, ...] = ()
) -> Kernel:
    written = {s.buffer for p in phases for s in p.stores}
    buffers = tuple(Buffer(n, dtypes.from_numpy(a.dtype), a.size, "output" if n in written else "input") for n, a in arrays.items())
    return Kernel(name, grid, phases, buffers, scalars, ("model.py:3",))


def run(loaded: LoadedKernel, arrays: dict[str, Array], scalars: tuple[float, ...] = (), threads: int = 2) -> None:
    """One run with at most `threads` threads, parallel whatever the size, so that small cases meet every path."""
    runtime.set_num_threads(threads)
    wide = LoadedKernel(loaded.name, loaded.address, threads > 1, loaded.key, 1 << 40, loaded.kernel)
    buffers, numbers = loaded.kernel.buffers, loaded.kernel.scalars
    program = runtime.Program([(wide, range(len(buffers)), range(len(numbers)))], len(buffers), len(numbers))
    for i, b in enumerate(buffers):
        assert arrays[b.name].flags.c_contiguous
        program.pointers[i] = arrays[b.name].ctypes.data
    for i, (a, v) in enumerate(zip(numbers, scalars, strict=True)):
        program.scalars[i] = int(np.float64(v).view(np.int64)) if a.dtype is F64 else int(v)
    program.run()


def random(*shape: int, d: dtype = F32) -> Array:
    return np.random.default_rng(len(shape) + sum(shape)).standard_normal(shape).astype(d.np)


CASES: dict[str, Callable[[], Case]] = {}


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    CASES[build.__name__] = build
    return build


def cases(prefix: str, *rows: tuple[Any, ...]) -> Callable[[Callable[..., Case]], Callable[..., Case]]:
    def add(build: Callable[..., Case]) -> Callable[..., Case]:
        for row in rows:
            label = "_".join(x.name if isinstance(x, dtype) else str(x) for x in row)
            CASES[f"{prefix}_{label}"] = lambda row=row: build(*row)  # type: ignore[misc]
        return build

    return add


# ------------------------------------------------------------------------------------------------ pointwise


@cases("pointwise", *[(n, d) for n in (1, 17, 50001) for d in (F32, F64, F16, BF16)])
def pointwise(n: int, d: dtype) -> Case:
    i = Axis("i", n)
    x = load_of("x", ix.of(i), d)
    arrays = {"x": random(n, d=d), "out": np.zeros(n, d.np)}
    wide = arrays["x"].astype(float)
    return Case(
        make("tanh_mul", (i,), (Phase(stores=(Store("out", ix.of(i), call("tanh", x) * x + 1.5),)),), arrays), arrays,
        {"out": np.tanh(wide) * wide + 1.5},
    )


@case
def scalars_and_casts() -> Case:
    i = Axis("i", 1000)
    lr, step = expr("scalar", (), F64, "lr"), expr("scalar", (), I64, "step")
    y = load_of("x", ix.of(i)) * cast(lr, F32) + cast(step, F32)
    arrays = {"x": random(1000), "out": np.zeros(1000, "f")}
    return Case(
        make("scaled", (i,), (Phase(stores=(Store("out", ix.of(i), y),)),), arrays, (ScalarArg("lr", F64), ScalarArg("step", I64))), arrays,
        {"out": arrays["x"].astype(float) * 0.1 - 7}, (0.1, -7),
    )


@case
def broadcast_and_transpose() -> Case:
    i, j, k = Axis("i", 33), Axis("j", 65), Axis("k", 7)
    x = load_of("x", ix.of(k) * (33 * 65) + ix.of(j) * 33 + ix.of(i))
    arrays = {"x": random(7, 65, 33), "row": random(7), "out": np.zeros((33, 65, 7), "f")}
    return Case(
        make("permute_add", (i, j, k), (Phase(stores=(Store("out", at(i, j, k), x + load_of("row", ix.of(k))),)),), arrays), arrays,
        {"out": arrays["x"].transpose(2, 1, 0).astype(float) + arrays["row"]},
    )


@cases("transpose", (70, 130), (64, 64), (200, 65))
def transpose(m: int, n: int) -> Case:
    z, i, j = Axis("z", 2), Axis("i", m), Axis("j", n)
    arrays = {"x": random(2, n, m), "y": random(m, n), "out": np.zeros((2, m, n), "f")}
    y = load_of("x", at(z, j, i)) + load_of("y", at(i, j))
    return Case(
        make("transpose_add", (z, i, j), (Phase(stores=(Store("out", at(z, i, j), y),)),), arrays),
        arrays,
        {"out": arrays["x"].swapaxes(1, 2) + arrays["y"].astype(float)},
    )


@case
def quotients_in_positions() -> Case:
    i = Axis("i", 60)
    j = ix.mod(ix.of(i), 7) * 9 + ix.floordiv(ix.of(i), 7)
    arrays = {"x": random(70), "out": np.zeros(60, "f")}
    n = np.arange(60)
    return Case(
        make("regroup", (i,), (Phase(stores=(Store("out", ix.of(i), load_of("x", j)),)),), arrays),
        arrays,
        {"out": arrays["x"][n % 7 * 9 + n // 7]},
    )


@case
def padding_reads_only_what_exists() -> Case:
    i = Axis("i", 40)
    position = expr("index", (), I64, ix.of(i))
    inside = call("and", position >= 5, position < 35)
    arrays = {"x": random(30), "out": np.zeros(40, "f")}
    x = load_of("x", ix.of(i) - 5, F32, inside, const(-1.0, F32))
    return Case(
        make("pad", (i,), (Phase(stores=(Store("out", ix.of(i), x),)),), arrays),
        arrays,
        {"out": np.pad(arrays["x"], 5, constant_values=-1)},
    )


@case
def several_outputs_of_one_expression() -> Case:
    i = Axis("i", 999)
    x = load_of("x", ix.of(i))
    e = call("exp", x)
    arrays = {"x": random(999), "y": np.zeros(999, "f"), "mask": np.zeros(999, bool)}
    stores = (Store("y", ix.of(i), call("div", e, e + 1.0)), Store("mask", ix.of(i), e > 1.0))
    wide = np.exp(arrays["x"].astype(float))
    return Case(make("two", (i,), (Phase(stores=stores),), arrays), arrays, {"y": wide / (wide + 1), "mask": arrays["x"] > 0})


@case
def philox_numbers() -> Case:
    i = Axis("i", 100)
    seed, offset = (const(v, I64) for v in (0x123456789ABCDEF, 5))
    lanes = tuple(Store(f"r{q}", ix.of(i), expr("philox", (seed, offset, expr("index", (), I64, ix.of(i))), I64, q)) for q in range(4))
    arrays = {f"r{q}": np.zeros(100, np.int64) for q in range(4)}
    expected = np.array([philox(0x123456789ABCDEF, 5, n) for n in range(100)])
    return Case(make("random", (i,), (Phase(stores=lanes),), arrays), arrays, {f"r{q}": expected[:, q] for q in range(4)})


def philox(seed: int, offset: int, position: int) -> list[int]:
    """Philox 4x32-10 in Python's integers."""
    low = 0xFFFFFFFF
    c, k = [position & low, position >> 32, offset & low, offset >> 32], [seed & low, seed >> 32]
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b & low, (a >> 32) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


def test_philox_here_gives_the_published_numbers() -> None:
    assert philox(0, 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("lane", range(4))
def test_eager_draws_are_philox_also_where_blocks_meet(lane: int) -> None:
    seed, offset, block = 0x123456789ABCDEF, 7 << 32 | 5, create._BLOCK
    drawn = create.philox(seed, offset, 2 * block + 3, lane)
    assert drawn.shape == (2 * block + 3,)
    for position in (0, 1, block - 1, block, 2 * block, 2 * block + 2):
        assert drawn[position] == philox(seed, offset, position)[lane]


# ------------------------------------------------------------------------------------------------ reductions


def softmax_kernel(rows: int, columns: int, arrays: dict[str, Array]) -> Kernel:
    g, r1, r2, r3 = Axis("g", rows), Axis("r1", columns), Axis("r2", columns), Axis("r3", columns)

    def e(r: Axis) -> Expr:
        return call("exp", load_of("x", at(g, r)) - value("top"))

    return make("softmax", (g,), (
        Phase((r1,), (Reduction("top", "max", load_of("x", at(g, r1))),)),
        Phase((r2,), (Reduction("total", "sum", e(r2)),)),
        Phase((r3,), (), (Store("out", at(g, r3), call("div", e(r3), value("total"))),)),
    ), arrays)


@cases("softmax", (257, 100), (3, 20001), (1, 50000), (70, 1), (1100, 1001))
def softmax(rows: int, columns: int) -> Case:
    arrays = {"x": random(rows, columns), "out": np.zeros((rows, columns), "f")}
    e = np.exp(arrays["x"].astype(float) - arrays["x"].max(1, keepdims=True))
    return Case(softmax_kernel(rows, columns, arrays), arrays, {"out": e / e.sum(1, keepdims=True)})


@cases(
    "sums",
    *[(m, n, d, over) for m, n in ((5, 3), (300, 70), (30000, 5), (3, 40000), (70, 900)) for d in (F32,) for over in "rcx"],
    (300, 70, F64, "c"),
    (300, 70, BF16, "r"),
)
def sums(m: int, n: int, d: dtype, over: str) -> Case:
    """Sum, smallest, and position of the largest over rows, columns or everything."""
    i, j = Axis("i", m), Axis("j", n)
    reduce = {"r": (j,), "c": (i,), "x": (i, j)}[over]
    grid = tuple(a for a in (i, j) if a not in reduce)
    axis = {"r": 1, "c": 0, "x": None}[over]
    x = random(m, n, d=d)
    wide = x.astype(float)
    kept = tuple(a.extent for a in grid)
    out = at(*grid) if grid else ix.ZERO
    e = load_of("x", at(i, j), d)
    accumulated = F32 if d is BF16 else d
    arrays = {
        "x": x,
        "sum": np.zeros(kept or 1, accumulated.np),
        "min": np.zeros(kept or 1, accumulated.np),
        "arg": np.zeros(kept or 1, np.int64),
    }
    phase = Phase(
        reduce,
        (Reduction("a", "sum", e * e), Reduction("b", "min", e), Reduction("c", "argmax", e)),
        (Store("sum", out, value("a", accumulated)), Store("min", out, value("b", accumulated)), Store("arg", out, value("c", I64))),
    )
    expected = {"sum": (wide**2).sum(axis), "min": wide.min(axis), "arg": wide.argmax(axis)}
    return Case(make("sums", grid, (phase,), arrays), arrays, {k: np.reshape(v, kept or 1) for k, v in expected.items()})


@cases("matrix_vector", (1, 9, F32), (2, 300, F32), (7, 784, F32), (130, 33, F32), (9, 9000, F32), (70, 100, F64), (70, 100, BF16))
def matrix_vector(rows: int, columns: int, d: dtype) -> Case:
    """Two matrices by one vector, with what follows: rows go several at once, the last ones fewer."""
    g, r = Axis("g", rows), Axis("r", columns)
    wide = F32 if d is BF16 else d
    arrays = {"x": random(columns, d=d), "w": random(rows, columns, d=d), "u": 1 + random(rows, columns, d=d), "b": random(rows, d=wide)}
    arrays |= {"out": np.zeros(rows, wide.np), "sum": np.zeros(rows, wide.np)}
    x = call("maximum", cast(load_of("x", ix.of(r), d), wide), const(0.0, wide))
    products = tuple(Reduction(n, "sum", x * cast(load_of(m, at(g, r), d), wide)) for n, m in (("p", "w"), ("q", "u")))
    stores = (Store("out", ix.of(g), value("p", wide) + load_of("b", ix.of(g), wide)), Store("sum", ix.of(g), value("q", wide)))
    kernel = make("matrix_vector", (g,), (Phase((r,), products, stores),), arrays)
    w, u, x_ = (arrays[n].astype(float) for n in ("w", "u", "x"))
    x_ = np.maximum(x_, 0)
    return Case(kernel, arrays, {"out": w @ x_ + arrays["b"], "sum": u @ x_}, tolerance=1e-5 if wide is F32 else 1e-12)


@case
def layer_norm() -> Case:
    g, r1, r2, r3 = Axis("g", 37), Axis("r1", 130), Axis("r2", 130), Axis("r3", 130)
    x = random(37, 130) + 3
    arrays = {"x": x, "w": random(130), "out": np.zeros((37, 130), "f"), "rstd": np.zeros(37, "f")}
    mean = value("s") * (1 / 130)
    rstd = call("rsqrt", value("q") * (1 / 130) + 1e-5)

    def d(r: Axis) -> Expr:
        return load_of("x", at(g, r)) - mean

    kernel = make("layer_norm", (g,), (
        Phase((r1,), (Reduction("s", "sum", load_of("x", at(g, r1))),)),
        Phase((r2,), (Reduction("q", "sum", d(r2) * d(r2)),), (Store("rstd", ix.of(g), rstd),)),
        Phase((r3,), (), (Store("out", at(g, r3), d(r3) * rstd * load_of("w", ix.of(r3))),)),
    ), arrays)
    wide = x.astype(float)
    scale = 1 / np.sqrt(wide.var(1) + 1e-5)
    return Case(kernel, arrays, {"rstd": scale, "out": (wide - wide.mean(1, keepdims=True)) * scale[:, None] * arrays["w"]})


@case
def channel_variance() -> Case:
    """Two phases over two reduce axes that are not neighbours in memory, as batch norm has them."""
    n, c, h = Axis("n", 6), Axis("c", 11), Axis("h", 49)
    x = random(6, 11, 49)
    arrays = {"x": x, "var": np.zeros(11, "f"), "centred": np.zeros_like(x)}
    e = load_of("x", at(n, c, h))
    d = e - value("s") * (1 / 294)
    kernel = make("variance", (c,), (
        Phase((n, h), (Reduction("s", "sum", e),)),
        Phase((n, h), (Reduction("q", "sum", d * d),), (Store("centred", at(n, c, h), d), Store("var", ix.of(c), value("q") * (1 / 294)))),
    ), arrays)
    wide = x.astype(float)
    return Case(kernel, arrays, {"var": wide.var((0, 2)), "centred": wide - wide.mean((0, 2), keepdims=True)}, tolerance=1e-5)


@case
def integer_and_logical_reductions() -> Case:
    g, r = Axis("g", 9), Axis("r", 21)
    x = np.random.default_rng(0).integers(-5, 6, (9, 21)).astype(np.int32)
    x[0] = 3
    e = load_of("x", at(g, r), I32)
    wanted = {
        "sum": x.sum(1, dtype=np.int64),
        "prod": x.astype(np.int64).prod(1),
        "max": x.max(1).astype(np.int64),
        "min": x.min(1).astype(np.int64),
        "any": (x == 5).any(1),
        "all": (x == 3).all(1),
        "argmax": x.argmax(1),
        "argmin": x.argmin(1),
    }
    tested = {"any": call("eq", e, 5), "all": call("eq", e, 3)}
    reductions = tuple(Reduction(n, n, tested.get(n, e)) for n in wanted)
    arrays: dict[str, Array] = {"x": x} | {f"out_{n}": np.zeros(9, w.dtype) for n, w in wanted.items()}
    stores = tuple(Store(f"out_{r.name}", ix.of(g), value(r.name, r.dtype)) for r in reductions)
    return Case(make("reduce_ints", (g,), (Phase((r,), reductions, stores),), arrays), arrays, {f"out_{n}": w for n, w in wanted.items()})


@cases("nan_wins", (F32, 40, 3), (F64, 40, 3), (F32, 3, 5000), (F16, 40, 3))
def nan_wins(d: dtype, m: int, n: int) -> Case:
    g, r = Axis("g", m), Axis("r", n)
    x = random(m, n, d=d)
    x[1, 1] = np.nan
    x[2, 2] = np.copysign(np.nan, -1)  # what 0/0 gives on x86
    x[0, 0] = -np.inf
    e = load_of("x", at(g, r), d)
    wide = F32 if d is F16 else d
    names = ("max", "min", "argmax", "argmin")
    arrays = {"x": x} | {k: np.zeros(m, np.int64 if k[0] == "a" else wide.np) for k in names}
    phase = Phase(
        (r,),
        tuple(Reduction("v" + k, k, e) for k in names),
        tuple(Store(k, ix.of(g), value("v" + k, I64 if k[0] == "a" else wide)) for k in names),
    )
    return Case(make("extremes", (g,), (phase,), arrays), arrays, {k: getattr(x.astype(float), k)(1) for k in names}, tolerance=0)


@case
def first_of_equal_values_wins() -> Case:
    r = Axis("r", 40000)
    x = np.zeros(40000, "f")
    x[[77, 30000]] = 1
    x[[123, 39999]] = -1
    arrays = {"x": x, "most": np.zeros(1, np.int64), "least": np.zeros(1, np.int64)}
    phase = Phase((r,), (Reduction("a", "argmax", load_of("x", ix.of(r))), Reduction("b", "argmin", load_of("x", ix.of(r)))),
                  (Store("most", ix.ZERO, value("a", I64)), Store("least", ix.ZERO, value("b", I64))))
    return Case(make("first", (), (phase,), arrays), arrays, {"most": np.array([77]), "least": np.array([123])})


# ------------------------------------------------------------------------------------------------ gather and scatter


@case
def embedding() -> Case:
    n, d = Axis("n", 50), Axis("d", 20)
    arrays = {"w": random(30, 20), "ids": np.random.default_rng(0).integers(0, 30, 50), "out": np.zeros((50, 20), "f")}
    row = load_of("ids", ix.of(n), I64)
    kernel = make("embedding", (n, d), (Phase(stores=(Store("out", at(n, d), load_of("w", ix.of(row) * 20 + ix.of(d))),)),), arrays)
    return Case(kernel, arrays, {"out": arrays["w"][arrays["ids"]]})


@cases("scatter_add", (500, 20), (5000, 1))
def scatter_add(count: int, width: int) -> Case:
    n, d = Axis("n", count), Axis("d", width)
    g = random(count, width)
    arrays = {"ids": np.random.default_rng(0).integers(0, 7, count), "g": g, "w": np.ones((7, width), "f")}
    row = load_of("ids", ix.of(n), I64)
    kernel = make("scatter", (n, d), (Phase(stores=(Store("w", ix.of(row) * width + ix.of(d), load_of("g", at(n, d)), "add"),)),), arrays)
    expected = np.ones((7, width))
    np.add.at(expected, arrays["ids"], g.astype(float))
    return Case(kernel, arrays, {"w": expected}, tolerance=2e-5)  # up to 800 float32 additions to one element


@case
def masked_positions_may_be_anywhere() -> Case:
    n = Axis("n", 20)
    ids = np.arange(20) * 3 - 10
    arrays = {"x": random(30), "ids": ids, "out": np.zeros(20, "f")}
    position = load_of("ids", ix.of(n), I64)
    inside = call("and", position >= 0, position < 30)
    kernel = make("masked_gather", (n,), (Phase(stores=(Store("out", ix.of(n), load_of("x", ix.of(position), F32, inside)),)),), arrays)
    return Case(kernel, arrays, {"out": np.where((ids >= 0) & (ids < 30), arrays["x"][np.clip(ids, 0, 29)], 0)})


# ------------------------------------------------------------------------------------------------ matrix products

DOT_ROWS = [
    (m, n, k, ta, tb, F32, 0)
    for m, n, k in ((64, 96, 784), (1, 33, 70), (5, 7, 1), (64, 10, 128), (10, 70, 64), (130, 3, 600), (15, 65, 1100))
    for ta in (0, 1)
    for tb in (0, 1)
]
DOT_ROWS += [(45, 50, 60, ta, tb, d, 0) for d in (F64, BF16, F16, I64) for ta, tb in ((0, 1), (1, 0))]
DOT_ROWS += [(33, 40, 20, 0, 1, F32, 9), (33, 40, 20, 1, 0, F32, 3), (1, 40, 20, 0, 1, F32, 5)]


# rows over the threads: columns packed by each thread for itself, and by all of them together
DOT_ROWS += [(300, 64, 80, 0, 1, F32, 0), (1100, 400, 400, 0, 1, F32, 0)]
# k short enough for column panels that stay in cache: several at a time, one, rows too many to keep packed; and blocks of all heights
DOT_ROWS += [(130, 200, 64, ta, tb, F32, 0) for ta in (0, 1) for tb in (0, 1)]
DOT_ROWS += [(70, 100, 16, 1, 0, F32, 0), (50, 300, 128, 0, 0, F32, 0), (930, 70, 40, 1, 0, F32, 0), (1000, 70, 49, 0, 0, F32, 0)]
DOT_ROWS += [(rows, 70, 50, ta, 0, d, 0) for rows in (17, 21, 25, 27, 28) for ta, d in ((0, F32), (1, F32), (1, F64))]
DOT_ROWS += [(30, 70, 1024, 0, 1, F32, 0)]  # rows that fall into one cache set
# the block of columns that is packed next is fetched; a result so large that its memory is
DOT_ROWS += [(100, 330, 1100, 1, 0, F32, 0), (100, 70, 1100, 1, 0, F64, 0), (600, 500, 20, 0, 1, F32, 0), (500, 601, 90, 1, 0, F32, 0)]
# rows that lie by columns, packed several blocks at a time; few rows, which meet the column panels slice by slice; both
DOT_ROWS += [(403, 130, 520, 1, 0, F32, 0), (405, 70, 280, 1, 0, F64, 0), (131, 610, 1100, 0, 1, F32, 0), (239, 330, 1030, 1, 0, F32, 0)]


@cases("dot", *DOT_ROWS)
def linear(rows: int, columns: int, inner: int, ta: int, tb: int, d: dtype, batch: int) -> Case:
    m, n, k, z = Axis("m", rows), Axis("n", columns), Axis("k", inner), Axis("z", max(batch, 1))
    batches = (z,) if batch else ()
    x = load_of("x", at(z, k, m) if ta else at(z, m, k), d)
    w = load_of("w", at(z, n, k) if tb else at(z, k, n), d)
    wide = I64 if d is I64 else F64 if d is F64 else F32
    dot = Dot("product", x, w, batches, (m,), (n,), (k,))
    y = call("maximum", value("product", wide) + cast(load_of("bias", ix.of(n), d), wide), 0)
    grid = (*batches, m, n)
    b = max(batch, 1)
    scale = 1 if d is not I64 else 5
    arrays = {
        "x": (random(b, *((inner, rows) if ta else (rows, inner))) * scale).astype(d.np),
        "w": (random(b, *((columns, inner) if tb else (inner, columns))) * scale).astype(d.np),
        "bias": random(columns, d=d if d is not I64 else F32).astype(d.np),
        "out": np.zeros((b, rows, columns), wide.np),
    }
    a, c = (arrays[q].astype(float) for q in "xw")
    expected = np.maximum((a.swapaxes(1, 2) if ta else a) @ (c.swapaxes(1, 2) if tb else c) + arrays["bias"].astype(float), 0)
    return Case(
        make("linear_relu", grid, (Phase((k,), (dot,), (Store("out", at(z, m, n), y),)),), arrays),
        arrays,
        {"out": expected},
        tolerance=4e-6,
    )


@cases("dot_updates_a_weight_in_place", (30, 100, 16), (300, 33, 20), (20, 45, 3), (150, 170, 64))
def momentum(rows: int, columns: int, inner: int) -> Case:
    """Its weight and moment are fetched while the product is computed, in the result's orientation or the other, whatever k is."""
    m, n, k = Axis("m", rows), Axis("n", columns), Axis("k", inner)
    arrays = {"g": random(inner, rows), "x": random(inner, columns), "w": random(rows, columns), "m": random(rows, columns)}
    lr = cast(expr("scalar", (), F64, "lr"), F32)
    dot = Dot("grad", load_of("g", at(k, m)), load_of("x", at(k, n)), (), (m,), (n,), (k,))
    moment = load_of("m", at(m, n)) * 0.9 + value("grad")
    stores = (Store("m", at(m, n), moment), Store("w", at(m, n), load_of("w", at(m, n)) - lr * moment))
    grad = arrays["g"].astype(float).T @ arrays["x"] + 0.9 * arrays["m"]
    kernel = make("momentum", (m, n), (Phase((k,), (dot,), stores),), arrays, (ScalarArg("lr", F64),))
    return Case(kernel, arrays, {"m": grad, "w": arrays["w"] - 0.01 * grad}, (0.01,), tolerance=4e-6)


@case
def dot_of_expressions_over_split_axes() -> Case:
    """Heads merged on the way in: rows are (b, t), k is (h, d), and one operand has a prologue."""
    b, t, h, d, n = Axis("b", 3), Axis("t", 5), Axis("h", 4), Axis("d", 6), Axis("n", 10)
    x = random(3, 4, 5, 6)
    arrays = {"x": x, "w": random(10, 24), "out": np.zeros((3, 5, 10), "f")}
    dot = Dot("p", call("tanh", load_of("x", at(b, h, t, d))), load_of("w", at(n, h, d)), (), (b, t), (n,), (h, d))
    kernel = make("merge_heads", (b, t, n), (Phase((h, d), (dot,), (Store("out", at(b, t, n), value("p")),)),), arrays)
    return Case(kernel, arrays, {"out": np.tanh(x.astype(float)).transpose(0, 2, 1, 3).reshape(3, 5, 24) @ arrays["w"].T}, tolerance=4e-6)


@case
def dot_beside_a_sum() -> Case:
    """Not a single product: printed as plain loops, and still right."""
    m, n, k = Axis("m", 6), Axis("n", 20), Axis("k", 30)
    arrays = {"x": random(6, 30), "w": random(30, 20), "out": np.zeros((6, 20), "f")}
    dot = Dot("p", load_of("x", at(m, k)), load_of("w", at(k, n)), (), (m,), (n,), (k,))
    total = Reduction("s", "sum", load_of("x", at(m, k)))
    kernel = make("dot_and_sum", (m, n), (Phase((k,), (dot, total), (Store("out", at(m, n), value("p") + value("s")),)),), arrays)
    wide = arrays["x"].astype(float)
    return Case(kernel, arrays, {"out": wide @ arrays["w"] + wide.sum(1, keepdims=True)}, tolerance=4e-6)


BUILT = {name: build() for name, build in CASES.items()}


@pytest.fixture(scope="module")
def loaded() -> dict[str, LoadedKernel]:
    """All cases, compiled by one call."""
    return dict(zip(BUILT, load([c.kernel for c in BUILT.values()]), strict=True))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = runtime.get_num_threads()
    yield
    runtime.set_num_threads(before)


def check(kernel: LoadedKernel, c: Case, count: int) -> None:
    """A run with `count` threads gives what is expected and leaves the rest alone."""
    arrays = {n: a.copy() for n, a in c.given.items()}
    run(kernel, arrays, c.scalars, count)
    for buffer, expected in c.expected.items():
        got = arrays[buffer]
        if got.dtype.kind in "ib" or c.tolerance == 0:
            np.testing.assert_array_equal(got, expected)
            continue
        # sums of n terms in float32 lose about sqrt(n) roundings; TOLERANCE counts a few for the longest sums here
        tolerance = c.tolerance if c.tolerance is not None else TOLERANCE[dtypes.from_numpy(got.dtype)]
        np.testing.assert_allclose(got.astype(float), expected, rtol=tolerance, atol=tolerance * max(np.abs(expected).max(), 1e-30))
    for buffer, a in arrays.items():
        if buffer not in c.expected:
            np.testing.assert_array_equal(a, c.given[buffer])


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("name", CASES)
def test_compiled_kernel_equals_numpy(name: str, count: int, loaded: dict[str, LoadedKernel]) -> None:
    check(loaded[name], BUILT[name], count)


@pytest.fixture(scope="module")
def for_all_sizes() -> dict[str, LoadedKernel]:
    """The kernels of all cases as texts whose choices do not depend on sizes: as it is best, on one thread's part each, and together."""
    named = [(f"{name}_{how}", c.kernel, how) for name, c in BUILT.items() for how in (None, False, True)]
    sources = [Source(codegen.emit(canonical(k), shared=True, together=how).replace(SIZES, "")) for _, k, how in named]
    return dict(zip([label for label, _, _ in named], load([k for _, k, _ in named], sources), strict=True))


@pytest.mark.parametrize("how", [None, False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_text_for_all_sizes_means_what_the_kernel_means(name: str, how: bool | None, for_all_sizes: dict[str, LoadedKernel]) -> None:
    for count in (1, 5):
        check(for_all_sizes[f"{name}_{how}"], BUILT[name], count)


@pytest.mark.parametrize("name", ["sums_30000_5_float32_c", "sums_3_40000_float32_x", "softmax_1_50000"])
def test_results_repeat_exactly_for_a_thread_count(name: str, loaded: dict[str, LoadedKernel]) -> None:
    results = []
    for _ in range(5):
        arrays = {n: a.copy() for n, a in BUILT[name].given.items()}
        run(loaded[name], arrays, BUILT[name].scalars, 2)
        results.append(arrays)
    for other in results[1:]:
        for n, a in other.items():
            np.testing.assert_array_equal(a, results[0][n])


# ------------------------------------------------------------------------------------------------ the text


def test_softmax_computes_its_exponential_once() -> None:
    source = codegen.emit(BUILT["softmax_257_100"].kernel)
    assert source.count("tl_exp(") == 1
    assert source.count("for (") == 4


def test_rows_too_long_to_keep_are_computed_again() -> None:
    assert codegen.emit(BUILT["softmax_3_20001"].kernel).count("tl_exp(") == 2


def test_the_exponentials_of_a_row_ask_for_the_next_row_and_the_rows_result() -> None:
    kernel = BUILT["softmax_1100_1001"].kernel
    source = codegen.emit(kernel)
    assert [line.strip() for line in source.splitlines() if "prefetch" in line] == [
        "__builtin_prefetch(&x_0[g_ * 1001 + r1 + 1001]);",
        "__builtin_prefetch(&out_1[g_ * 1001 + r1], 1);",
    ]
    small = BUILT["softmax_257_100"].kernel
    assert "prefetch" not in codegen.emit(small) + codegen.emit(kernel, shared=True)


def test_rows_of_a_product_with_a_vector_share_what_they_read_of_it() -> None:
    source = codegen.emit(BUILT["matrix_vector_130_33_float32"].kernel)
    assert source.count("tl_maximum(") == 1 and source.count("+= ") == 8 + 1  # two sums of four rows, and the step of the loop over rows
    assert "every" not in codegen.emit(BUILT["sums_300_70_float32_r"].kernel)  # nothing is shared


def test_the_text_names_the_users_line_and_buffers() -> None:
    source = codegen.emit(BUILT["dot_updates_a_weight_in_place_30_100_16"].kernel)
    assert "model.py:3" in source and "momentum" in source
    assert "tl_gemm_run_f32" in source
    assert "immintrin" not in source


def test_the_memory_of_an_update_is_fetched_while_its_product_is_computed() -> None:
    source = codegen.emit(BUILT["dot_updates_a_weight_in_place_30_100_16"].kernel)
    (line,) = [text for text in source.splitlines() if "tl_stream streams[]" in text]
    assert line.count(", 400, 4}") == 2  # the weight and its moment: rows of 100 floats
    assert "tl_stream" not in codegen.emit(BUILT["dot_of_expressions_over_split_axes"].kernel)


def test_the_memory_of_a_large_result_is_fetched_while_its_product_is_computed() -> None:
    text = codegen.emit(BUILT["dot_600_500_20_0_1_float32_0"].kernel)
    assert "tl_stream streams[] = {{(const char *)&out_3[0], 2000, 4}};" in text
    assert "tl_stream" not in codegen.emit(BUILT["dot_64_10_128_0_1_float32_0"].kernel)


def test_operands_that_lie_in_one_stride_are_not_copied_by_expressions() -> None:
    source = codegen.emit(BUILT["dot_of_expressions_over_split_axes"].kernel)
    assert "merge_heads_a(" in source and "merge_heads_b(" not in source  # tanh(x) is evaluated, w is read as it lies


def test_contiguous_axes_become_one_loop() -> None:
    i, j, k = Axis("i", 4), Axis("j", 1), Axis("k", 6)
    arrays = {"x": random(24), "y": random(24), "out": random(24)}
    kernel = make(
        "add", (i, j, k), (Phase(stores=(Store("out", at(i, j, k), load_of("x", at(i, j, k)) + load_of("y", at(i, j, k))),)),), arrays
    )
    assert [a.extent for a in collapse_axes(kernel).grid] == [24]
    row = make("add", (i, k), (Phase(stores=(Store("out", at(i, k), load_of("x", at(i, k)) + load_of("y", ix.of(k))),)),), arrays)
    assert [a.extent for a in collapse_axes(row).grid] == [4, 6]


def test_equal_expressions_of_phases_share_their_axes() -> None:
    kernel = collapse_axes(softmax_kernel(4, 5, {"x": random(4, 5), "out": random(4, 5)}))
    assert len({p.reduce for p in kernel.phases}) == 1


def test_names_that_are_no_identifiers_are_harmless(loaded: dict[str, LoadedKernel]) -> None:
    i = Axis("for", 8)
    arrays = {"fc1.weight; }": random(8), "int": np.zeros(8, "f")}
    kernel = make("safe", (i,), (Phase(stores=(Store("int", ix.of(i), load_of("fc1.weight; }", ix.of(i))),)),), arrays)
    (k,) = load([kernel])
    run(k, arrays)
    np.testing.assert_array_equal(arrays["int"], arrays["fc1.weight; }"])
    assert "fc1_weight" in k.source


def test_small_kernels_stay_on_one_thread(loaded: dict[str, LoadedKernel]) -> None:
    assert not loaded["pointwise_17_float32"].parallel
    assert loaded["pointwise_50001_float32"].parallel
    assert codegen.threads_wanted(BUILT["pointwise_50001_float32"].kernel) and not codegen.threads_wanted(
        BUILT["pointwise_17_float32"].kernel
    )


# ------------------------------------------------------------------------------------------------ scalar functions

UNARY = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sigmoid": lambda x: np.where(x > 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))),
    "erf": None,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "trunc": np.trunc,
    "abs": np.abs,
    "sign": np.sign,
    "neg": np.negative,
    "reciprocal": lambda x: 1 / x,
}
# sigmoid adds the roundings of its sum and its quotient to those of exp
LIMIT = {"sigmoid": 2.5} | dict.fromkeys(
    ("exp", "log", "log1p", "expm1", "log2", "tanh", "erf", "sin", "cos", "tan", "sinh", "cosh", "rsqrt"), 2.0
)
SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-40, -1e-40, 3e38, -3e38, 0.5, 2.5, -1.5, 88.8, -87.4, -103.0, -104.5, 9.1], "f"
)


def unary_kernel(op: str, n: int, d: dtype = F32) -> Kernel:
    i = Axis("i", n)
    return make(
        op,
        (i,),
        (Phase(stores=(Store("out", ix.of(i), call(op, load_of("x", ix.of(i), d))),)),),
        {"x": np.zeros(n, d.np), "out": np.zeros(n, d.np)},
    )


def exact(op: str, x: Array) -> Array:
    """The function in double precision."""
    if op == "erf":
        libm = ctypes.CDLL(None).erf
        libm.restype, libm.argtypes = ctypes.c_double, [ctypes.c_double]
        return np.array([libm(v) for v in x])
    with np.errstate(all="ignore"):
        return np.asarray(UNARY[op](x))  # type: ignore[misc]


@pytest.fixture(scope="module")
def functions() -> dict[str, LoadedKernel]:
    n = 20000
    return dict(zip(UNARY, load([unary_kernel(op, n) for op in UNARY]), strict=True))


@pytest.mark.parametrize("op", UNARY)
def test_float_functions_are_within_two_ulp(op: str, functions: dict[str, LoadedKernel]) -> None:
    rng = np.random.default_rng(1)
    n = 20000
    x = np.concatenate(
        [rng.standard_normal(n // 2), rng.uniform(-90, 90, n // 4), rng.standard_normal(n // 4) * 10.0 ** rng.uniform(-6, 4, n // 4)]
    ).astype("f")
    if op in ("log", "log2", "sqrt", "rsqrt"):
        x = np.abs(x)
    if op == "log1p":
        x = np.maximum(x, np.float32(-0.999))
    if op in ("asin", "acos"):
        x = np.clip(x, -1, 1)
    out = np.zeros_like(x)
    run(functions[op], {"x": x, "out": out})
    wanted = exact(op, x.astype(float))
    inside = np.isfinite(wanted) & (np.abs(wanted) < 3.4e38)
    ulp = np.spacing(np.maximum(np.abs(wanted[inside]), 1.2e-38).astype("f")).astype(float)
    error = np.abs(out[inside] - wanted[inside]) / ulp
    assert error.max() <= LIMIT.get(op, 1.0), (op, error.max(), x[inside][error.argmax()])


@pytest.mark.parametrize("op", UNARY)
def test_special_values_are_right(op: str, functions: dict[str, LoadedKernel]) -> None:
    x = np.resize(SPECIAL, 20000)
    if op in ("sin", "cos", "tan"):
        x = np.where(np.abs(x) > 1e37, np.float32(1), x)  # the reduction is good below 2^50
    out = np.zeros_like(x)
    run(functions[op], {"x": x, "out": out})
    with np.errstate(all="ignore"):
        wanted = exact(op, x.astype(float)).astype("f")
    np.testing.assert_array_equal(np.isnan(out), np.isnan(wanted))
    number = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(out[number]), np.signbit(wanted[number]))
    np.testing.assert_allclose(out[number], wanted[number], rtol=3e-7, atol=1.5e-45)  # an ulp, and one denormal


def binary(op: str, x: Array, y: Array) -> Array:
    d, n = dtypes.from_numpy(x.dtype), x.size
    i = Axis("i", n)
    e = call(op, load_of("x", ix.of(i), d), load_of("y", ix.of(i), d))
    out = np.zeros(n, e.dtype.np)
    arrays = {"x": x, "y": y, "out": out}
    (k,) = load([make(op, (i,), (Phase(stores=(Store("out", ix.of(i), e),)),), arrays)])
    run(k, arrays)
    return out


@pytest.mark.parametrize("op", ["add", "maximum", "minimum", "lt", "eq", "ne", "ge", "pow", "floordiv", "mod", "fmod", "atan2"])
def test_binary_float_functions_treat_special_values_as_numpy(op: str) -> None:
    values = np.array([0.0, -0.0, 1, -1, 2, -2, 0.5, -0.5, 3, -3, 2.5, -7.25, np.inf, -np.inf, np.nan, 1e-40, 3e38, 33], "f")
    x, y = (a.ravel().copy() for a in np.meshgrid(values, values))
    numpy = {
        "lt": np.less,
        "eq": np.equal,
        "ne": np.not_equal,
        "ge": np.greater_equal,
        "pow": np.power,
        "floordiv": np.floor_divide,
        "mod": np.remainder,
        "fmod": np.fmod,
        "atan2": np.arctan2,
    }
    with np.errstate(all="ignore"):
        wanted = numpy.get(op, getattr(np, op, None))(x, y)  # type: ignore[misc]
    got = binary(op, x, y)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    number = ~np.isnan(wanted)
    if op not in ("maximum", "minimum"):  # either zero is the larger one
        np.testing.assert_array_equal(np.signbit(got[number]), np.signbit(wanted[number]))
    np.testing.assert_allclose(got[number].astype(float), wanted[number].astype(float), rtol=3e-7, atol=1.5e-45)


def test_power_is_within_two_ulp() -> None:
    rng = np.random.default_rng(0)
    x, y = np.abs(rng.standard_normal(5000) * 10).astype("f"), (rng.standard_normal(5000) * 8).astype("f")
    wanted = np.power(x.astype(float), y.astype(float))
    inside = (wanted > 1.2e-38) & (wanted < 3.4e38)
    error = np.abs(binary("pow", x, y)[inside] - wanted[inside]) / np.spacing(wanted[inside].astype("f"))
    assert error.max() <= 2


@pytest.mark.parametrize("d", [dtypes.int8, dtypes.int16, I32, I64, dtypes.uint8], ids=lambda d: d.name)
@pytest.mark.parametrize("op", ["add", "mul", "floordiv", "mod", "fmod", "maximum", "and", "xor"])
def test_integers_wrap_and_division_by_zero_gives_zero(op: str, d: dtype) -> None:
    info = np.iinfo(d.np)
    values = np.array([0, 1, 2, 3, 7, info.max, info.min, info.max - 1, info.min + 1, *([-1, -2, -7] if info.min < 0 else [])], d.np)
    x, y = (a.ravel().copy() for a in np.meshgrid(values, values))
    numpy = {
        "add": np.add,
        "mul": np.multiply,
        "floordiv": np.floor_divide,
        "mod": np.remainder,
        "fmod": np.fmod,
        "maximum": np.maximum,
        "and": np.bitwise_and,
        "xor": np.bitwise_xor,
    }
    with np.errstate(all="ignore"):
        wanted = numpy[op](x, y)
    np.testing.assert_array_equal(binary(op, x, y), wanted)


@pytest.mark.parametrize("d", [F16, BF16], ids=lambda d: d.name)
def test_sixteen_bit_floats_round_to_nearest_even(d: dtype) -> None:
    bits = np.arange(0, 1 << 16, dtype=np.uint16).view(d.np)
    exactly = bits[np.isfinite(bits.astype("f"))].astype("f")
    steps = np.sort(exactly)
    x = np.concatenate(
        [steps, steps[1:] / 2 + steps[:-1] / 2, np.array([np.inf, -np.inf, np.nan, 3.4e38, -0.0, 65519.0, 65520.0], "f")]
    ).astype("f")
    i = Axis("i", x.size)
    arrays = {"x": x, "out": np.zeros(x.size, d.np)}
    (k,) = load([make("round", (i,), (Phase(stores=(Store("out", ix.of(i), cast(load_of("x", ix.of(i)), d)),)),), arrays)])
    run(k, arrays)
    with np.errstate(over="ignore"):
        wanted = x.astype(d.np)
    np.testing.assert_array_equal(arrays["out"].astype("f"), wanted.astype("f"))


def test_where_and_logic_on_booleans() -> None:
    i = Axis("i", 50)
    flag = load_of("flag", ix.of(i), BOOL)
    arrays = {"flag": np.arange(50) % 3 == 0, "x": random(50), "out": np.zeros(50, "f"), "inverse": np.zeros(50, bool)}
    x = load_of("x", ix.of(i))
    stores = (Store("out", ix.of(i), where(call("and", flag, x > 0.0), x, 0.0)), Store("inverse", ix.of(i), ~flag))
    (k,) = load([make("logic", (i,), (Phase(stores=stores),), arrays)])
    run(k, arrays)
    np.testing.assert_array_equal(arrays["out"], np.where(arrays["flag"] & (arrays["x"] > 0), arrays["x"], 0))
    np.testing.assert_array_equal(arrays["inverse"], ~arrays["flag"])
