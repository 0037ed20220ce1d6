"""Rarer spellings of what stands elsewhere: functions named like in-place methods, copies of views, questions about tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torchlet import dtypes
from torchlet.op import STATE
from torchlet.ops.public import FUNCTIONS, METHODS, in_place, public
from torchlet.spec import contiguous_strides
from torchlet.tensor import Tensor

# torchlet.NAME_(x, …) is x.NAME_(…)
_IN_PLACE = (
    "addmv as_strided clamp clamp_max clamp_min clip copysign detach fill frac gcd index_put lcm ldexp logit nan_to_num resize_as "
    "xlogy zero mvlgamma polygamma"
)
METHODS["mvlgamma_"] = in_place(METHODS["mvlgamma"])
METHODS["polygamma_"] = in_place(METHODS["polygamma"])
for _name in _IN_PLACE.split():
    if f"{_name}_" in METHODS:
        FUNCTIONS[f"{_name}_"] = METHODS[f"{_name}_"]


@public()
def fill(input: Tensor, value: Any) -> Tensor:
    """A tensor like the input, with one value everywhere."""
    return (
        input * 0 + value
        if STATE.grad and input.requires_grad
        else FUNCTIONS["full_like"](input, value.item() if isinstance(value, Tensor) else value)
    )  # type: ignore[no-any-return]


def _copies(name: str, of: Callable[..., Any]) -> None:
    def f(*args: Any, **kwargs: Any) -> Any:
        out = of(*args, **kwargs)
        return tuple(t.contiguous().clone() for t in out) if isinstance(out, tuple | list) else out.contiguous().clone()

    f.__name__ = f.__qualname__ = f"{name}_copy"
    f.__doc__ = f"A copy of what `{name}` shows."
    FUNCTIONS[f"{name}_copy"] = f


for _name in ("as_strided", "unbind", "unfold", "split_with_sizes", "split", "view_as_complex", "view_as_real"):
    _copies(_name, METHODS.get(_name) or FUNCTIONS[_name])
_copies("slice", lambda input, dim=0, start=None, end=None, step=1: input[(slice(None),) * (dim % input.ndim) + (slice(start, end, step),)])
_copies("alias", lambda input: input)


@public("is_same_size")
def is_same_size(input: Tensor, other: Tensor) -> bool:
    """True for equal shapes."""
    return input.shape == other.shape


@public("is_inference", "is_distributed", "is_vulkan_available", method=False)
def never(input: Any = None) -> bool:
    """False: there is no such state here."""
    return False


@public("is_signed", method=False)
def is_signed(input: Tensor) -> bool:
    """True for dtypes with a sign."""
    return input.dtype.is_signed


@public("is_conj", "is_neg", method=False)
def is_conj(input: Tensor) -> bool:
    """False: conjugates are computed at once."""
    return False


@public("get_device", method=False)
def get_device(input: Tensor) -> int:
    """The number of the tensor's CUDA device, -1 on the CPU."""
    return METHODS["get_device"](input)  # type: ignore[no-any-return]


@public("frobenius_norm", method=False)
def frobenius_norm(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The 2-norm over `dim`."""
    return METHODS["norm"](input, 2, dim, keepdim)  # type: ignore[no-any-return]


@public("nuclear_norm", method=False)
def nuclear_norm(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The sum of the singular values."""
    x = input if dim is None else METHODS["movedim"](input, tuple(dim), (-2, -1))
    return METHODS["norm"](x, "nuc", None, keepdim)  # type: ignore[no-any-return]


@public("_shape_as_tensor", method=False)
def shape_as_tensor(input: Tensor) -> Tensor:
    """The shape as an int64 tensor."""
    return FUNCTIONS["tensor"](list(input.shape), dtype=dtypes.int64)  # type: ignore[no-any-return]


@public("_assert", method=False)
def check(condition: Any, message: str) -> None:
    """Raise AssertionError unless the condition holds."""
    if not bool(condition):
        raise AssertionError(message)


@public("empty_permuted", method=False)
def empty_permuted(size: Sequence[int], physical_layout: Sequence[int], **named: Any) -> Tensor:
    """A tensor of zeros whose dimensions lie in memory in the given order."""
    order = list(physical_layout)
    strides = dict(zip(order, contiguous_strides(tuple(size[d] for d in order)), strict=True))
    return FUNCTIONS["empty_strided"](tuple(size), tuple(strides[d] for d in range(len(order))), **named)  # type: ignore[no-any-return]


@public("nonzero_static")
def nonzero_static(input: Tensor, *, size: int, fill_value: int = -1) -> Tensor:
    """`nonzero` cut or filled up to `size` rows."""
    found = METHODS["nonzero"](input)[:size]
    missing = size - found.shape[0]
    return found if not missing else FUNCTIONS["cat"]([found, found.new_full((missing, input.ndim), fill_value)])  # type: ignore[no-any-return]


@public("constant_pad_nd", method=False)
def constant_pad_nd(input: Tensor, pad: Sequence[int], value: float = 0) -> Tensor:
    """`pad` with a constant."""
    return FUNCTIONS["pad"](input, pad, "constant", value)  # type: ignore[no-any-return]


@public("sym_max", method=False)
def sym_max(a: Any, b: Any) -> Any:
    """The larger of two sizes, which are plain numbers."""
    return max(a, b)


@public("sym_min", method=False)
def sym_min(a: Any, b: Any) -> Any:
    """The smaller of two sizes."""
    return min(a, b)


@public("sym_not", method=False)
def sym_not(a: Any) -> bool:
    """not."""
    return not a


@public("sym_ite", method=False)
def sym_ite(b: Any, t: Any, f: Any) -> Any:
    """`t` if `b`, else `f`."""
    return t if b else f


FUNCTIONS |= {"sym_int": int, "sym_float": float, "sym_sum": sum}


@public("lstm_cell", method=False)
def lstm_cell(input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> tuple[Tensor, Tensor]:
    """One step of an LSTM: (hidden, cell)."""
    h, c = hx
    i, f, g, o = _gates(input, h, w_ih, w_hh, b_ih, b_hh).chunk(4, 1)
    cell = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _affine(x: Tensor, w: Tensor, b: Any) -> Tensor:
    return x @ w.mT if b is None else x @ w.mT + b


def _gates(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any, b_hh: Any) -> Tensor:
    return _affine(x, w_ih, b_ih) + _affine(h, w_hh, b_hh)


@public("gru_cell", method=False)
def gru_cell(input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Tensor:
    """One step of a GRU."""
    ri, zi, ni = _affine(input, w_ih, b_ih).chunk(3, 1)
    rh, zh, nh = _affine(hx, w_hh, b_hh).chunk(3, 1)
    z, n = (zi + zh).sigmoid(), (ni + (ri + rh).sigmoid() * nh).tanh()
    return n + z * (hx - n)


@public("rnn_tanh_cell", method=False)
def rnn_tanh_cell(input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Tensor:
    """One step of a simple recurrent network with tanh."""
    return _gates(input, hx, w_ih, w_hh, b_ih, b_hh).tanh()


@public("rnn_relu_cell", method=False)
def rnn_relu_cell(input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Tensor:
    """One step of a simple recurrent network with relu."""
    return _gates(input, hx, w_ih, w_hh, b_ih, b_hh).relu()


@public("cond", method=False)
def cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Sequence[Any] = ()) -> Any:
    """One of two functions, by a condition: Python's if."""
    return true_fn(*operands) if bool(pred) else false_fn(*operands)


@public("while_loop", method=False)
def while_loop(cond_fn: Callable[..., Any], body_fn: Callable[..., Any], carried_inputs: Sequence[Any]) -> Any:
    """Repeat a function while a condition holds: Python's while."""
    values = tuple(carried_inputs)
    while bool(cond_fn(*values)):
        values = body_fn(*values)
    return values
