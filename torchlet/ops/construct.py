"""Ways to make tensors from older programs, `torch.Tensor(2, 3)` and `torch.LongTensor([1])`, limits of dtypes, and attributes that say nothing here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from torchlet import dtypes, storage
from torchlet.autograd import force
from torchlet.ops.index import getitem
from torchlet.ops.public import FUNCTIONS, METHODS, public
from torchlet.spec import Size
from torchlet.tensor import Tensor, new, share, wrap

# ------------------------------------------------------------------------------------------------ Tensor(…), FloatTensor(…)


def _made(args: tuple[Any, ...], dtype: dtypes.dtype, device: Any = None) -> Tensor:
    """Nothing, sizes, a sequence or array of numbers, or a tensor, as a tensor of this dtype."""
    if len(args) == 1 and not isinstance(args[0], int | Size):
        if isinstance(args[0], Tensor):
            return args[0].detach().to(dtype)
        return FUNCTIONS["tensor"](args[0], dtype=dtype, device=device)  # type: ignore[no-any-return]
    sizes = args[0] if len(args) == 1 and isinstance(args[0], Size) else args
    return FUNCTIONS["zeros"](tuple(sizes) or 0, dtype=dtype, device=device)  # type: ignore[no-any-return]


def _new_tensor(cls: type[Tensor], *args: Any, device: Any = None, **_: Any) -> Tensor:
    """`Tensor()`, `Tensor(2, 3)` (zeros of these sizes), `Tensor([1, 2])`: a tensor of the default dtype."""
    made = _made(args, dtypes.get_default_dtype(), device)
    return made if cls is Tensor else as_subclass(made, cls)


def _init(self: Tensor, *args: Any, **kwargs: Any) -> None:
    """All is done by `__new__`."""


Tensor.__new__ = _new_tensor  # type: ignore[method-assign,assignment]
METHODS["__init__"] = _init


@public(function=False)
def as_subclass(self: Tensor, cls: type[Any]) -> Any:
    """The same memory and place on the tape as an object of a subclass of Tensor."""
    out = new(cls)
    share(self)
    for name in ("_np", "_meta", "_store", "_run", "_step", "_node", "_out", "_hooks", "_base", "_ptr"):
        setattr(out, name, getattr(self, name))
    out.__dict__.update(self.__dict__)
    return out


class _Typed(type):
    """The type of FloatTensor and its kin: instances are tensors of one dtype."""

    dtype: dtypes.dtype

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, Tensor) and instance.dtype is cls.dtype

    def __call__(cls, *args: Any, device: Any = None, **_: Any) -> Tensor:
        return _made(args, cls.dtype, device)


TYPED: dict[str, _Typed] = {}
for _name, _dtype in {
    "Float": dtypes.float32,
    "Double": dtypes.float64,
    "Half": dtypes.float16,
    "BFloat16": dtypes.bfloat16,
    "Char": dtypes.int8,
    "Byte": dtypes.uint8,
    "Short": dtypes.int16,
    "Int": dtypes.int32,
    "Long": dtypes.int64,
    "Bool": dtypes.bool_,
}.items():
    TYPED[f"{_name}Tensor"] = _Typed(f"{_name}Tensor", (), {"dtype": _dtype, "__doc__": f"Makes tensors of dtype {_dtype.name}."})
FUNCTIONS.update(TYPED)
_type = METHODS["type"]


def _typed(self: Tensor, dtype: Any = None, non_blocking: bool = False) -> Any:
    """The name of the tensor's type, or the tensor as another type: a dtype, FloatTensor and its kin, or their name."""
    if isinstance(dtype, str):
        found = TYPED.get(dtype.rpartition(".")[2])
        if found is None:
            raise ValueError(f"invalid type: '{dtype}'")
        dtype = found
    return _type(self, dtype.dtype if isinstance(dtype, _Typed) else dtype)


METHODS["type"] = _typed


@public(method=False)
def set_default_tensor_type(t: Any) -> None:
    """Make a type's dtype the default. Raises TypeError for integer types."""
    dtypes.set_default_dtype((TYPED[t.rpartition(".")[2]] if isinstance(t, str) else t).dtype)


@public(method=False)
def scalar_tensor(s: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **_: Any) -> Tensor:
    """A 0-d tensor with one number, in the default dtype."""
    return FUNCTIONS["full"]((), s, dtype=dtype or dtypes.get_default_dtype(), device=device, requires_grad=requires_grad)  # type: ignore[no-any-return]


@public(method=False)
def frombuffer(buffer: Any, *, dtype: dtypes.dtype, count: int = -1, offset: int = 0, requires_grad: bool = False) -> Tensor:
    """A vector over the bytes of an object with the buffer protocol."""
    return FUNCTIONS["from_numpy"](np.frombuffer(buffer, dtype.np, count, offset)).requires_grad_(requires_grad)  # type: ignore[no-any-return]


@public("range", method=False)
def range_(start: float, end: float | None = None, step: float = 1, **kwargs: Any) -> Tensor:
    """start, start + step, … up to and including end."""
    start, end = (0, start) if end is None else (start, end)
    kwargs.setdefault("dtype", dtypes.get_default_dtype())
    return FUNCTIONS["arange"](start, end + step * 1e-6 if step > 0 else end - 1e-6, step, **kwargs)  # type: ignore[no-any-return]


@public(method=False)
def logspace(
    start: float, end: float, steps: int, base: float = 10.0, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """base ** start … base ** end, evenly spaced in the exponent."""
    if steps < 0:
        raise RuntimeError(f"logspace: number of steps must be non-negative; got {steps}")
    start, end = float(start), float(end)
    if dtype is not None and dtype.category == 1:
        start, end = int(start), int(end)
    values = np.power(float(base), np.linspace(start, end, int(steps)))
    return FUNCTIONS["tensor"](values, dtype=dtype or dtypes.get_default_dtype(), device=device, requires_grad=requires_grad)  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------ limits of dtypes


class finfo:
    """The limits of a floating-point dtype: bits, eps, max, min, tiny, smallest_normal, resolution."""

    def __init__(self, type: dtypes.dtype | None = None):
        d = dtypes.get_default_dtype() if type is None else type
        if not d.has_gradient:
            raise TypeError(f"torch.finfo() requires a floating point input type. Use torch.iinfo to handle '{d.name}'")
        found = dtypes.finfo(dtypes.real_of(d))
        self.dtype, self.bits = d.name, found.bits
        self.eps, self.max, self.min = float(found.eps), float(found.max), float(found.min)
        self.tiny = self.smallest_normal = float(found.smallest_normal)
        self.resolution = float(found.resolution)

    def __repr__(self) -> str:
        return f"finfo(resolution={self.resolution:g}, min={self.min:g}, max={self.max:g}, eps={self.eps:g}, smallest_normal={self.tiny:g}, tiny={self.tiny:g}, dtype={self.dtype})"


class iinfo:
    """The limits of an integer dtype: bits, max, min."""

    def __init__(self, type: dtypes.dtype):
        if type.has_gradient or type is dtypes.bool_:
            raise TypeError(f"torch.iinfo() requires an integer input type. Use torch.finfo to handle '{type.name}'")
        found: Any = np.iinfo(type.np)  # type: ignore[type-var]
        self.dtype, self.bits, self.max, self.min = type.name, found.bits, int(found.max), int(found.min)

    def __repr__(self) -> str:
        return f"iinfo(min={self.min}, max={self.max}, dtype={self.dtype})"


FUNCTIONS |= {"finfo": finfo, "iinfo": iinfo}

# ------------------------------------------------------------------------------------------------ words that say nothing here


class memory_format:
    """How an image's dimensions lie in memory; always row-major here, so the word is accepted and changes nothing."""

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f"torchlet.{self.name}"


class layout(memory_format):
    """Whether a tensor is dense; here always."""


FUNCTIONS |= {
    name: memory_format(name)
    for name in ("channels_last", "channels_last_3d", "contiguous_format", "preserve_format", "legacy_contiguous_format")
}
FUNCTIONS |= {name: layout(name) for name in ("strided", "sparse_coo", "sparse_csr")}
FUNCTIONS |= {"memory_format": memory_format, "layout": layout}


class TypedStorage:
    """The memory below a tensor: its size, address and elements."""

    def __init__(self, tensor: Tensor, itemsize: int):
        self._tensor, self._itemsize = tensor, itemsize
        array = force(tensor)
        while isinstance(array.base, np.ndarray):
            array = array.base
        self._array = array

    def data_ptr(self) -> int:
        """The address of the first byte."""
        self._tensor.data_ptr()
        return int(storage.address(self._array))

    def nbytes(self) -> int:
        """How many bytes there are."""
        return int(self._array.nbytes)

    def size(self) -> int:
        """How many elements (bytes, for an untyped storage) there are."""
        return self.nbytes() // self._itemsize

    __len__ = size

    def tolist(self) -> list[Any]:
        """The elements."""
        return self._array.reshape(-1).tolist()  # type: ignore[no-any-return]


class UntypedStorage(TypedStorage):
    """The bytes below a tensor."""


storage.TypedStorage, storage.UntypedStorage = TypedStorage, UntypedStorage  # type: ignore[attr-defined]  # where PyTorch has them


def _dense_only(name: str) -> Callable[[Tensor], Any]:
    def f(self: Tensor, *_: Any, **__: Any) -> Any:
        raise RuntimeError(
            f"{name} expected sparse tensor layout but got Strided; sparse tensors are not there\nhelp: a dense tensor's nonzero() and masks do the same"
        )

    f.__name__, f.__qualname__, f.__doc__ = name, name, f"`{name}` of sparse tensors, which are not there: raises RuntimeError."
    return f


METHODS |= {
    name: _dense_only(name)
    for name in ("values", "indices", "coalesce", "crow_indices", "col_indices", "to_sparse", "sparse_mask", "_values", "_indices")
}
METHODS |= {
    name: property(lambda self: False)
    for name in (
        "is_sparse",
        "is_quantized",
        "is_meta",
        "is_mps",
        "is_xpu",
        "is_mkldnn",
        "is_nested",
        "is_sparse_csr",
        "is_vulkan",
        "is_xla",
    )
}
METHODS |= {
    "is_cpu": property(lambda self: self.device.type == "cpu", doc="True for tensors on the CPU."),
    "layout": property(lambda self: FUNCTIONS["strided"], doc="Always strided."),
    "name": property(lambda self: None, doc="Always None."),
    "names": property(lambda self: (None,) * self.ndim, doc="Dimensions have no names."),
    "output_nr": property(lambda self: self._out, doc="Which output of its function it is."),
    "storage": lambda self: TypedStorage(self, self.dtype.itemsize),
    "untyped_storage": lambda self: UntypedStorage(self, 1),
    "share_memory_": lambda self: self,
    "is_shared": lambda self: False,
    "is_inference": lambda self: False,
    "is_coalesced": lambda self: False,
    "is_distributed": lambda self: False,
    "to_dense": lambda self, dtype=None: self if dtype is None else self.to(dtype),
    "record_stream": lambda self, stream: None,
    "rename": lambda self, *names: self,
    "has_names": lambda self: False,
    "new": lambda self, *args, device=None: _made(args, self.dtype, device),
    "index": lambda self, indices: getitem(self, tuple(indices)),
    "new_empty_strided": lambda self, size, stride, **kw: FUNCTIONS["empty_strided"](size, stride, **{"dtype": self.dtype, **kw}),
}
METHODS.setdefault("pin_memory", lambda self, device=None: self)


@public("apply_", function=False)
def apply_(self: Tensor, callable: Callable[[Any], Any]) -> Tensor:
    """Overwrite every element with what a Python function makes of it."""
    values = [callable(v) for v in self.reshape(-1).tolist()]
    return self.copy_(wrap(np.array(values, self.dtype.np).reshape(self.shape)))  # type: ignore[no-any-return]


@public("map_", function=False)
def map_(self: Tensor, tensor: Tensor, callable: Callable[[Any, Any], Any]) -> Tensor:
    """Overwrite every element with what a Python function makes of it and the other tensor's."""
    values = [callable(a, b) for a, b in zip(self.reshape(-1).tolist(), tensor.expand(self.shape).reshape(-1).tolist(), strict=True)]
    return self.copy_(wrap(np.array(values, self.dtype.np).reshape(self.shape)))  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------ other names of arguments


_AXIS = (
    "split chunk argmax argmin any all cumsum cumprod var std sort argsort amax amin prod stack median topk unbind logsumexp count_nonzero "
    "max min norm"
)
_OTHER_NAMES: dict[str, dict[str, str]] = {name: {"axis": "dim", "keepdims": "keepdim"} for name in _AXIS.split()}  # as in NumPy
_OTHER_NAMES["split"] |= {"split_size": "split_size_or_sections", "tensor": "input"}
_OTHER_NAMES |= {
    "unsafe_split": {"split_size": "split_size_or_sections", "tensor": "input"},
    "tensor_split": {"indices": "indices_or_sections", "sections": "indices_or_sections"},
    "broadcast_to": {"shape": "size"},
    "heaviside": {"values": "other"},
    "swapaxes": {"axis0": "dim0", "axis1": "dim1"},
}


def _renaming(f: Callable[..., Any], known: dict[str, str]) -> Callable[..., Any]:
    """`f` with more than one name for some of its arguments, as PyTorch has them."""

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        return f(*args, **{known.get(k, k): v for k, v in kwargs.items()} if kwargs else kwargs)

    return run


for _name, _known in _OTHER_NAMES.items():
    for _table in (METHODS, FUNCTIONS):
        if _name in _table:
            _table[_name] = _renaming(_table[_name], _known)
