"""Products on AMX tiles: as exact as multiply-adds, whatever the numbers are; what precision may be given up, and when they are used."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import torchlet
from torchlet import nn
from torchlet.config import config
from torchlet.runtime import cc, cpu

on_tiles = pytest.mark.skipif("amx_bf16" not in cc.features() or not cpu.tiles(), reason="no AMX")
FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "nn": lambda a, b: a @ b,
    "nt": lambda a, b: a @ b.transpose(-1, -2),
    "tn": lambda a, b: a.transpose(-1, -2) @ b,
    "tt": lambda a, b: a.transpose(-1, -2) @ b.transpose(-1, -2),
}


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """`threads(n)` for the length of a test."""
    before = cpu.get_num_threads()
    yield cpu.set_num_threads
    cpu.set_num_threads(before)


def product(a: np.ndarray, b: np.ndarray, precision: str, form: str = "nn") -> np.ndarray:
    """The compiled product; `a` and `b` are given as they stand in it and lie in memory as the form says."""
    a = a if form[0] == "n" else np.ascontiguousarray(a.swapaxes(-1, -2))
    b = b if form[1] == "n" else np.ascontiguousarray(b.swapaxes(-1, -2))
    with config(cpu_float32_dot=precision):
        return torchlet.compile(FORMS[form])(torchlet.tensor(a), torchlet.tensor(b)).numpy()


def error(found: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The largest error, of each element in terms of the sizes of its row and its column."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = np.linalg.norm(a, axis=-1)[..., :, None] * np.linalg.norm(b, axis=-2)[..., None, :]
    return float((np.abs(found - a @ b) / np.where(size == 0, 1, size)).max())


def random(*shape: int) -> np.ndarray:
    return np.random.standard_normal(shape).astype(np.float32)


@on_tiles
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(256, 256, 256), (380, 320, 350), (250, 1500, 600), (1000, 250, 190), (640, 256, 1100)])
def test_products_in_three_parts_are_as_exact_as_multiply_adds(shape: tuple[int, int, int], form: str) -> None:
    m, n, k = shape
    a, b = random(m, k), random(k, n)
    found, plain = product(a, b, "bf16x6", form), product(a, b, "ieee", form)
    assert not np.array_equal(found, plain), "it was not done on tiles"
    assert error(found, a, b) <= 1.5 * error(plain, a, b)


@on_tiles
@pytest.mark.parametrize("threads_wanted", [1, 2, 3])
def test_a_long_sum_is_done_panel_by_panel(threads_wanted: int, threads: Callable[[int], None]) -> None:
    threads(threads_wanted)
    a, b = random(320, 12000), random(12000, 320)
    found, plain = product(a, b, "bf16x6"), product(a, b, "ieee")
    assert not np.array_equal(found, plain) and error(found, a, b) <= 1.5 * error(plain, a, b)


@on_tiles
def test_a_matrix_whose_packed_form_exceeds_the_shared_memory_is_done_in_groups() -> None:
    a, b = random(320, 2100), random(2100, 3000)
    found, plain = product(a, b, "bf16x6", "nt"), product(a, b, "ieee", "nt")
    assert not np.array_equal(found, plain) and error(found, a, b) <= 1.5 * error(plain, a, b)


@on_tiles
def test_batches_of_products() -> None:
    a, b = random(5, 250, 288), random(5, 288, 310)
    found, plain = product(a, b, "bf16x6"), product(a, b, "ieee")
    assert not np.array_equal(found, plain) and error(found, a, b) <= 1.5 * error(plain, a, b)


@on_tiles
@pytest.mark.parametrize("form", ["nn", "tt"])
def test_badly_scaled_rows_and_columns_keep_their_digits(form: str) -> None:
    a, b = random(256, 310), random(310, 352)
    a *= (10.0 ** np.linspace(-30, 30, 256)).astype(np.float32)[:, None]
    b *= (10.0 ** np.linspace(7, -7, 352)).astype(np.float32)[None, :]
    found, plain = product(a, b, "bf16x6", form), product(a, b, "ieee", form)
    assert not np.array_equal(found, plain)
    assert error(found, a, b) <= 1.5 * error(plain, a, b)


@on_tiles
def test_rows_too_small_or_too_large_for_tiles_are_done_by_multiply_adds() -> None:
    a, b = random(256, 310), random(310, 352)
    a[64:96] *= 1e-30
    a[160:192] *= 1e28
    b[:, 32:64] *= 1e-25
    found, plain = product(a, b, "bf16x6"), product(a, b, "ieee")
    assert np.array_equal(found[64:96], plain[64:96]) and np.array_equal(found[160:192], plain[160:192])
    assert np.array_equal(found[:, 32:64], plain[:, 32:64])
    assert not np.array_equal(found[:64, :32], plain[:64, :32])
    assert error(found[:, 64:], a, b[:, 64:]) <= 1.5 * error(plain[:, 64:], a, b[:, 64:])


@on_tiles
def test_sums_that_cancel_lose_no_more_than_by_multiply_adds() -> None:
    half = random(288, 208)
    a = np.concatenate([half, half], 1)
    other = random(208, 288)
    b = np.concatenate([other, -other + 1e-4 * random(208, 288)], 0)
    found, plain = product(a, b, "bf16x6"), product(a, b, "ieee")
    assert not np.array_equal(found, plain) and error(found, a, b) <= 1.5 * error(plain, a, b)


@on_tiles
@pytest.mark.parametrize("form", FORMS)
def test_infinities_and_nans_are_where_they_belong(form: str) -> None:
    a, b = random(260, 300), random(300, 330)
    a[5, 7], a[100, 200], b[299, 329], b[17, 40] = np.inf, np.nan, -np.inf, np.nan
    a[200, 299] = 0  # times an infinity
    found = product(a, b, "bf16x6", form)
    with np.errstate(all="ignore"):
        wanted = a.astype(np.float64) @ b.astype(np.float64)
    assert np.array_equal(np.isnan(found), np.isnan(wanted)) and np.array_equal(np.isinf(found), np.isinf(wanted))
    assert np.array_equal(np.sign(found[np.isinf(found)]), np.sign(wanted[np.isinf(wanted)]))
    fine = np.isfinite(wanted)
    assert np.abs(found[fine] - wanted[fine]).max() < 1e-4


@on_tiles
def test_zeros_and_denormals_among_ordinary_numbers() -> None:
    a, b = random(256, 310), random(310, 352)
    a[3], a[40, ::2], b[:, 9], b[::3, 50] = 0, 1e-41, 0, -3e-39
    found, plain = product(a, b, "bf16x6"), product(a, b, "ieee")
    assert not np.array_equal(found, plain)
    assert not found[3].any() and not found[:, 9].any()
    assert error(found, a, b) <= 1.5 * error(plain, a, b)


@on_tiles
def test_a_matrix_of_denormals_is_not_flushed_to_zero() -> None:
    a, b = random(256, 256) * np.float32(1e-38), random(256, 256)
    found = product(a, b, "bf16x6")
    assert np.allclose(found * 1e38, (a.astype(np.float64) @ b) * 1e38, atol=1e-4)


@on_tiles
def test_results_do_not_depend_on_threads_or_runs(threads: Callable[[int], None]) -> None:
    a, b = random(500, 1300), random(1300, 700)
    a[40, 3], b[1200, 650], a[300] = np.inf, 1e25, 1e-33
    found = []
    for n in (1, 2, 3, 2):
        threads(n)
        found.append(product(a, b, "bf16x6").tobytes())
    assert len(set(found)) == 1


@on_tiles
def test_small_products_are_done_by_multiply_adds() -> None:
    for m, n, k in [(64, 256, 784), (256, 784, 64), (16, 1000, 1000), (1000, 16, 1000), (300, 300, 8)]:
        a, b = random(m, k), random(k, n)
        assert np.array_equal(product(a, b, "bf16x6"), product(a, b, "ieee"))


@on_tiles
def test_products_whose_sizes_vary_use_tiles_where_they_are_large() -> None:
    f, plain = (torchlet.compile(lambda a, b: a @ b, dynamic=True) for _ in range(2))
    b = random(350, 352)
    for rows in (300, 420, 8, 351):
        a = random(rows, 350)
        with config(cpu_float32_dot="bf16x6"):
            found = f(torchlet.tensor(a), torchlet.tensor(b)).numpy()
        wanted = plain(torchlet.tensor(a), torchlet.tensor(b)).numpy()
        assert np.array_equal(found, wanted) == (rows == 8)
        assert error(found, a, b) <= 1.5 * error(wanted, a, b)


@on_tiles
def test_a_training_step_updates_its_weights_as_without_tiles() -> None:
    found = []
    for precision in ("ieee", "bf16x6"):
        torchlet.manual_seed(1)
        model = nn.Sequential(nn.Linear(300, 400), nn.GELU(), nn.Linear(400, 260), nn.Tanh(), nn.Linear(260, 10))
        optimizer = torchlet.optim.AdamW(model.parameters(), lr=1e-3)
        x, y = torchlet.randn(512, 300), torchlet.randint(0, 10, (512,))

        @torchlet.compile
        def step(x: Any, y: Any, model: Any = model, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        with config(cpu_float32_dot=precision):
            losses = [step(x, y).item() for _ in range(6)]
        found.append((losses, [p.detach().numpy().copy() for p in model.parameters()]))
    (losses, weights), (tile_losses, tile_weights) = found
    assert losses == pytest.approx(tile_losses, rel=1e-5) and losses != tile_losses
    assert all(np.abs(a - b).max() < 2e-3 for a, b in zip(weights, tile_weights, strict=True))


@on_tiles
def test_the_precision_that_is_permitted_decides_how_many_parts_there_are() -> None:
    a, b = random(256, 512), random(512, 256)
    before = config.cpu_float32_dot
    errors = []
    try:
        for word in ("highest", "high", "medium"):
            torchlet.set_float32_matmul_precision(word)
            errors.append(error(torchlet.compile(FORMS["nn"])(torchlet.tensor(a), torchlet.tensor(b)).numpy(), a, b))
            assert error((torchlet.tensor(a) @ torchlet.tensor(b)).numpy(), a, b) <= errors[0] * 2  # eager products use no permission
    finally:
        torchlet.set_float32_matmul_precision("highest")
        config.cpu_float32_dot = before
    assert errors[0] < errors[1] / 3 and errors[1] < 2.0**-15 < errors[2] < 2.0**-8


def test_float32_is_multiplied_without_tiles_unless_they_are_asked_for() -> None:
    a, b = random(256, 512), random(512, 256)
    found = torchlet.compile(FORMS["nn"])(torchlet.tensor(a), torchlet.tensor(b)).numpy()
    assert np.array_equal(found, product(a, b, "ieee"))


@on_tiles
@pytest.mark.parametrize("form", FORMS)
def test_products_of_bfloat16_are_exact_up_to_float32_sums(form: str) -> None:
    a, b = torchlet.tensor(random(260, 310)).bfloat16(), torchlet.tensor(random(310, 330)).bfloat16()
    x, y = (t.transpose(0, 1).contiguous() if turned == "t" else t for t, turned in zip((a, b), form, strict=True))
    f = torchlet.compile(lambda x, y: FORMS[form](x, y))
    found = f(x, y).float().numpy()
    wanted = a.float().numpy().astype(np.float64) @ b.float().numpy().astype(np.float64)
    assert np.abs(found - wanted).max() <= 2.0**-8 * np.abs(wanted).max()
    close = torchlet.tensor(wanted.astype(np.float32)).bfloat16().float().numpy()
    assert (found == close).mean() > 0.99


@on_tiles
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_uses_tiles_too() -> None:
    a, b = random(256, 256), random(256, 256)
    wanted = product(a, b, "bf16x6")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, b"1" if np.array_equal(product(a, b, "bf16x6"), wanted) else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"1"
    os.close(read), os.close(write)
