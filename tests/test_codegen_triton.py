"""Triton source made from hand-built loop nests, run in Triton's interpreter against NumPy in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from torchlet import dtypes
from torchlet.compiler.codegen.triton import TritonKernel, emit
from torchlet.compiler.loops import Buffer, Dot, Kernel, Phase, Reduction, ScalarArg, Store
from torchlet.compiler.tile import Tile
from torchlet.dtypes import bfloat16, bool_, dtype, float16, float32, float64, int8, int32, int64, uint8
from torchlet.expr import Expr, call, cast, const, expr, where
from torchlet.index import ZERO, Axis, Index, floordiv, mod, of
from torchlet.runtime.interpreter import run


def load(buffer: str, index: Index, d: dtype = float32, *mask: Expr) -> Expr:
    return expr("load", mask, d, (buffer, index))


def value(name: str, d: dtype = float32) -> Expr:
    return expr("value", (), d, name)


def scalar(name: str, d: dtype = float64) -> Expr:
    return expr("scalar", (), d, name)


def position(index: Index) -> Expr:
    return expr("index", (), int64, index)


def kernel(
    name: str,
    grid: tuple[Axis, ...],
    phases: tuple[Phase, ...],
    inputs: dict[str, np.ndarray],
    outputs: dict[str, np.ndarray],
    scalars: tuple[ScalarArg, ...] = (),
    role: str = "output",
) -> Kernel:
    buffers = [Buffer(n, dtypes.from_numpy(a.dtype), a.size, "input") for n, a in inputs.items()]
    buffers += [Buffer(n, dtypes.from_numpy(a.dtype), a.size, role) for n, a in outputs.items()]
    return Kernel(name, grid, phases, tuple(buffers), scalars, ("model.py:7",))


def execute(
    grid: tuple[Axis, ...],
    phases: tuple[Phase, ...],
    inputs: dict[str, np.ndarray],
    outputs: dict[str, np.ndarray],
    scalars: dict[str, float] | None = None,
    tile: Tile | None = None,
) -> TritonKernel:
    """Emit the kernel and run it; `outputs` are filled in place."""
    kinds = tuple(
        ScalarArg(n, dtypes.bool_ if isinstance(v, bool) else int64 if isinstance(v, int) else float64) for n, v in (scalars or {}).items()
    )
    tk = emit(kernel("k", grid, phases, inputs, outputs, kinds), tile=tile)
    run(tk, [*inputs.values(), *outputs.values()], list((scalars or {}).values()))
    return tk


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pointwise(e: Callable[..., Expr], *inputs: np.ndarray, out: np.dtype | type = np.float32) -> np.ndarray:
    """Apply an expression to flat arrays of equal length."""
    i = Axis("i", inputs[0].size)
    loads = [load(f"x{k}", of(i), dtypes.from_numpy(a.dtype)) for k, a in enumerate(inputs)]
    y = np.zeros(inputs[0].size, out)
    execute((i,), (Phase(stores=(Store("y", of(i), e(*loads)),)),), {f"x{k}": a for k, a in enumerate(inputs)}, {"y": y})
    return y


# ---- pointwise -------------------------------------------------------------------------------------------------------------------


def test_add_of_a_size_that_no_block_divides() -> None:
    a, b = random(1003), random(1003, seed=1)
    np.testing.assert_array_equal(pointwise(lambda x, y: x + y, a, b), a + b)


def test_gelu_chain_is_one_load_and_one_store() -> None:
    i = Axis("i", 3000)
    x = load("x", of(i))
    gelu = x * 0.5 * (1.0 + call("erf", x * math.sqrt(0.5)))
    a, y = random(3000), np.zeros(3000, np.float32)
    tk = execute((i,), (Phase(stores=(Store("y", of(i), gelu),)),), {"x": a}, {"y": y})
    expected = a * 0.5 * (1 + np.vectorize(math.erf)(a.astype(float) * math.sqrt(0.5)))
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-7)
    assert tk.source.count("tl.load") == 1 and tk.source.count("tl.store") == 1


def test_broadcast_reads_the_short_operand_by_remainder() -> None:
    i, j = Axis("i", 13), Axis("j", 70)
    a, b, y = random(13, 70), random(70, seed=1), np.zeros((13, 70), np.float32)
    execute(
        (i, j),
        (Phase(stores=(Store("y", of(i) * 70 + of(j), load("a", of(i) * 70 + of(j)) * load("b", of(j))),)),),
        {"a": a, "b": b},
        {"y": y},
    )
    np.testing.assert_array_equal(y, a * b)


@pytest.mark.parametrize("shape", [(2, 33, 65), (1, 8, 8), (3, 40, 9)])
def test_transpose_uses_two_dimensional_blocks(shape: tuple[int, int, int]) -> None:
    z, m, n = shape
    i, j, k = Axis("i", z), Axis("j", n), Axis("k", m)  # the result is (z, n, m)
    a, y = random(z, m, n), np.zeros((z, n, m), np.float32)
    store = Store("y", of(i) * (m * n) + of(j) * m + of(k), load("a", of(i) * (m * n) + of(k) * n + of(j)) + 1.0)
    tk = execute((i, j, k), (Phase(stores=(store,)),), {"a": a}, {"y": y})
    np.testing.assert_array_equal(y, a.transpose(0, 2, 1) + 1)
    assert "BLOCK_Y" in tk.constexprs


def test_quotients_and_remainders_in_indices() -> None:
    i = Axis("i", 60)
    a, y = random(60), np.zeros(60, np.float32)
    index = mod(of(i), 5) * 12 + floordiv(of(i), 5)  # a transpose of (12, 5), flattened
    execute((i,), (Phase(stores=(Store("y", of(i), load("a", index)),)),), {"a": a}, {"y": y})
    np.testing.assert_array_equal(y, a.reshape(5, 12).T.ravel())


def test_masked_load_pads_with_zero_or_with_another_value() -> None:
    i = Axis("i", 20)
    inside = call("and", call("ge", position(of(i)), 3), call("lt", position(of(i)), 13))
    a, y, z = random(10), np.zeros(20, np.float32), np.zeros(20, np.float32)
    shifted = of(i) - 3
    phase = Phase(
        stores=(
            Store("y", of(i), load("a", shifted, float32, inside)),
            Store("z", of(i), load("a", shifted, float32, inside, const(-7.0, float32))),
        )
    )
    execute((i,), (phase,), {"a": a}, {"y": y, "z": z})
    np.testing.assert_array_equal(y, np.pad(a, (3, 7)))
    np.testing.assert_array_equal(z, np.pad(a, (3, 7), constant_values=-7))


def test_a_store_does_not_change_what_a_sibling_store_reads() -> None:
    i = Axis("i", 50)
    p, m = random(50), random(50, seed=1)
    p0, m0 = p.copy(), m.copy()
    x, y = load("p", of(i)), load("m", of(i))
    execute((i,), (Phase(stores=(Store("m", of(i), x), Store("p", of(i), y))),), {}, {"p": p, "m": m})
    np.testing.assert_array_equal(p, m0)
    np.testing.assert_array_equal(m, p0)


def test_scalars_come_as_arguments() -> None:
    i = Axis("i", 40)
    a, y, z = random(40), np.zeros(40, np.float32), np.zeros(40, np.int64)
    step = load("a", of(i)) - cast(scalar("lr"), float32) * 2.0
    phase = Phase(
        stores=(Store("y", of(i), where(scalar("flip", bool_), -step, step)), Store("z", of(i), position(of(i)) * scalar("n", int64)))
    )
    execute((i,), (phase,), {"a": a}, {"y": y, "z": z}, {"lr": 0.1, "n": 2**40, "flip": True})
    np.testing.assert_array_equal(y, -(a - np.float32(0.1) * 2))
    np.testing.assert_array_equal(z, np.arange(40) * 2**40)


def test_a_constant_fills() -> None:
    i = Axis("i", 9)
    y, z = np.zeros(9, np.float32), np.zeros(9, np.bool_)
    execute(
        (i,), (Phase(stores=(Store("y", of(i), const(-math.inf, float32)), Store("z", of(i), const(True, bool_)))),), {}, {"y": y, "z": z}
    )
    assert np.all(np.isneginf(y)) and z.all()


def test_zero_dimensional_and_empty_grids() -> None:
    a, y = random(1), np.zeros(1, np.float32)
    execute((), (Phase(stores=(Store("y", ZERO, load("a", ZERO) * 3.0),)),), {"a": a}, {"y": y})
    np.testing.assert_array_equal(y, a * 3)
    i = Axis("i", 0)
    tk = emit(Kernel("k", (i,), (Phase(stores=(Store("y", of(i), const(1.0, float32)),)),), (Buffer("y", float32, 0, "output"),)))
    assert tk.grid[0] == 0


def test_names_of_the_user_become_identifiers() -> None:
    i = Axis("i", 5)
    k = Kernel(
        "fc1.weight update-1",
        (i,),
        (Phase(stores=(Store("fc1.weight", of(i), load("fc1_weight", of(i)) + load("2", of(i))),)),),
        (Buffer("fc1.weight", float32, 5), Buffer("fc1_weight", float32, 5), Buffer("2", float32, 5)),
    )
    tk, y = emit(k), np.zeros(5, np.float32)
    run(tk, [y, np.ones(5, np.float32), np.ones(5, np.float32)])
    assert y.tolist() == [2.0] * 5 and len(tk.signature) == 4


UNARY = {
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf, otypes=[float]),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "trunc": np.trunc,
    "reciprocal": lambda x: 1 / x,
}


@pytest.mark.parametrize("d", [float32, float64], ids=str)
@pytest.mark.parametrize("op", UNARY)
def test_unary_functions_match_numpy(op: str, d: dtype) -> None:
    x = np.concatenate(
        [
            np.linspace(-9, 9, 181),
            np.geomspace(1e-6, 80, 60),
            -np.geomspace(1e-6, 80, 60),
            [0.5, 1.5, 2.5, -0.5, -1.5, 0.0, math.inf, -math.inf, math.nan],
        ]
    )
    x = x.astype(d.np)
    with np.errstate(all="ignore"):
        expected = UNARY[op](x.astype(float))
    got = pointwise(lambda e: call(op, e), x, out=d.np)
    # acos next to 1 and log next to 1 lose nothing by themselves; tan and sin of 80 do, by the rounding of their argument in NumPy too
    np.testing.assert_allclose(
        got, expected.astype(d.np), rtol=1e-6 if d is float32 else 2e-14, atol=1e-7 if d is float32 and op in ("tan", "acos") else 1e-15
    )


def fmod_floor(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.mod(x, y)


BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "mod": np.mod,
    "fmod": np.fmod,
    "floordiv": np.floor_divide,
    "pow": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "atan2": np.arctan2,
}


@pytest.mark.parametrize("op", BINARY)
def test_binary_functions_match_numpy(op: str) -> None:
    numbers = np.array([-3.5, -2, -1, -0.25, 0.0, 0.3, 1, 2, 3, 7.75, math.inf, -math.inf, math.nan], np.float32)
    x, y = (a.ravel() for a in np.meshgrid(numbers, numbers))
    if op in ("mod", "fmod", "floordiv"):
        keep = np.isfinite(x) & np.isfinite(y) & (y != 0)
        x, y = x[keep], y[keep]
    with np.errstate(all="ignore"):
        expected = BINARY[op](x.astype(float), y.astype(float))
    np.testing.assert_allclose(pointwise(lambda a, b: call(op, a, b), x, y), expected.astype(np.float32), rtol=1e-6)


def test_power_is_accurate_for_large_results() -> None:
    x = np.linspace(1.0, 9.0, 200, dtype=np.float32)
    np.testing.assert_allclose(pointwise(lambda a: call("pow", a, 40.0), x), x.astype(float) ** 40, rtol=3e-7)


@pytest.mark.parametrize("op", ["add", "sub", "mul", "mod", "floordiv", "maximum", "minimum", "and", "or", "xor", "pow"])
@pytest.mark.parametrize("np_type", [np.int8, np.uint8, np.int32, np.int64])
def test_integer_arithmetic_wraps_and_divides_as_numpy(op: str, np_type: type) -> None:
    x, y = (a.ravel().astype(np_type) for a in np.meshgrid([-100, -7, -1, 0, 1, 5, 90], [-5, -2, 1, 2, 3, 77]))
    function = {"mod": np.mod, "floordiv": np.floor_divide, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}.get(
        op
    ) or BINARY[op]
    if op == "pow":
        x, y = x[y.astype(np.int64) >= 0], y[y.astype(np.int64) >= 0]
        y = np.minimum(y, 9).astype(np_type)
    with np.errstate(all="ignore"):
        expected = function(x, y)
    np.testing.assert_array_equal(pointwise(lambda a, b: call(op, a, b), x, y, out=np_type), expected)


def test_shifts_negation_and_signs_of_integers() -> None:
    x = np.array([-9, -1, 0, 1, 8, 100], np.int32)
    np.testing.assert_array_equal(pointwise(lambda a: call("rshift", a, 2), x, out=np.int32), x >> 2)
    np.testing.assert_array_equal(pointwise(lambda a: call("lshift", a, 3), x, out=np.int32), x << 3)
    np.testing.assert_array_equal(pointwise(lambda a: call("neg", a), x, out=np.int32), -x)
    np.testing.assert_array_equal(pointwise(lambda a: call("abs", a), x, out=np.int32), abs(x))
    np.testing.assert_array_equal(pointwise(lambda a: call("sign", a), x, out=np.int32), np.sign(x))


def test_bool_logic_and_predicates() -> None:
    x = np.array([0.0, 1.0, math.nan, math.inf, -2.0], np.float32)
    flags = np.array([True, False, True, False, True])
    np.testing.assert_array_equal(pointwise(lambda a: call("isnan", a), x, out=np.bool_), np.isnan(x))
    np.testing.assert_array_equal(pointwise(lambda a: call("isinf", a), x, out=np.bool_), np.isinf(x))
    np.testing.assert_array_equal(pointwise(lambda a, b: call("and", ~a, b > 0.5), flags, x, out=np.bool_), ~flags & (x > 0.5))
    np.testing.assert_array_equal(pointwise(lambda a, b: call("xor", a, b), flags, ~flags, out=np.bool_), np.ones(5, bool))
    np.testing.assert_array_equal(pointwise(lambda a: cast(a, float32) * 2.0, flags), flags * np.float32(2))
    np.testing.assert_array_equal(pointwise(lambda a, b: where(a, b, 0.0), flags, x), np.where(flags, x, 0).astype(np.float32))


@pytest.mark.parametrize(
    "source, to",
    [
        (float32, int32),
        (float32, uint8),
        (float32, int8),
        (int64, float32),
        (int32, int8),
        (float64, bfloat16),
        (int64, bool_),
        (float32, float16),
        (bfloat16, float64),
        (bool_, int64),
        (uint8, float32),
        (int8, int64),
        (float16, bfloat16),
    ],
    ids=str,
)
def test_casts_match_numpy(source: dtype, to: dtype) -> None:
    x = np.array([0, 1, 2, 3, 100, 17] if source in (bool_, uint8) or to is uint8 else [0, 1.75, -2.25, 3, -100, 17.3]).astype(source.np)
    np.testing.assert_array_equal(pointwise(lambda a: cast(a, to), x, out=to.np), x.astype(to.np))


@pytest.mark.parametrize("np_type, unit", [(ml_dtypes.bfloat16, 2**-8), (np.float16, 2**-11)])
def test_16_bit_floats_compute_in_32_bits_and_round_once(np_type: type, unit: float) -> None:
    a, b = random(500).astype(np_type), random(500, seed=1).astype(np_type)
    got = pointwise(lambda x, y: call("exp", x * y) + 1.0, a, b, out=np_type)
    expected = (np.exp(a.astype(float) * b.astype(float)) + 1).astype(np.float32)
    assert np.all(np.abs(got.astype(float) - expected) <= unit * np.abs(expected) * 1.01)


def test_long_chain_needs_no_recursion() -> None:
    def chain(x: Expr) -> Expr:
        for _ in range(1500):
            x = x + 1.0
        return x

    a = random(8)
    np.testing.assert_allclose(pointwise(chain, a), a + 1500, rtol=1e-4)


def test_a_kernel_may_have_the_name_of_a_device_function() -> None:
    i = Axis("i", 5)
    for name in ("tanh", "tl", "lambda"):
        k = Kernel(
            name,
            (i,),
            (Phase(stores=(Store("y", of(i), call("tanh", load("x", of(i)))),)),),
            (Buffer("x", float32, 5), Buffer("y", float32, 5)),
        )
        x, y = random(5), np.zeros(5, np.float32)
        run(emit(k), [x, y])
        np.testing.assert_allclose(y, np.tanh(x), rtol=1e-6)


# ---- gather, scatter, random -----------------------------------------------------------------------------------------------------


def test_gather_reads_rows_by_index() -> None:
    i, j = Axis("i", 11), Axis("j", 6)
    table, ids, y = random(30, 6), np.random.default_rng(2).integers(0, 30, 11), np.zeros((11, 6), np.float32)
    row = load("ids", of(i), int64)
    execute(
        (i, j),
        (Phase(stores=(Store("y", of(i) * 6 + of(j), load("table", of(row) * 6 + of(j))),)),),
        {"table": table, "ids": ids},
        {"y": y},
    )
    np.testing.assert_array_equal(y, table[ids])


def test_a_gathered_position_can_be_an_index_itself_and_be_divided() -> None:
    i = Axis("i", 24)
    x, order, ids = random(60), np.random.default_rng(1).permutation(24), np.random.default_rng(2).integers(0, 60, 24)
    y = np.zeros(24, np.float32)
    inner = load("ids", of(load("order", of(i), int64)), int64)
    outer = floordiv(of(inner) + of(i), 2)  # a data-dependent term inside a quotient
    execute((i,), (Phase(stores=(Store("y", of(i), load("x", outer)),)),), {"x": x, "order": order, "ids": ids}, {"y": y})
    np.testing.assert_array_equal(y, x[(ids[order] + np.arange(24)) // 2])


def test_scatter_add_combines_points_that_meet() -> None:
    i, j = Axis("i", 40), Axis("j", 6)
    grad, ids, y = random(40, 6), np.random.default_rng(2).integers(0, 5, 40), np.ones((5, 6), np.float32)
    row = load("ids", of(i), int64)
    execute(
        (i, j), (Phase(stores=(Store("y", of(row) * 6 + of(j), load("g", of(i) * 6 + of(j)), "add"),)),), {"g": grad, "ids": ids}, {"y": y}
    )
    expected = np.ones((5, 6))
    np.add.at(expected, ids, grad)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_scatter_add_of_a_constant_counts_every_point() -> None:
    i = Axis("i", 300)
    ids, y = np.random.default_rng(2).integers(0, 4, 300), np.zeros(4, np.float32)
    execute(
        (i,),
        (Phase(stores=(Store("y", of(load("ids", of(i), int64)), const(1.0, float32), "add"), Store("n", ZERO, const(2, int64), "add"))),),
        {"ids": ids},
        {"y": y, "n": (n := np.zeros(1, np.int64))},
    )
    np.testing.assert_array_equal(y, np.bincount(ids, minlength=4))
    assert n[0] == 600


def philox(seed: int, offset: int, index: np.ndarray) -> np.ndarray:
    """Philox4x32-10 (Salmon et al. 2011): key = seed, counter = (index, offset), low words first. Shape (4, n), uint32."""
    low = np.uint64(0xFFFFFFFF)
    c = [
        index.astype(np.uint64) & low,
        index.astype(np.uint64) >> np.uint64(32),
        np.full(index.shape, offset & 0xFFFFFFFF, np.uint64),
        np.full(index.shape, offset >> 32, np.uint64),
    ]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(key[0]), p1 & low, (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(key[1]), p0 & low]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c).astype(np.uint32)


def test_the_reference_philox_gives_the_published_numbers() -> None:
    assert [hex(x) for x in philox(0, 0, np.array([0]))[:, 0]] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]


@pytest.mark.parametrize("seed, offset", [(0, 0), (0x123456789ABCDEF, 2**33 + 5)])
def test_philox_lanes_match_the_reference(seed: int, offset: int) -> None:
    i = Axis("i", 70)
    y = np.zeros((4, 70), np.int64)
    lanes = [expr("philox", (scalar("seed", int64), scalar("offset", int64), position(of(i) + 2**31)), int64, lane) for lane in range(4)]
    tk = execute(
        (i,),
        (Phase(stores=tuple(Store("y", of(i) + 70 * lane, e) for lane, e in enumerate(lanes))),),
        {},
        {"y": y},
        {"seed": seed, "offset": offset},
    )
    np.testing.assert_array_equal(y, philox(seed, offset, np.arange(70) + 2**31))
    assert tk.source.count("tl.philox") == 1


def test_dropout_keeps_and_scales() -> None:
    i = Axis("i", 400)
    a, y = random(400), np.zeros(400, np.float32)
    bits = expr("philox", (scalar("seed", int64), const(0, int64), position(of(i))), int64, 0)
    uniform = cast(call("rshift", bits, 8), float32) * 2.0**-24
    execute(
        (i,),
        (Phase(stores=(Store("y", of(i), where(uniform >= 0.25, load("a", of(i)) * (1 / 0.75), 0.0)),)),),
        {"a": a},
        {"y": y},
        {"seed": 77},
    )
    keep = (philox(77, 0, np.arange(400))[0] >> 8).astype(np.float32) * np.float32(2.0**-24) >= 0.25
    np.testing.assert_allclose(y, np.where(keep, a / np.float32(0.75), 0), rtol=1e-6)


# ---- reductions ------------------------------------------------------------------------------------------------------------------

LOOPED = Tile("rows", {"x": 1, "r": 32}, 1, looped=frozenset("r"))
LOOPED_ROWS = Tile("rows", {"x": 4, "r": 32}, 1, looped=frozenset("r"))
SEVERAL_ROWS = Tile("rows", {"x": 4, "r": 128}, 1)
TILES = [None, LOOPED, LOOPED_ROWS, SEVERAL_ROWS]
TILE_NAMES = ["chosen", "looped", "looped_rows", "several_rows"]


def softmax_phases(i: Axis, j: Axis) -> tuple[Phase, ...]:
    x = load("x", of(i) * j.extent + of(j))
    shifted = call("exp", x - value("m"))
    return (
        Phase((j,), (Reduction("m", "max", x),)),
        Phase((j,), (Reduction("s", "sum", shifted),)),
        Phase((j,), (), (Store("y", of(i) * j.extent + of(j), shifted / value("s")),)),
    )


@pytest.mark.parametrize("tile", TILES, ids=TILE_NAMES)
def test_softmax(tile: Tile | None) -> None:
    i, j = Axis("i", 7), Axis("j", 100)
    x, y = random(7, 100) * 5, np.zeros((7, 100), np.float32)
    execute((i, j)[:1], softmax_phases(i, j), {"x": x}, {"y": y}, tile=tile)
    e = np.exp(x - x.max(1, keepdims=True).astype(float))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=2e-6)


def test_softmax_reads_its_input_once() -> None:
    i, j = Axis("i", 7), Axis("j", 100)
    x, y = random(7, 100), np.zeros((7, 100), np.float32)
    source = execute((i,), softmax_phases(i, j), {"x": x}, {"y": y}).source
    assert source.count("tl.load") == 1 and source.count("tl.exp") == 1


def test_phases_with_other_axis_names_share_their_loads() -> None:
    i, j, k = Axis("i", 7), Axis("j", 100), Axis("k", 100)
    x, y = random(7, 100), np.zeros((7, 100), np.float32)
    phases = (
        Phase((j,), (Reduction("m", "max", load("x", of(i) * 100 + of(j))),)),
        Phase((k,), (), (Store("y", of(i) * 100 + of(k), load("x", of(i) * 100 + of(k)) - value("m")),)),
    )
    source = execute((i,), phases, {"x": x}, {"y": y}).source
    np.testing.assert_array_equal(y, x - x.max(1, keepdims=True))
    assert source.count("tl.load") == 1


@pytest.mark.parametrize("tile", TILES, ids=TILE_NAMES)
def test_layer_norm_with_weight_and_bias(tile: Tile | None) -> None:
    i, j = Axis("i", 9), Axis("j", 96)
    x, w, b, y, mean = random(9, 96) + 3, random(96, seed=1), random(96, seed=2), np.zeros((9, 96), np.float32), np.zeros(9, np.float32)
    e = load("x", of(i) * 96 + of(j))
    centred = e - value("sum") * (1 / 96)
    phases = (
        Phase((j,), (Reduction("sum", "sum", e),), (Store("mean", of(i), value("sum") * (1 / 96)),)),
        Phase((j,), (Reduction("var", "sum", centred * centred),)),
        Phase(
            (j,),
            (),
            (
                Store(
                    "y", of(i) * 96 + of(j), centred * call("rsqrt", value("var") * (1 / 96) + 1e-5) * load("w", of(j)) + load("b", of(j))
                ),
            ),
        ),
    )
    execute((i,), phases, {"x": x, "w": w, "b": b}, {"y": y, "mean": mean}, tile=tile)
    x64 = x.astype(float)
    expected = (x64 - x64.mean(1, keepdims=True)) / np.sqrt(x64.var(1, keepdims=True) + 1e-5) * w + b
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(mean, x64.mean(1), rtol=1e-6)


COMBINES = {
    "sum": np.sum,
    "prod": np.prod,
    "max": np.max,
    "min": np.min,
    "any": np.any,
    "all": np.all,
    "argmax": np.argmax,
    "argmin": np.argmin,
}


def reduce_rows(combine: str, x: np.ndarray, tile: Tile | None) -> np.ndarray:
    i, j = Axis("i", x.shape[0]), Axis("j", x.shape[1])
    e = load("x", of(i) * x.shape[1] + of(j), dtypes.from_numpy(x.dtype))
    r = Reduction("r", combine, e if combine not in ("any", "all") or e.dtype is bool_ else call("ne", e, 0))
    y = np.zeros(x.shape[0], r.dtype.np)
    execute((i,), (Phase((j,), (r,), (Store("y", of(i), value("r", r.dtype)),)),), {"x": x}, {"y": y}, tile=tile)
    return y


@pytest.mark.parametrize("tile", TILES, ids=TILE_NAMES)
@pytest.mark.parametrize("np_type", [np.float32, np.int32, np.int64, np.uint8, ml_dtypes.bfloat16])
@pytest.mark.parametrize("combine", COMBINES)
def test_reductions_of_rows(combine: str, np_type: type, tile: Tile | None) -> None:
    x = np.random.default_rng(3).integers(1, 5, (6, 77)).astype(np_type)
    if combine == "prod":
        x[:, 12:] = 1
    if combine in ("any", "all"):
        x[2] = 0
    wide = x.astype(np.float64 if x.dtype.kind not in "iu" else np.int64)
    np.testing.assert_array_equal(reduce_rows(combine, x, tile), COMBINES[combine](wide, axis=1))


@pytest.mark.parametrize("tile", TILES, ids=TILE_NAMES)
@pytest.mark.parametrize("combine", ["max", "min", "argmax", "argmin"])
def test_nan_wins_and_the_first_of_equals_counts(combine: str, tile: Tile | None) -> None:
    x = np.zeros((7, 77), np.float32)
    x[0, 40], x[0, 60] = math.nan, math.nan
    x[1] = -math.inf
    x[2] = math.inf
    x[3, [5, 70]] = 3.0
    x[4, [6, 71]] = -3.0
    x[5, 3], x[5, 33], x[5, 50] = math.inf, -math.inf, math.nan
    x[6] = math.nan
    np.testing.assert_array_equal(reduce_rows(combine, x, tile), COMBINES[combine](x, axis=1))


@pytest.mark.parametrize("np_type", [np.int8, np.int64])
def test_argmax_of_the_lowest_integers(np_type: type) -> None:
    x = np.full((5, 33), np.iinfo(np_type).min, np_type)
    for tile in TILES:
        np.testing.assert_array_equal(reduce_rows("argmax", x, tile), np.zeros(5))


@pytest.mark.parametrize("combine", ["sum", "argmax"])
def test_reductions_over_two_axes_count_row_major(combine: str) -> None:
    i, j, k = Axis("i", 4), Axis("j", 5), Axis("k", 9)
    x = random(5, 4, 9)
    r = Reduction("r", combine, load("x", of(j) * 36 + of(i) * 9 + of(k)))
    y = np.zeros(4, r.dtype.np)
    execute((i,), (Phase((j, k), (r,), (Store("y", of(i), value("r", r.dtype)),)),), {"x": x}, {"y": y})
    moved = x.transpose(1, 0, 2).reshape(4, 45)
    np.testing.assert_allclose(y, moved.astype(float).sum(1) if combine == "sum" else moved.argmax(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [5, 300])
def test_column_sums_take_blocks_of_neighbouring_columns(rows: int) -> None:
    i, j = Axis("i", 70), Axis("j", rows)
    x, y = random(rows, 70), np.zeros(70, np.float32)
    tk = execute(
        (i,), (Phase((j,), (Reduction("s", "sum", load("x", of(j) * 70 + of(i))),), (Store("y", of(i), value("s")),)),), {"x": x}, {"y": y}
    )
    np.testing.assert_allclose(y, x.astype(float).sum(0), rtol=1e-6, atol=1e-5)
    assert tk.constexprs["BLOCK_X"] >= 8


def test_full_reduction_of_a_large_input() -> None:
    j = Axis("j", 50_000)
    x, y = random(50_000), np.zeros(1, np.float32)
    execute(
        (),
        (Phase((j,), (Reduction("s", "sum", load("x", of(j)) * load("x", of(j))),), (Store("y", ZERO, value("s")),)),),
        {"x": x},
        {"y": y},
    )
    np.testing.assert_allclose(y, (x.astype(float) ** 2).sum(), rtol=1e-6)


@pytest.mark.parametrize("tile", TILES, ids=TILE_NAMES)
def test_sum_of_what_does_not_vary_counts_every_point(tile: Tile | None) -> None:
    i, j = Axis("i", 6), Axis("j", 77)
    x, y = random(6), np.zeros(6, np.float32)
    phase = Phase(
        (j,),
        (Reduction("s", "sum", load("x", of(i))), Reduction("n", "sum", const(1.0, float32))),
        (Store("y", of(i), value("s") / value("n")),),
    )
    execute((i,), (phase,), {"x": x}, {"y": y}, tile=tile)
    np.testing.assert_allclose(y, x, rtol=1e-6)


def test_reductions_over_one_or_no_point() -> None:
    for n, expected in ((1, 7.0), (0, 0.0)):
        i, j = Axis("i", 3), Axis("j", n)
        y = np.full(3, np.nan, np.float32)
        phase = Phase((j,), (Reduction("s", "sum", load("x", of(i) * n + of(j))),), (Store("y", of(i), value("s")),))
        execute((i,), (phase,), {"x": np.full(max(3 * n, 1), 7, np.float32)}, {"y": y})
        np.testing.assert_array_equal(y, expected)


def test_phases_that_reduce_over_different_extents() -> None:
    i, j, k = Axis("i", 5), Axis("j", 40), Axis("k", 13)
    a, b, y = random(5, 40), random(5, 13, seed=1), np.zeros((5, 13), np.float32)
    phases = (
        Phase((j,), (Reduction("s", "sum", load("a", of(i) * 40 + of(j))),)),
        Phase((k,), (Reduction("t", "max", load("b", of(i) * 13 + of(k))),)),
        Phase((k,), (), (Store("y", of(i) * 13 + of(k), load("b", of(i) * 13 + of(k)) * value("s") - value("t")),)),
    )
    execute((i,), phases, {"a": a, "b": b}, {"y": y})
    np.testing.assert_allclose(y, b * a.astype(float).sum(1, keepdims=True) - b.max(1, keepdims=True), rtol=1e-5, atol=1e-5)


def test_cross_entropy_gathers_inside_the_row() -> None:
    i, j = Axis("i", 6), Axis("j", 50)
    x, target, y = random(6, 50), np.random.default_rng(1).integers(0, 50, 6), np.zeros(6, np.float32)
    e = load("x", of(i) * 50 + of(j))
    picked = load("x", of(i) * 50 + of(load("t", of(i), int64)))
    phases = (
        Phase((j,), (Reduction("m", "max", e),)),
        Phase(
            (j,), (Reduction("s", "sum", call("exp", e - value("m"))),), (Store("y", of(i), value("m") + call("log", value("s")) - picked),)
        ),
    )
    execute((i,), phases, {"x": x, "t": target}, {"y": y})
    x64 = x.astype(float)
    np.testing.assert_allclose(y, np.log(np.exp(x64).sum(1)) - x64[np.arange(6), target], rtol=2e-6)


def test_rows_add_into_one_cell() -> None:
    i, j = Axis("i", 10), Axis("j", 33)
    x, y = random(10, 33), np.zeros(1, np.float32)
    for tile in TILES:
        y[:] = 0
        execute(
            (i,),
            (Phase((j,), (Reduction("s", "sum", load("x", of(i) * 33 + of(j))),), (Store("y", ZERO, value("s"), "add"),)),),
            {"x": x},
            {"y": y},
            tile=tile,
        )
        np.testing.assert_allclose(y, x.astype(float).sum(), rtol=1e-5, atol=1e-5)


# ---- products --------------------------------------------------------------------------------------------------------------------


def product(a: Expr, b: Expr, m: Axis, n: Axis, k: Axis, *batch: Axis) -> tuple[Dot, ...]:
    return (Dot("acc", a, b, batch, (m,), (n,), (k,)),)


@pytest.mark.parametrize("np_type", [np.float32, np.float64, ml_dtypes.bfloat16, np.float16, np.int32])
@pytest.mark.parametrize("left, right", ["nn", "nt", "tn", "tt"])
def test_matmul_in_every_orientation_with_bias_and_relu(left: str, right: str, np_type: type) -> None:
    M, N, K = 37, 50, 70
    m, n, k = Axis("m", M), Axis("n", N), Axis("k", K)
    d = dtypes.from_numpy(np.dtype(np_type))
    a, b, bias = ((random(*s, seed=i) * 3).astype(np_type) for i, s in enumerate(((M, K), (K, N), (N,))))
    stored_a, stored_b = np.ascontiguousarray(a.T if left == "t" else a), np.ascontiguousarray(b.T if right == "t" else b)
    dots = product(
        load("a", of(k) * M + of(m) if left == "t" else of(m) * K + of(k), d),
        load("b", of(n) * K + of(k) if right == "t" else of(k) * N + of(n), d),
        m,
        n,
        k,
    )
    acc = dots[0].dtype
    y = np.zeros((M, N), acc.np)
    out = call("maximum", value("acc", acc) + cast(load("bias", of(n), d), acc), 0)
    execute((m, n), (Phase((k,), dots, (Store("y", of(m) * N + of(n), out),)),), {"a": stored_a, "b": stored_b, "bias": bias}, {"y": y})
    expected = np.maximum(a.astype(float) @ b.astype(float) + bias.astype(float), 0)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=3e-5 if acc is float32 else 1e-12)


@pytest.mark.parametrize("M, N, K", [(1, 1, 1), (1, 40, 33), (40, 1, 300), (3, 5, 2), (64, 64, 64)])
def test_matmul_of_odd_sizes(M: int, N: int, K: int) -> None:
    m, n, k = Axis("m", M), Axis("n", N), Axis("k", K)
    a, b, y = random(M, K), random(K, N, seed=1), np.zeros((M, N), np.float32)
    dots = product(load("a", of(m) * K + of(k)), load("b", of(k) * N + of(n)), m, n, k)
    execute((m, n), (Phase((k,), dots, (Store("y", of(m) * N + of(n), value("acc")),)),), {"a": a, "b": b}, {"y": y})
    np.testing.assert_allclose(y, a.astype(float) @ b.astype(float), rtol=1e-6, atol=2e-5)


def test_batched_matmul_over_two_axes_with_a_broadcast_operand() -> None:
    B, H, M, N, K = 2, 3, 20, 18, 24
    h, g, m, n, k = Axis("b", B), Axis("h", H), Axis("m", M), Axis("n", N), Axis("k", K)
    a, b, y = random(B, M, H, K), random(H, K, N, seed=1), np.zeros((B, H, M, N), np.float32)
    dots = product(load("a", ((of(h) * M + of(m)) * H + of(g)) * K + of(k)), load("b", (of(g) * K + of(k)) * N + of(n)), m, n, k, h, g)
    execute(
        (h, g, m, n),
        (Phase((k,), dots, (Store("y", ((of(h) * H + of(g)) * M + of(m)) * N + of(n), value("acc") * 0.5),)),),
        {"a": a, "b": b},
        {"y": y},
    )
    np.testing.assert_allclose(y, np.einsum("bmhk,hkn->bhmn", a, b.astype(float)) * 0.5, rtol=1e-6, atol=1e-5)


def test_matmul_evaluates_a_prologue_and_keeps_ragged_k_out() -> None:
    M, N, K = 20, 30, 35
    m, n, k = Axis("m", M), Axis("n", N), Axis("k", K)
    a, b, y = np.abs(random(M, K)) + 0.5, random(K, N, seed=1), np.zeros((M, N), np.float32)
    left = call("log", load("a", of(m) * K + of(k)))  # log(0) outside would be -inf
    right = load("b", of(k) * N + of(n)) * load("s", of(n))
    scale = random(N, seed=2)
    execute(
        (m, n),
        (Phase((k,), product(left, right, m, n, k), (Store("y", of(m) * N + of(n), value("acc")),)),),
        {"a": a, "b": b, "s": scale},
        {"y": y},
    )
    np.testing.assert_allclose(y, np.log(a.astype(float)) @ (b.astype(float) * scale), rtol=1e-6, atol=1e-5)


def test_matmul_over_several_axes_of_each_kind() -> None:
    # a convolution as a product: y[b, i, c] = sum over t, e of x[b, i + t, e] * w[t, e, c]
    B, L, T, E, C = 2, 11, 3, 4, 5
    b, i, c, t, e = Axis("b", B), Axis("i", L - T + 1), Axis("c", C), Axis("t", T), Axis("e", E)
    x, w, y = random(B, L, E), random(T, E, C, seed=1), np.zeros((B, L - T + 1, C), np.float32)
    dot = Dot(
        "acc", load("x", (of(b) * L + of(i) + of(t)) * E + of(e)), load("w", (of(t) * E + of(e)) * C + of(c)), (), (b, i), (c,), (t, e)
    )
    tk = execute(
        (b, i, c),
        (Phase((t, e), (dot,), (Store("y", (of(b) * (L - T + 1) + of(i)) * C + of(c), value("acc")),)),),
        {"x": x, "w": w},
        {"y": y},
    )
    expected = sum(x[:, s : s + L - T + 1].astype(float) @ w[s] for s in range(T))
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-5)
    assert "tl.dot" in tk.source


def test_two_products_share_their_left_operand() -> None:
    M, N, K = 20, 30, 40
    m, n, k = Axis("m", M), Axis("n", N), Axis("k", K)
    a, u, v, y = random(M, K), random(K, N, seed=1), random(K, N, seed=2), np.zeros((M, N), np.float32)
    left = load("a", of(m) * K + of(k))
    dots = tuple(Dot(name, left, load(name, of(k) * N + of(n)), (), (m,), (n,), (k,)) for name in "uv")
    tk = execute(
        (m, n),
        (Phase((k,), dots, (Store("y", of(m) * N + of(n), call("sigmoid", value("u")) * value("v")),)),),
        {"a": a, "u": u, "v": v},
        {"y": y},
    )
    a64 = a.astype(float)
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-(a64 @ u))) * (a64 @ v), rtol=1e-5, atol=1e-5)
    assert tk.source.count("tl.load(a_ptr") == 1


def test_a_product_that_feeds_a_row_phase_falls_back_to_sums() -> None:
    M, N, K = 6, 5, 9
    m, n, k = Axis("m", M), Axis("n", N), Axis("k", K)
    a, b, y = random(M, K), random(K, N, seed=1), np.zeros((M, N), np.float32)
    left = load("a", of(m) * K + of(k))
    phases = (
        Phase((k,), (Reduction("s", "sum", left),)),
        Phase((k,), product(left / value("s"), load("b", of(k) * N + of(n)), m, n, k), (Store("y", of(m) * N + of(n), value("acc")),)),
    )
    execute((m, n), phases, {"a": a, "b": b}, {"y": y})
    a64 = a.astype(float)
    np.testing.assert_allclose(y, a64 / a64.sum(1, keepdims=True) @ b, rtol=1e-4, atol=1e-5)


# ---- the interpreter itself ------------------------------------------------------------------------------------------------------

HAND_WRITTEN = """\
import triton
import triton.language as tl


@triton.jit
def scale(x_ptr, factor, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    tl.store(x_ptr + i, x * factor.to(tl.float32), mask=i < n)
"""


def test_interpreter_runs_a_kernel_written_by_hand_and_checks_dtypes() -> None:
    tk = TritonKernel(
        "scale", HAND_WRITTEN, {"x_ptr": "*fp32", "factor": "fp64", "n": "i64", "BLOCK": "constexpr"}, {"BLOCK": 16}, (3, 1, 1), 1, 1, {}
    )
    x = np.arange(40, dtype=np.float32)
    run(tk, [x], [2.0, 40])
    np.testing.assert_array_equal(x, np.arange(40) * 2)
    with pytest.raises(TypeError, match="float64"):
        run(tk, [x.astype(np.float64)], [2.0, 40])


def test_nothing_stays_patched_after_an_interpreted_run() -> None:
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

    before = (tl.sum, tl.load, InterpretedFunction.__call__, InterpreterBuilder.create_dot)
    pointwise(lambda x: x + 1.0, random(4))
    assert (tl.sum, tl.load, InterpretedFunction.__call__, InterpreterBuilder.create_dot) == before


# ---- one pass over long rows -------------------------------------------------------------------------------------------------------


def long_softmax(x: np.ndarray) -> tuple[np.ndarray, str]:
    rows, columns = x.shape
    i, j = Axis("i", rows), Axis("j", columns)
    at = load("x", of(i) * columns + of(j))
    e = call("exp", at - value("m"))
    phases = (
        Phase((j,), (Reduction("m", "max", at),)),
        Phase((j,), (Reduction("s", "sum", e),)),
        Phase((j,), (), (Store("y", of(i) * columns + of(j), e / value("s")),)),
    )
    y = np.zeros_like(x)
    return y, execute((i,), phases, {"x": x}, {"y": y}, tile=Tile("rows", {"x": 2, "r": 256}, 4, looped=frozenset("r"))).source


def test_maximum_and_sum_of_a_long_row_take_one_pass() -> None:
    x = random(3, 1100) * 30
    y, source = long_softmax(x)
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(-1, keepdims=True), rtol=3e-6, atol=1e-12)
    assert source.count("for r_start") == 2 and source.count("tl.load") == 2


def test_one_pass_agrees_with_two_about_infinities_and_nan() -> None:
    x = random(4, 600)
    x[0, :590] = -np.inf  # whole blocks without a finite value
    x[1] = -np.inf
    x[2, 7] = np.nan
    x[3, 599] = np.inf
    y, _ = long_softmax(x)
    e = np.exp(x[0].astype(np.float64) - x[0].max())
    np.testing.assert_allclose(y[0], e / e.sum(), rtol=3e-6)
    assert np.isnan(y[1]).all() and np.isnan(y[2]).all() and np.isnan(y[3, 599])


def test_logsumexp_of_a_long_row_takes_one_pass_and_keeps_its_infinities() -> None:
    x = random(4, 700) * 20
    x[1] = -np.inf
    x[2, 3] = np.inf
    x[3, 600] = np.nan
    i, j = Axis("i", 4), Axis("j", 700)
    at, m = load("x", of(i) * 700 + of(j)), value("m")
    base = where(call("isinf", m), const(0, float32), m)
    total = Reduction("s", "sum", call("exp", at - base))
    phases = (Phase((j,), (Reduction("m", "max", at),)), Phase((j,), (total,), (Store("y", of(i), call("log", value("s")) + base),)))
    y = np.zeros(4, np.float32)
    source = execute((i,), phases, {"x": x}, {"y": y}, tile=Tile("rows", {"x": 1, "r": 128}, 4, looped=frozenset("r"))).source
    top = x[0].max()
    np.testing.assert_allclose(y, [top + np.log(np.exp(x[0].astype(np.float64) - top).sum()), -np.inf, np.inf, np.nan], rtol=1e-6)
    assert source.count("for r_start") == 1
