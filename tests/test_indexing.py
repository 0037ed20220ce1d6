"""Reading and writing with brackets, against NumPy and PyTorch's rules; the operators that take and put by position."""

from typing import Any

import numpy as np
import pytest

import torchlet as torch

A = np.arange(60.0).reshape(3, 4, 5)


def t(x: Any) -> torch.Tensor:
    return torch.tensor(x)


# ------------------------------------------------------------------------------------------------ reading

BASIC = [
    0,
    -1,
    slice(None),
    slice(1, None),
    slice(0, 3, 2),
    slice(5, 9),
    slice(-2, None),
    Ellipsis,
    None,
    (),
    (0, 1),
    (0, 1, 2),
    (slice(None), 2),
    (Ellipsis, -1),
    (0, Ellipsis, 1),
    (None, slice(1, 2), None),
    (slice(None, None, 2), Ellipsis, slice(1, 4, 2)),
    (Ellipsis, None),
    np.int64(1),
    slice(2, 1),
]


@pytest.mark.parametrize("key", BASIC, ids=str)
def test_basic_keys_give_views(key: Any) -> None:
    x = t(A)
    y = x[key]
    assert y.shape == A[key].shape and y.tolist() == A[key].tolist()
    y.fill_(-1)
    expected = A.copy()
    expected[key] = -1
    assert x.tolist() == expected.tolist()


I, J = np.array([2, 0, -1, 2]), np.array([[1], [3]])
ROWS, WHOLE = np.array([True, False, True]), A % 3 == 0
MIXED = (ROWS, slice(None), 1)
ADVANCED = [
    I,
    (I,),
    (slice(None), I),
    (Ellipsis, I),
    (I, J),
    (I, slice(None), J),
    (slice(None), I, J),
    (I, None, J),
    (None, I),
    (slice(1, 3), np.array([0, 1])),
    ROWS,
    MIXED,
    WHOLE,
    (slice(None), A[0] > 7),
    (ROWS, np.array([0, 3])),
    (J - 1, Ellipsis),
    np.array([], np.int64),
    np.zeros(3, bool),
    (I, slice(0, 2), slice(1, None, 3)),
]
ADVANCED_IDS = [str(k).replace("\n", "")[:60] for k in ADVANCED]


def torch_key(key: Any) -> Any:
    return tuple(torch_key(k) for k in key) if isinstance(key, tuple) else t(key) if isinstance(key, np.ndarray) else key


@pytest.mark.parametrize("key", ADVANCED, ids=ADVANCED_IDS)
def test_index_tensors_and_masks_give_copies(key: Any) -> None:
    x = t(A)
    y = x[torch_key(key)]
    expected = A[key] if key is not MIXED else A[:, :, 1][ROWS]  # PyTorch takes numbers first; NumPy joins them to the index tensors
    assert y.shape == expected.shape and y.tolist() == expected.tolist()
    y.fill_(-1)
    assert x.tolist() == A.tolist()


@pytest.mark.parametrize("key", ADVANCED, ids=ADVANCED_IDS)
def test_gradients_of_taken_elements_add_up_where_they_came_from(key: Any) -> None:
    x = torch.tensor(A, requires_grad=True)
    y = x[torch_key(key)]
    c = np.random.default_rng(0).standard_normal(tuple(y.shape))
    y.backward(t(c))
    expected = np.zeros_like(A)
    np.add.at(expected, key, c)
    np.testing.assert_allclose(x.grad.numpy(), expected)


def test_a_number_beside_index_tensors_is_taken_first() -> None:
    x = t(A)
    assert x[0, :, torch.tensor([1, 2])].shape == (4, 2)  # NumPy would give (2, 4)


def test_lists_ranges_and_arrays_index_like_tensors() -> None:
    x = t(A)
    assert torch.equal(x[[2, 0]], x[torch.tensor([2, 0])]) and torch.equal(x[np.array([2, 0])], x[[2, 0]])
    assert torch.equal(x[[True, False, True]], x[torch.tensor([0, 2])]) and torch.equal(x[range(2)], x[:2]) and x[[]].shape == (0, 4, 5)


def test_a_0d_integer_tensor_selects_a_view() -> None:
    x = t(A.copy())
    x[torch.tensor(1)].zero_()
    assert x[1].abs().sum().item() == 0 and x[0].sum().item() > 0


def test_true_and_false_add_a_dimension() -> None:
    x = t(A)
    assert x[True].shape == (1, 3, 4, 5) and x[False].shape == (0, 3, 4, 5) and x[torch.tensor(True)].shape == (1, 3, 4, 5)


def test_negative_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="step must be greater than zero"):
        t(A)[::-1]


# ------------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("key", BASIC + ADVANCED, ids=[*map(str, BASIC), *ADVANCED_IDS])
@pytest.mark.parametrize("kind", ["number", "full", "broadcast", "0-d"])
def test_writing_with_a_key_changes_that_region(key: Any, kind: str) -> None:
    if key is MIXED:
        pytest.skip("PyTorch and NumPy order the region differently")
    x, expected = t(A), A.copy()
    shape = A[key].shape
    value: Any = {
        "number": -1.5,
        "full": np.arange(np.prod(shape, dtype=int)).reshape(shape) + 0.5,
        "broadcast": np.arange((shape[-1:] and shape[-1]) or 1) + 0.5,
        "0-d": np.array(7.0),
    }[kind]
    if kind == "broadcast" and not shape:
        value = np.array(0.5)
    expected[key] = value
    x[torch_key(key)] = t(value) if isinstance(value, np.ndarray) else value
    if kind in ("number", "0-d", "broadcast") or not isinstance(key, tuple | np.ndarray):
        assert x.tolist() == expected.tolist()
    else:  # where positions repeat, one of the values stays
        assert np.isin(x.numpy()[key], value).all()


def test_gradients_flow_through_a_written_region() -> None:
    for key in ((0,), (slice(None), 1), (torch.tensor([2, 0]),), (torch.tensor([True, False, True]),)):
        base = torch.ones(3, 4, requires_grad=True)
        x = base * 2
        region = x[key]
        value = torch.full(tuple(region.shape), 3.0, requires_grad=True)
        x[key] = value
        (x * x).sum().backward()
        assert torch.equal(value.grad, torch.full(tuple(region.shape), 6.0))
        expected = torch.full((3, 4), 8.0)
        expected[key] = 0
        assert torch.equal(base.grad, expected)


def test_gradients_stop_where_a_number_was_written() -> None:
    for key in ((0, 1), (torch.tensor([[True] * 4, [False] * 4, [True, False] * 2]),), (torch.tensor([1]), torch.tensor([2]))):
        base = torch.ones(3, 4, requires_grad=True)
        x = base * 2
        x[key] = 9.0
        x.sum().backward()
        expected = torch.full((3, 4), 2.0)
        expected[key] = 0
        assert torch.equal(base.grad, expected)


def test_an_augmented_region_adds_in_place() -> None:
    x = torch.zeros(3, 2)
    x[1] += 1
    x[:, 0] *= 5
    x[torch.tensor([0, 0])] += 1  # read, add, write: the repeated row counts once
    assert x.tolist() == [[1, 1], [5, 1], [0, 0]]


def test_writing_converts_to_the_dtype_of_the_target() -> None:
    x = torch.zeros(3, dtype=torch.int64)
    x[0] = 2.9
    x[1:] = torch.tensor([1.5, -1.5])
    x[torch.tensor([False, False, True])] = 7.9
    assert x.tolist() == [2, 1, 7]


def test_writing_to_a_leaf_that_requires_grad_is_refused() -> None:
    x = torch.zeros(3, requires_grad=True)
    for key in (0, torch.tensor([1])):
        with pytest.raises(RuntimeError, match="leaf"):
            x[key] = 1.0
    with torch.no_grad():
        x[0] = 1.0
    assert x.tolist() == [1, 0, 0]


def test_writing_a_wrong_shape_names_both() -> None:
    x = torch.zeros(3, 4)
    with pytest.raises(RuntimeError, match=r"\[3\].*\[3, 4\]|\[3, 4\].*\[3\]"):
        x[:] = torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"value tensor of shape \[3\] cannot be broadcast to indexing result of shape \[2, 4\]"):
        x[torch.tensor([0, 1])] = torch.zeros(3)
    assert x.abs().sum().item() == 0


def test_index_put_can_accumulate() -> None:
    x = torch.zeros(3)
    x.index_put_((torch.tensor([0, 0, -1]),), torch.tensor([1.0, 2.0, 3.0]), accumulate=True)
    assert x.tolist() == [3, 0, 3]
    assert x.index_put((torch.tensor([1]),), torch.tensor(5.0)).tolist() == [3, 5, 3] and x.tolist() == [3, 0, 3]


# ------------------------------------------------------------------------------------------------ masks


def test_masks() -> None:
    x = torch.tensor([[1.0, -2.0], [-3.0, 4.0]])
    assert torch.masked_select(x, x > 0).tolist() == [1, 4]
    assert x.masked_fill(x < 0, 0).tolist() == [[1, 0], [0, 4]]
    assert x.masked_scatter(x < 0, torch.tensor([8.0, 9.0, 10.0])).tolist() == [[1, 8], [9, 4]]
    assert torch.nonzero(x > 0).tolist() == [[0, 0], [1, 1]] and [i.tolist() for i in torch.where(x < 0)] == [[0, 1], [1, 0]]
    x.masked_fill_(x < 0, torch.tensor(5.0))
    assert x.tolist() == [[1, 5], [5, 4]]


def test_masked_fill_keeps_the_dtype() -> None:
    scores = torch.zeros(2, 2, dtype=torch.float16)
    out = scores.masked_fill(torch.tensor([True, False]), float("-inf"))
    assert out.dtype is torch.float16 and out[0].tolist() == [float("-inf"), 0]


# ------------------------------------------------------------------------------------------------ scatter and kin


def test_scatter_sets_and_adds() -> None:
    index = torch.tensor([[0, 1, 1]])
    assert torch.zeros(2, 3).scatter(0, index, 1.0).tolist() == [[1, 0, 0], [0, 1, 1]]
    assert torch.zeros(2, 3).scatter_(1, torch.tensor([[2], [0]]), torch.tensor([[5.0], [6.0]])).tolist() == [[0, 0, 5], [6, 0, 0]]
    assert torch.ones(2, 3).scatter_add(0, torch.tensor([[0, 0, 1], [0, 1, 1]]), torch.ones(2, 3)).tolist() == [[3, 2, 1], [1, 2, 3]]
    assert torch.ones(3).scatter_(0, torch.tensor([1]), torch.tensor([4.0]), reduce="add").tolist() == [1, 5, 1]


def test_index_add_copy_fill_select() -> None:
    x, rows = torch.ones(3, 2), torch.tensor([0, 2, 0])
    assert x.index_add(0, rows, torch.ones(3, 2), alpha=2).tolist() == [[5, 5], [1, 1], [3, 3]]
    assert x.index_copy(0, torch.tensor([1]), torch.zeros(1, 2)).tolist() == [[1, 1], [0, 0], [1, 1]]
    assert x.index_fill(1, torch.tensor([1]), 4).tolist() == [[1, 4]] * 3
    x.index_add_(0, torch.tensor([1]), torch.ones(1, 2))
    assert x.index_select(0, torch.tensor([1, 0])).tolist() == [[2, 2], [1, 1]]


def test_take_along_dim_broadcasts() -> None:
    x = torch.tensor([[3.0, 1.0, 2.0], [9.0, 7.0, 8.0]])
    assert torch.take_along_dim(x, x.argsort(1), 1).tolist() == [[1, 2, 3], [7, 8, 9]]
    assert torch.take_along_dim(x, torch.tensor([[2, 0]]), 1).tolist() == [[2, 3], [8, 9]]


# ------------------------------------------------------------------------------------------------ arranging


def test_joining() -> None:
    a, b = torch.ones(2, 2), torch.zeros(2, 2)
    assert torch.cat((a, b)).shape == (4, 2) and torch.cat([a, b], dim=-1).tolist() == [[1, 1, 0, 0]] * 2
    assert (
        torch.stack([a, b], -1).shape == (2, 2, 2) and torch.hstack([a[0], b[0]]).shape == (4,) and torch.vstack([a[0], b]).shape == (3, 2)
    )
    assert torch.cat([torch.zeros(0), a]).shape == (2, 2) and torch.cat([a, b.long()]).dtype is torch.float32


def test_padding_modes() -> None:
    x = torch.arange(4.0).view(1, 4)
    pad = torch.nn.functional.pad if hasattr(torch.nn.functional, "pad") else torch.pad
    assert pad(x, (1, 2)).tolist() == [[0, 0, 1, 2, 3, 0, 0]]
    assert torch.pad(x, (1, 0, 1, 0), value=9).tolist() == [[9] * 5, [9, 0, 1, 2, 3]]
    assert torch.pad(x, (2, 1), "reflect").tolist() == [[2, 1, 0, 1, 2, 3, 2]]
    assert torch.pad(x, (2, 1), "replicate").tolist() == [[0, 0, 0, 1, 2, 3, 3]]
    assert torch.pad(x, (2, 1), "circular").tolist() == [[2, 3, 0, 1, 2, 3, 0]]
    assert torch.pad(x, (-1, -1)).tolist() == [[1, 2]]


def test_repeating_and_turning() -> None:
    x = torch.tensor([[1, 2], [3, 4]])
    assert (
        x.repeat(2, 1, 2).shape == (2, 2, 4)
        and x.repeat(1, 2).tolist() == [[1, 2, 1, 2], [3, 4, 3, 4]]
        and x.tile(2).tolist() == [[1, 2, 1, 2], [3, 4, 3, 4]]
    )
    assert x.repeat_interleave(2).tolist() == [1, 1, 2, 2, 3, 3, 4, 4] and x.repeat_interleave(torch.tensor([2, 1]), 0).tolist() == [
        [1, 2],
        [1, 2],
        [3, 4],
    ]
    assert (
        x.flip(0).tolist() == [[3, 4], [1, 2]]
        and x.roll(1).tolist() == [[4, 1], [2, 3]]
        and x.roll((1, 1), (0, 1)).tolist() == [[4, 3], [2, 1]]
    )
    assert torch.rot90(x).tolist() == [[2, 4], [1, 3]] and torch.rot90(x, -1).tolist() == [[3, 1], [4, 2]]


def test_diagonals_and_triangles() -> None:
    x = torch.arange(9.0).view(3, 3)
    assert x.diagonal().tolist() == [0, 4, 8] and x.diag(1).tolist() == [1, 5] and x.trace().item() == 12
    assert torch.diag(torch.tensor([1, 2])).tolist() == [[1, 0], [0, 2]] and torch.diag_embed(torch.ones(2, 2)).shape == (2, 2, 2)
    assert x.tril(-1).tolist() == [[0, 0, 0], [3, 0, 0], [6, 7, 0]] and x.triu(1).tolist() == [[0, 1, 2], [0, 0, 5], [0, 0, 0]]
    assert torch.triu_indices(2, 2).tolist() == [[0, 0, 1], [0, 1, 1]]
    x.diagonal().fill_(0)  # a view
    assert x.trace().item() == 0


def test_meshgrid_and_unfold() -> None:
    a, b = torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij")
    assert a.tolist() == [[0, 0, 0], [1, 1, 1]] and b.tolist() == [[0, 1, 2]] * 2
    assert torch.meshgrid(torch.arange(2), torch.arange(3), indexing="xy")[0].tolist() == [[0, 1]] * 3
    assert torch.arange(5).unfold(0, 3, 2).tolist() == [[0, 1, 2], [2, 3, 4]]


# ------------------------------------------------------------------------------------------------ order


def test_extremes_with_positions_have_names() -> None:
    x = torch.tensor([[1.0, 5.0], [7.0, 3.0]], requires_grad=True)
    out = x.max(dim=1)
    assert (
        out.values.tolist() == [5, 7]
        and out.indices.tolist() == [1, 0]
        and repr(out).startswith("torchlet.return_types.max(\nvalues=tensor([5., 7.]")
    )
    values, indices = torch.min(x, 0, keepdim=True)
    assert values.tolist() == [[1, 3]] and indices.tolist() == [[0, 1]]
    out.values.sum().backward()
    assert x.grad.tolist() == [[0, 1], [1, 0]]
    assert torch.max(x).item() == 7 and torch.max(x, torch.tensor(4.0)).tolist() == [[4, 5], [7, 4]]


def test_sorting_is_stable_and_puts_nan_last() -> None:
    x = torch.tensor([2.0, float("nan"), 1.0, 2.0])
    assert x.sort().indices.tolist() == [2, 0, 3, 1] and x.sort(descending=True).indices.tolist() == [1, 0, 3, 2]
    assert torch.tensor([3, 1, 2]).topk(2).values.tolist() == [3, 2] and torch.tensor([3, 1, 2]).topk(
        1, largest=False
    ).indices.tolist() == [1]
    assert torch.tensor([4.0, 1.0, 3.0, 2.0]).median().item() == 2 and torch.tensor([4.0, 1.0, 3.0]).kthvalue(2).values.item() == 3
    assert np.isnan(x.median().item()) and np.isnan(x.max().item()) and x.argmax().item() == 1


def test_scans_and_their_gradients_with_zeros() -> None:
    x = torch.tensor([2.0, 0.0, 3.0, 0.0, 4.0], requires_grad=True)
    assert x.cumsum(0).tolist() == [2, 2, 5, 5, 9] and torch.tensor([True, True]).cumsum(0).tolist() == [1, 2]
    x.cumprod(0).sum().backward()
    assert x.grad.tolist() == [1, 8, 0, 0, 0]
    y = torch.tensor([2.0, 0.0, 3.0], requires_grad=True)
    y.prod().backward()
    assert y.grad.tolist() == [0, 6, 0]


def test_counting() -> None:
    x = torch.tensor([3, 1, 3, 2])
    values, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    assert values.tolist() == [1, 2, 3] and inverse.tolist() == [2, 0, 2, 1] and counts.tolist() == [1, 1, 2]
    assert x.bincount().tolist() == [0, 1, 1, 2] and x.bincount(minlength=6).tolist() == [0, 1, 1, 2, 0, 0]
    assert torch.bincount(x, weights=torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [0, 2, 4, 4]
    assert (
        torch.searchsorted(torch.tensor([1, 3, 5]), torch.tensor([3, 6, 0])).tolist() == [1, 3, 0]
        and torch.bucketize(torch.tensor(3), torch.tensor([1, 3, 5]), right=True).item() == 2
    )


def test_multinomial_draws_by_weight() -> None:
    weights = torch.tensor([0.0, 1.0, 3.0])
    drawn = torch.multinomial(weights, 4000, replacement=True)
    counts = drawn.bincount(minlength=3).tolist()
    assert counts[0] == 0 and 850 < counts[1] < 1150
    for _ in range(20):
        assert sorted(torch.multinomial(weights, 2).tolist()) == [1, 2]
    assert torch.multinomial(torch.ones(5, 7), 7).sort().values.tolist() == [list(range(7))] * 5
