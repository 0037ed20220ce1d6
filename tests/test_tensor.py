"""Tensors as Python objects: making, converting, reading, printing, copying, pickling, NumPy's view of them."""

import copy
import pickle
import subprocess
import sys
from collections import deque
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchlet as torch
from torchlet.ops import stub

# ------------------------------------------------------------------------------------------------ making


@pytest.mark.parametrize(
    "data, dtype, shape",
    [
        (1, torch.int64, ()),
        (1.5, torch.float32, ()),
        (True, torch.bool, ()),
        ([1, 2.0], torch.float32, (2,)),
        ([[True], [False]], torch.bool, (2, 1)),
        ([], torch.float32, (0,)),
        ([[], []], torch.float32, (2, 0)),
        (range(3), torch.int64, (3,)),
        ((1, (2)), torch.int64, (2,)),
        (np.ones(2), torch.float64, (2,)),
        (np.float32(1), torch.float32, ()),
        ([np.float64(1)], torch.float64, (1,)),
        ([True, 2], torch.int64, (2,)),
        (np.ones(2, ">f4"), torch.float32, (2,)),
        (np.ones(3, ml_dtypes.bfloat16), torch.bfloat16, (3,)),
    ],
)
def test_tensor_takes_dtype_and_shape_from_the_data(data: Any, dtype: Any, shape: Any) -> None:
    t = torch.tensor(data)
    assert t.dtype is dtype and t.shape == shape and t.is_leaf


def test_tensor_of_tensors_and_of_a_tensor() -> None:
    x = torch.tensor([1, 2])
    assert torch.tensor([x[0], x[1]]).tolist() == [1, 2] and torch.tensor([x, x]).shape == (2, 2)
    y = torch.tensor(x)
    y[0] = 9
    assert x.tolist() == [1, 2]


@pytest.mark.parametrize(
    "data, kind, match",
    [
        ([[1, 2], [3]], ValueError, "equal length"),
        (["a"], TypeError, "expected numbers"),
        (np.ones(2, np.uint32), TypeError, "can't convert a numpy array of type uint32"),
        (object(), RuntimeError, "Could not infer dtype of object"),
    ],
)
def test_tensor_refuses_what_holds_no_numbers(data: Any, kind: Any, match: str) -> None:
    with pytest.raises(kind, match=match):
        torch.tensor(data)


def test_tensor_copies_and_from_numpy_shares() -> None:
    a = np.zeros(3)
    copied, shared, also = torch.tensor(a), torch.from_numpy(a), torch.as_tensor(a)
    a[0] = 5
    assert copied.tolist() == [0, 0, 0] and shared.tolist() == also.tolist() == [5, 0, 0]
    shared[1] = 7
    assert a[1] == 7 and shared._store.exported
    assert torch.as_tensor(shared) is shared and torch.as_tensor(a, dtype=torch.float32).dtype is torch.float32
    with pytest.raises(TypeError, match=r"expected np.ndarray \(got list\)"):
        torch.from_numpy([1])
    with pytest.raises(ValueError, match=r"expected positive multiples.*\nhelp"):
        torch.from_numpy(np.arange(3)[::-1])


@pytest.mark.parametrize("make", [
    lambda: torch.tensor(np.ones((300, 7), np.float32)), lambda: torch.zeros(300, 7), lambda: torch.full((300, 7), 2),
    lambda: torch.nn.Linear(30, 70).weight, lambda: copy.deepcopy(torch.nn.Linear(30, 70).weight),
    lambda: torch.compile(lambda x: x + 1)(torch.zeros(300, 7)),
])  # fmt: skip
def test_large_tensors_start_at_a_cache_line(make: Any) -> None:
    kept = [make() for _ in range(4)]  # NumPy alone would reach one at a time by chance
    assert [t.data_ptr() % 64 for t in kept] == [0] * 4


def test_a_view_holds_the_memory_of_a_result_that_is_computed_again() -> None:
    f = torch.compile(lambda x: x + 1)
    x = torch.zeros(300, 7)
    views = []
    for i in range(6):
        x.fill_(i)
        views.append(f(x).numpy()[1:, 2:])
    assert [v.min() for v in views] == [v.max() for v in views] == [1, 2, 3, 4, 5, 6]


def test_integers_cannot_require_grad() -> None:
    with pytest.raises(RuntimeError, match="only Tensors of floating point dtype can require gradients"):
        torch.tensor([1], requires_grad=True)


def test_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.tensor([1.0]).dtype is torch.zeros(1).dtype is torch.float64 and (torch.tensor([1]) / 2).dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with pytest.raises(TypeError, match="floating-point"):
        torch.set_default_dtype(torch.int64)


def test_new_tensors_like_this_one() -> None:
    x = torch.ones(2, dtype=torch.float16)
    assert x.new_zeros(3).dtype is x.new_full((2, 2), 7).dtype is x.new_tensor([1, 2]).dtype is torch.float16
    assert x.new_ones((1, 2), dtype=torch.int64).tolist() == [[1, 1]]


# ------------------------------------------------------------------------------------------------ reading


def test_values_for_python() -> None:
    assert torch.tensor(2.5).item() == 2.5 and type(torch.tensor(True).item()) is bool and type(torch.tensor([[3]]).item()) is int
    assert torch.tensor(1.5, dtype=torch.bfloat16).item() == 1.5 and type(torch.tensor(1.5, dtype=torch.bfloat16).item()) is float
    assert (
        torch.tensor([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
        and torch.tensor(7).tolist() == 7
        and torch.tensor([0.5], dtype=torch.bfloat16).tolist() == [0.5]
    )
    assert (
        float(torch.tensor([2])) == 2.0
        and int(torch.tensor(2.9)) == 2
        and bool(torch.tensor([0.0])) is False
        and [10, 20, 30][torch.tensor(1)] == 20
    )
    assert (
        len(torch.zeros(3, 2)) == 3
        and [r.tolist() for r in torch.tensor([[1], [2]])] == [[1], [2]]
        and 2 in torch.tensor([1, 2])
        and 5 not in torch.tensor([1, 2])
    )
    assert (
        f"{torch.tensor(3.14159):.2f}" == "3.14"
        and f"{torch.tensor([1.0])}" == "tensor([1.])"
        and round(float(torch.tensor(2.345)), 1) == 2.3
    )
    assert max(torch.tensor([3, 1])).item() == 3 and sum(torch.tensor([3, 1])).item() == 4


@pytest.mark.parametrize("f, kind, match", [
    (lambda: torch.zeros(2).item(), RuntimeError, "a Tensor with 2 elements cannot be converted to Scalar"),
    (lambda: bool(torch.zeros(2)), RuntimeError, "Boolean value of Tensor with more than one value is ambiguous"),
    (lambda: bool(torch.zeros(0)), RuntimeError, "Boolean value of Tensor with no values is ambiguous"),
    (lambda: float(torch.zeros(2)), TypeError, "only one element tensors"),
    (lambda: [1, 2][torch.tensor(1.0)], TypeError, "only integer tensors of a single element"),
    (lambda: len(torch.tensor(1)), TypeError, "len.. of a 0-d tensor"),
    (lambda: list(torch.tensor(1)), TypeError, "iteration over a 0-d tensor"),
    (lambda: torch.ones(1, requires_grad=True).numpy(), RuntimeError, r"Use tensor.detach\(\).numpy\(\) instead"),
    (lambda: torch.ones(1).to("cuda:99"), RuntimeError, "cuda: (no NVIDIA driver on this machine|device 99; expected one of)"),
    (lambda: torch.ones(1).to(object()), TypeError, "expected a dtype, a device or a Tensor"),
    (lambda: torch.zeros(2).fill_(torch.zeros(2)), RuntimeError, "0-dimension value tensor"),
])
def test_reading_what_is_not_there_is_refused(f: Any, kind: Any, match: str) -> None:
    with pytest.raises(kind, match=match):
        f()


def test_description() -> None:
    x = torch.zeros(2, 3, 4, dtype=torch.int16)
    assert (
        x.size() == x.shape == torch.Size([2, 3, 4])
        and x.size(-1) == 4
        and x.stride() == (12, 4, 1)
        and x.stride(0) == 12
        and x.dim() == x.ndim == 3
    )
    assert (
        x.numel() == x.nelement() == x.shape.numel() == 24
        and x.element_size() == 2
        and x.nbytes == 48
        and repr(x.shape) == "torchlet.Size([2, 3, 4])"
    )
    y = x.transpose(0, 2)
    assert y.stride() == (1, 4, 12) and not y.is_contiguous() and y.contiguous().is_contiguous() and x[1, 2].storage_offset() == 20
    assert (
        x[1].data_ptr() - x.data_ptr() == 24
        and x.type() == "torchlet.ShortTensor"
        and not x.is_floating_point()
        and torch.is_floating_point(torch.zeros(1))
    )
    assert torch.is_tensor(x) and not torch.is_tensor(1) and x.device == torch.device("cpu") and not x.is_cuda and x.get_device() == -1


# ------------------------------------------------------------------------------------------------ converting


def test_to() -> None:
    x = torch.tensor([1.5, -2.5])
    assert x.to(torch.float32) is x and x.to("cpu") is x and x.to(x) is x and x.to(torch.float32, copy=True) is not x
    assert (
        x.to(torch.int64).tolist() == [1, -2]
        and x.to(device="cpu", dtype=torch.float16).dtype is torch.float16
        and x.to(torch.zeros(1, dtype=torch.float64)).dtype is torch.float64
    )
    names = ["float", "double", "half", "bfloat16", "int", "long", "short", "char", "byte", "bool"]
    assert [getattr(torch.ones(1), n)().dtype.name for n in names] == [
        "float32",
        "float64",
        "float16",
        "bfloat16",
        "int32",
        "int64",
        "int16",
        "int8",
        "uint8",
        "bool",
    ]
    assert x.type_as(torch.tensor(1)).dtype is torch.int64 and x.cpu() is x and x.clone() is not x
    assert x.requires_grad_().double().sum().requires_grad


def test_in_place_filling() -> None:
    x = torch.zeros(2, 2)
    assert x.fill_(3) is x and x.tolist() == [[3, 3], [3, 3]] and x.zero_().sum().item() == 0 and x.fill_(torch.tensor(2)).sum().item() == 8
    x.copy_(torch.tensor([1, 2]))
    assert x.tolist() == [[1, 2], [1, 2]] and x._version == 4
    x.t().copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert x.tolist() == [[1, 3], [2, 4]]
    assert torch.zeros(1000).uniform_(2, 3).min().item() >= 2 and abs(torch.zeros(4000).normal_(5, 0.1).mean().item() - 5) < 0.01
    assert set(torch.zeros(100).bernoulli_(0.5).tolist()) == {0, 1} and torch.zeros(50, dtype=torch.int64).random_(
        3, 5
    ).unique().tolist() == [3, 4]


def test_random_filling_cuts_the_tape() -> None:
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.uniform_()
    y.sum().backward()
    assert x.grad is None or x.grad.tolist() == [0, 0]


def test_comparing_whole_tensors() -> None:
    a, b = torch.tensor([1.0, float("nan")]), torch.tensor([1.0 + 1e-7, float("nan")])
    assert (
        not torch.equal(a, a)
        and torch.equal(a[:1], a[:1].clone())
        and not torch.equal(a[:1], a)
        and not torch.allclose(a, b)
        and torch.allclose(a, b, equal_nan=True)
    )
    assert torch.isclose(torch.tensor([1.0, 2.0, float("inf")]), torch.tensor([1.0, 2.1, float("inf")])).tolist() == [True, False, True]
    with pytest.raises(RuntimeError, match="did not match"):
        torch.allclose(a, a.double())
    assert hash(a) != hash(b) and a in {a}


def test_weighted_additions_in_place() -> None:
    x, a, b = torch.ones(2), torch.tensor([2.0, 3.0]), torch.tensor([4.0, 5.0])
    assert x.addcmul(a, b, value=0.5).tolist() == [5, 8.5] and x.addcdiv(b, a).tolist() == pytest.approx([3, 1 + 5 / 3])
    assert x.lerp(a, 0.5).tolist() == [1.5, 2] and x.add(a, alpha=10).tolist() == [21, 31]
    x.lerp_(a, torch.tensor([0.0, 1.0])).addcmul_(a, a).addcdiv_(a, a, value=-1).add_(b, alpha=2)
    assert x.tolist() == [1 + 4 - 1 + 8, 3 + 9 - 1 + 10]


# ------------------------------------------------------------------------------------------------ NumPy


def test_numpy_shares_memory_and_is_noted() -> None:
    x = torch.zeros(2, 3)
    a = x[1].numpy()
    a[0] = 4
    assert x.tolist() == [[0, 0, 0], [4, 0, 0]] and x._store.exported
    assert torch.ones(1, dtype=torch.bfloat16).numpy().dtype == ml_dtypes.bfloat16 and torch.ones(1, requires_grad=True).numpy(
        force=True
    ).tolist() == [1]


def test_numpy_functions_take_tensors() -> None:
    x = torch.tensor([0.0, 1.0])
    assert np.asarray(x).dtype == np.float32 and np.array(x, dtype=np.float64).dtype == np.float64 and np.stack([x, x]).shape == (2, 2)
    assert (
        isinstance(np.exp(x), torch.Tensor)
        and (np.float32(2) * x).tolist() == [0, 2]
        and (np.float64(2) * x).dtype is torch.float32
        and (x * np.int64(3)).tolist() == [0, 3]
    )
    assert np.from_dlpack(x).tolist() == [0, 1] and torch.from_dlpack(np.ones(2)).tolist() == [1, 1]


# ------------------------------------------------------------------------------------------------ copying and pickling


def test_deepcopy_and_pickle() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        x = torch.tensor([[1, 2], [3, 4]], dtype=dtype)
        if dtype.is_floating_point:
            x.requires_grad_()
        for y in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), pickle.loads(pickle.dumps(x.T)).T):
            assert y is not x and y.tolist() == x.tolist() and y.dtype is dtype
        assert copy.deepcopy(x).requires_grad == pickle.loads(pickle.dumps(x)).requires_grad == dtype.is_floating_point
    x = torch.ones(2, requires_grad=True)
    (x * 3).sum().backward()
    both = copy.deepcopy([x, x])
    assert both[0] is both[1] and both[0].grad.tolist() == [3, 3] and both[0].grad is not x.grad
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(x * 2)
    assert (
        copy.copy(torch.float32) is torch.float32
        and pickle.loads(pickle.dumps(torch.bool)) is torch.bool
        and pickle.loads(pickle.dumps(torch.device("cpu"))) is torch.device("cpu")
    )


# ------------------------------------------------------------------------------------------------ printing


@pytest.mark.parametrize(
    "make, text",
    [  # texts are PyTorch's, with its name replaced
        (lambda: torch.tensor(3.5), "tensor(3.5000)"),
        (lambda: torch.tensor(2.0), "tensor(2.)"),
        (lambda: torch.tensor([1.0, 2.0, 3.0]), "tensor([1., 2., 3.])"),
        (lambda: torch.tensor([1.5, 2, float("nan"), float("inf")]), "tensor([1.5000, 2.0000,    nan,    inf])"),
        (lambda: torch.tensor([1e-5, 1]), "tensor([1.0000e-05, 1.0000e+00])"),
        (lambda: torch.tensor([-1.0, 1000.0, 0.0]), "tensor([  -1., 1000.,    0.])"),
        (lambda: torch.tensor([[True, False]]), "tensor([[ True, False]])"),
        (lambda: torch.tensor([1, -100]), "tensor([   1, -100])"),
        (lambda: torch.tensor([1, 2], dtype=torch.int32), "tensor([1, 2], dtype=torchlet.int32)"),
        (
            lambda: torch.tensor([0.5], dtype=torch.float64, requires_grad=True),
            "tensor([0.5000], dtype=torchlet.float64, requires_grad=True)",
        ),
        (lambda: torch.ones(2, requires_grad=True) * 2, "tensor([2., 2.], grad_fn=<MulBackward0>)"),
        (lambda: torch.zeros(0), "tensor([])"),
        (lambda: torch.zeros(2, 0), "tensor([], size=(2, 0))"),
        (lambda: torch.zeros(0, dtype=torch.int64), "tensor([], dtype=torchlet.int64)"),
        (lambda: torch.zeros(2, 1, 2), "tensor([[[0., 0.]],\n\n        [[0., 0.]]])"),
        (lambda: torch.arange(1001), "tensor([   0,    1,    2,  ...,  998,  999, 1000])"),
        (
            lambda: torch.arange(20.0) / 8,
            (
                "tensor([0.0000, 0.1250, 0.2500, 0.3750, 0.5000, 0.6250, 0.7500, 0.8750, 1.0000,\n"
                "        1.1250, 1.2500, 1.3750, 1.5000, 1.6250, 1.7500, 1.8750, 2.0000, 2.1250,\n"
                "        2.2500, 2.3750])"
            ),
        ),
    ],
)
def test_print(make: Any, text: str) -> None:
    assert repr(make()) == text == str(make())


def test_large_tensors_are_shortened_in_every_dimension() -> None:
    lines = repr(torch.zeros(20, 10, 10)).split("\n")
    assert (
        lines[0] == "tensor([[[0., 0., 0.,  ..., 0., 0., 0.],"
        and lines[3] == "         ...,"
        and "        ...," in lines
        and len(lines) < 60
    )


def test_print_options() -> None:
    torch.set_printoptions(precision=2, sci_mode=False)
    try:
        assert repr(torch.tensor([1e-6, 0.123])) == "tensor([0.00, 0.12])"
    finally:
        torch.set_printoptions(profile="default")
    assert repr(torch.tensor([0.123])) == "tensor([0.1230])"


# ------------------------------------------------------------------------------------------------ the rest of the house


def test_random_numbers_come_again_from_the_same_seed() -> None:
    torch.manual_seed(3)
    a, state = torch.rand(5), torch.get_rng_state()
    b = torch.randn(5)
    torch.set_rng_state(state)
    assert torch.equal(torch.randn(5), b) and torch.initial_seed() == 3
    with torch.random.fork_rng():
        torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(5), a) and not torch.equal(torch.rand(5), a)
    g = torch.Generator().manual_seed(3)
    assert torch.equal(torch.rand(5, generator=g), a)


def test_cuda_is_honest() -> None:
    assert torch.cuda.is_available() is (torch.cuda.device_count() > 0)


@pytest.mark.parametrize("path", stub.STUBS)
def test_type_stubs_are_fresh(path: str) -> None:
    assert (stub.ROOT / path).read_text() == stub.STUBS[path](), "run: python -m torchlet.ops.stub"


def test_every_attached_name_is_documented_or_special() -> None:
    from torchlet.ops.public import FUNCTIONS

    assert [name for name, f in FUNCTIONS.items() if not f.__doc__] == []


@pytest.mark.parametrize("compile", [lambda f: f, torch.compile], ids=["eager", "compiled"])
def test_elementwise_results_keep_the_memory_order_of_their_inputs(compile):
    """The strides are PyTorch's (2.13), whose TensorIterator lets the first operand that tells decide."""
    x, y = torch.zeros(2, 3, 4), torch.zeros(4, 3, 2)
    for f, strides in [
        (lambda: x.permute(2, 0, 1) * 2, (1, 12, 4)),
        (lambda: x.permute(2, 0, 1).exp().to(torch.float64), (1, 12, 4)),
        (lambda: x.transpose(0, 2) + y, (1, 4, 12)),
        (lambda: y + x.transpose(0, 2), (6, 2, 1)),
        (lambda: x.transpose(0, 2) + torch.ones(3, 1), (1, 4, 12)),
        (lambda: x[:, 1:].transpose(0, 1) + 1, (4, 8, 1)),
        (lambda: x.transpose(0, 1).clone(), (4, 12, 1)),
        (lambda: x.transpose(0, 1).contiguous(), (8, 4, 1)),
        (lambda: x.transpose(0, 1).clone(memory_format=torch.contiguous_format), (8, 4, 1)),
        (lambda: (x.transpose(1, 2) * 2).transpose(1, 2).view(2, 12), (12, 1)),
        (lambda: x.transpose(0, 2).sum(0), (2, 1)),
        (lambda: torch.softmax(x.transpose(0, 2), 0), (6, 2, 1)),
    ]:
        assert compile(f)().stride() == strides


def test_a_compiled_result_in_another_memory_order_has_the_right_elements():
    x = torch.arange(24.0).view(2, 3, 4)
    f = torch.compile(lambda x: (x.permute(2, 0, 1) + 1, (x.permute(2, 0, 1) * 2)[1:, :, 1]))
    for _ in range(2):
        a, b = f(x)
        assert a.tolist() == (x.numpy().transpose(2, 0, 1) + 1).tolist() and a.stride() == (1, 12, 4)
        assert b.tolist() == (x.numpy().transpose(2, 0, 1) * 2)[1:, :, 1].tolist() and b.stride() == (1, 12)


def test_gradients_flow_through_results_in_another_memory_order():
    x = torch.arange(6.0).view(2, 3).requires_grad_()
    for compile in (lambda f: f, torch.compile):
        x.grad = None
        y = compile(lambda x: (x.t() * 2).exp())(x)
        (y * torch.arange(6.0).view(3, 2)).sum().backward()
        expected = 2 * np.exp(2 * np.arange(6.0).reshape(2, 3)) * np.arange(6.0).reshape(3, 2).T
        np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-5)


def test_importing_torchlet_leaves_slow_modules_for_later():
    """What only some programs need: bfloat16's NumPy type, the compiler, temporary files, Triton."""
    late = ("ml_dtypes", "triton", "networkx", "tempfile", "torchlet.compiler")
    code = f"import sys, torchlet; print([m for m in {late} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_training_step_compiles_without_the_graph_library() -> None:
    code = (
        "import sys, torchlet as t; w = t.ones(3, requires_grad=True); o = t.optim.SGD([w], lr=0.1)\n"
        "def step(x): o.zero_grad(); (w * x).sum().backward(); o.step()\n"
        "t.compile(step)(t.ones(3)); print(w.tolist(), 'networkx' in sys.modules)"
    )
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert got.startswith("[0.89") and got.endswith("False")


def test_an_array_of_bfloat16_made_before_torchlet_used_the_type_is_understood():
    code = "import numpy as np, ml_dtypes, torchlet; print(torchlet.from_numpy(np.ones(2, ml_dtypes.bfloat16)).dtype)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "torchlet.bfloat16"


def test_any_sequence_of_numbers_makes_a_tensor() -> None:
    assert torch.tensor(deque([1.5, 2.0])).tolist() == [1.5, 2.0]
    with pytest.raises(RuntimeError, match="Could not infer dtype of str"):
        torch.tensor("12")
