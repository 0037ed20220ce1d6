"""What a Tensor can do that is not an operator: values for Python and NumPy, conversion, its place on the tape, copying."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from torchlet import autograd, dtypes, printing, storage
from torchlet.autograd import OpNode, edge_of, force, inplace
from torchlet.dtypes import dtype as DType
from torchlet.op import RUNS, STATE, apply, when_walking
from torchlet.ops.create import finish, full_
from torchlet.ops.place import place_of, to_device_
from torchlet.ops.pointwise import cast, cast_, clone_, clone_in_order_
from torchlet.ops.public import FUNCTIONS, METHODS, public
from torchlet.ops.view import detach_ as detach_op
from torchlet.spec import CPU, Size, Spec, normalize_dim
from torchlet.spec import broadcast_shapes as common_shape
from torchlet.spec import device as Device
from torchlet.spec import result_type as common_dtype
from torchlet.storage import DeviceArray, as_host
from torchlet.tensor import Array, Node, Tensor, address, new, share, wrap
from torchlet.window import may_be_lent, window

# ------------------------------------------------------------------------------------------------ from data to tensors


def _array_of(data: Any, name: str, given: DType | None = None) -> Array:
    """Nested sequences, numbers, arrays and tensors as one array; Python floats get the default dtype unless one is given."""
    if isinstance(data, np.ndarray | np.generic):
        return np.asarray(data)
    if isinstance(data, bool | int | float | complex):
        return np.array(data, np.float64 if given is not None and isinstance(data, float) else dtypes.of_scalar(data).np)
    if not isinstance(data, list | tuple | range):
        if hasattr(data, "__array__"):
            return np.asarray(data)
        if isinstance(data, Sequence) and not isinstance(data, str | bytes):
            return _array_of(list(data), name, given)  # a deque, a user's sequence
        raise RuntimeError(f"{name}: Could not infer dtype of {type(data).__name__}")
    leaf: Any = data
    while isinstance(leaf, list | tuple) and leaf:
        leaf = leaf[0]
    inner: Any = None
    if isinstance(leaf, Tensor):
        inner = common_dtype(*[Spec((1,), d) for d in _dtypes_within(data)]).np
        data = _values(data)
    try:
        out = np.array(data, inner)
    except ValueError:
        raise ValueError(f"{name}: expected sequences of equal length at every level of the nesting") from None
    if out.dtype == object or (out.dtype.kind not in "biufc" and out.dtype != dtypes.bfloat16.np):
        raise TypeError(f"{name}: got elements of type {type(leaf).__name__}; expected numbers in sequences of equal length")
    if given is None and not isinstance(leaf, np.ndarray | np.generic | Tensor) and (out.dtype.kind in "fc" or not out.size):
        default = dtypes.get_default_dtype()
        out = out.astype(dtypes.complex_of(default).np if out.dtype.kind == "c" else default.np)  # Python numbers carry no precision of their own
    return out


def _dtypes_within(data: Any) -> list[DType]:
    """The dtypes of the tensors and numbers in nested sequences."""
    if isinstance(data, list | tuple):
        return [d for x in data for d in _dtypes_within(x)]
    if isinstance(data, np.ndarray | np.generic):
        return [dtypes.from_numpy(data.dtype)]
    return [data.dtype if isinstance(data, Tensor) else dtypes.of_scalar(data)]


def _values(data: Any) -> Any:
    if isinstance(data, Tensor):
        array = as_host(force(data))
        return array.tolist() if data.dtype is not dtypes.bfloat16 else array.astype(np.float32).tolist()
    return [_values(x) for x in data] if isinstance(data, list | tuple) else data


def _checked(array: Array, dtype: DType | None) -> Array:
    """`array` in native byte order with a dtype that torchlet has."""
    d = dtypes.from_numpy(array.dtype) if dtype is None else dtype
    with np.errstate(all="ignore"):
        return array if array.dtype == d.np and array.dtype.isnative else array.astype(d.np)


@public(method=False)
def tensor(data: Any, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, pin_memory: bool = False) -> Tensor:
    """A new leaf tensor with a copy of `data` (numbers, nested sequences, arrays, tensors).

    Python floats get the default dtype, ints int64, bools bool; arrays and tensors keep theirs. Raises ValueError for ragged
    sequences, TypeError for element types that are no numbers, RuntimeError for integers that shall require grad.
    """
    source = as_host(force(data)) if isinstance(data, Tensor) else _array_of(data, "tensor", dtype)
    if device is None and isinstance(data, Tensor):
        device = data.device
    array = _checked(source, dtype)
    t = wrap(
        storage.copy(array)
        if array is source or np.may_share_memory(array, source)
        else np.ascontiguousarray(array).reshape(array.shape)
    )
    return finish(t, STATE.default_device if device is None else device, requires_grad)


@public(method=False)
def as_tensor(data: Any, dtype: DType | None = None, device: Any = None) -> Tensor:
    """`data` itself if it is a tensor that fits, a tensor over the same memory if it is a fitting array, else a copy."""
    if isinstance(data, Tensor):
        return data.to(device=device, dtype=dtype)
    if isinstance(data, np.ndarray) and (dtype is None or data.dtype == dtype.np) and data.dtype.isnative:
        return from_numpy(data)
    return tensor(data, dtype=dtype, device=device)


@public("asarray", method=False)
def asarray(obj: Any, *, dtype: DType | None = None, device: Any = None, copy: bool | None = None, requires_grad: bool = False) -> Tensor:
    """`tensor` if `copy`, else `as_tensor`."""
    return finish(tensor(obj, dtype=dtype) if copy else as_tensor(obj, dtype), device, requires_grad)


@public(method=False)
def from_numpy(ndarray: Array) -> Tensor:
    """A tensor over the memory of a NumPy array: changes show on both sides.

    Compiled calls read a copy of it for as long as somebody else holds the array. Raises TypeError for something else than an array, or
    an element type that torchlet lacks.
    """
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"from_numpy: expected np.ndarray (got {type(ndarray).__name__})")
    if not ndarray.dtype.isnative:
        raise ValueError(
            "from_numpy: given numpy array has byte order different from the native byte order. Conversion between byte orders is "
            "currently not supported."
        )
    if any(s % ndarray.itemsize for s in ndarray.strides) or any(s < 0 for s in ndarray.strides):
        raise ValueError(
            f"from_numpy: got strides {ndarray.strides} in bytes; expected positive multiples of the element size "
            f"{ndarray.itemsize}\nhelp: copy the array first"
        )
    if not ndarray.flags.writeable:
        return wrap(np.array(ndarray, order="K"))  # a tensor can always be written
    return _over(ndarray)


def _over(array: Array) -> Tensor:
    """A tensor over memory that others may hold."""
    t = wrap(window(array))
    if may_be_lent(array):
        t._store.lent = array
    else:
        t._store.export_for_good()
    share(t)
    return t


@public(method=False)
def broadcast_shapes(*shapes: Any) -> Size:
    """The common shape of shapes. Raises RuntimeError where they do not fit."""
    return Size(common_shape("broadcast_shapes", *[(s,) if isinstance(s, int) else tuple(s) for s in shapes]))


@public(method=False)
def is_tensor(obj: Any) -> bool:
    """True for a Tensor."""
    return isinstance(obj, Tensor)


# ------------------------------------------------------------------------------------------------ values for Python


@public(function=False)
def item(self: Tensor) -> Any:
    """The one element as a Python number. Raises RuntimeError when there are more or none."""
    a = self._np
    if a is None or STATE.run is not None or autograd.other_threads():
        a = force(self)
    if a.size != 1:
        raise RuntimeError(f"a Tensor with {a.size} elements cannot be converted to Scalar")
    a = as_host(a)
    return float(a.reshape(())) if a.dtype == dtypes.bfloat16.np else a.item()


@public(function=False)
def tolist(self: Tensor) -> Any:
    """The elements as nested lists of Python numbers (a number for a 0-d tensor)."""
    return _values(self)


@public(function=False)
def numpy(self: Tensor, *, force: bool = False) -> Array:
    """A NumPy array over the same memory. Raises RuntimeError when the tensor requires grad, unless `force`."""
    if self._meta.requires_grad:
        if not force:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        self = apply(detach_op, (self,))
    a = autograd.force(self)
    if self._meta.device is not CPU:
        if force:
            return as_host(a)
        raise TypeError(
            f"can't convert {self._meta.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )
    sight = self._store.export()
    _show(self)
    return window(a, sight)


def _show(t: Tensor) -> None:
    """NumPy can see the memory of `t` now."""
    share(t)
    for weak in list(RUNS):
        run = weak()
        if run is not None:
            run.show(t._store)


def _array(self: Tensor, dtype: Any = None, copy: bool | None = None) -> Array:
    a = np.array(numpy(self), copy=True) if copy else numpy(self)
    return a if dtype is None or a.dtype == dtype else a.astype(dtype)


def _array_wrap(self: Tensor, array: Any, context: Any = None, return_scalar: bool = False) -> Tensor:
    made = np.asarray(array)  # what a NumPy function makes of a tensor is a tensor
    return wrap(made) if made.base is None else _over(made)


def _one(self: Tensor, wanted: str) -> Any:
    if self._meta.numel != 1:
        raise TypeError(f"only one element tensors can be converted to Python {wanted}; the tensor has shape {tuple(self._meta.shape)}")
    return item(self)


def _bool(self: Tensor) -> bool:
    n = self._meta.numel
    if n != 1:
        raise RuntimeError(f"Boolean value of Tensor with {'no values' if n == 0 else 'more than one value'} is ambiguous")
    return bool(item(self))


def _index(self: Tensor) -> int:
    if self._meta.numel != 1 or self._meta.dtype.has_gradient:
        raise TypeError("only integer tensors of a single element can be converted to an index")
    return int(item(self))


def _len(self: Tensor) -> int:
    if not self._meta.shape:
        raise TypeError("len() of a 0-d tensor")
    return self._meta.shape[0]


def _iter(self: Tensor) -> Iterator[Tensor]:
    if not self._meta.shape:
        raise TypeError("iteration over a 0-d tensor")
    return iter(self.unbind(0))


def _contains(self: Tensor, element: Any) -> bool:
    if not isinstance(element, Tensor | int | float | np.generic):
        raise RuntimeError(f"Tensor.__contains__ only supports Tensor or scalar, but you passed in a {type(element)}.")
    return bool((self == element).any())


def _format(self: Tensor, spec: str) -> str:
    return format(item(self), spec) if not self._meta.shape else object.__format__(self, spec)


def _repr(self: Tensor) -> str:
    notes = []
    if self._meta.requires_grad:
        node = grad_fn(self)
        notes.append("requires_grad=True" if node is None else f"grad_fn={node!r}")
    if self._meta.device is not CPU:
        notes.insert(0, f"device='{self._meta.device}'")
    return printing.tensor_text(as_host(force(self)), self._meta.dtype, notes)


METHODS |= {
    "__array__": _array,
    "__array_wrap__": _array_wrap,
    "__bool__": _bool,
    "__float__": lambda self: float(_one(self, "scalars")),
    "__int__": lambda self: int(_one(self, "scalars")),
    "__complex__": lambda self: complex(_one(self, "scalars")),
    "__index__": _index,
    "__len__": _len,
    "__iter__": _iter,
    "__contains__": _contains,
    "__format__": _format,
    "__repr__": _repr,
    "__reversed__": lambda self: self.flip(0) if self.ndim else self,
}

# ------------------------------------------------------------------------------------------------ description


@public(function=False)
def size(self: Tensor, dim: int | None = None) -> Any:
    """The shape, or the size of one dimension."""
    return self._meta.shape if dim is None else self._meta.shape[_dim("size", dim, self)]


def _dim(name: str, dim: int, t: Tensor) -> int:
    if not t._meta.shape:
        raise IndexError(f"{name}: Dimension specified as {dim} but tensor has no dimensions")
    return normalize_dim(name, dim, t.ndim)


@public("dim", "ndimension", function=False)
def dim_(self: Tensor) -> int:
    """The number of dimensions."""
    return len(self._meta.shape)


@public("numel", "nelement")
def numel(input: Tensor) -> int:
    """The number of elements."""
    return input._meta.numel


@public(function=False)
def stride(self: Tensor, dim: int | None = None) -> Any:
    """The steps in memory, in elements, of each dimension or of one."""
    return self._meta.strides if dim is None else self._meta.strides[_dim("stride", dim, self)]


@public(function=False)
def is_contiguous(self: Tensor, memory_format: Any = None) -> bool:
    """True if the elements lie in row-major order without gaps."""
    return self._meta.contiguous


@public(function=False)
def element_size(self: Tensor) -> int:
    """Bytes of one element."""
    return self._meta.dtype.itemsize


@public(function=False)
def storage_offset(self: Tensor) -> int:
    """Elements between the start of the memory and the first element."""
    a = force(self)
    owner: Any = a
    while isinstance(base := owner.owner if isinstance(owner, DeviceArray) else owner.base, np.ndarray | DeviceArray):
        owner = base
    return (storage.address(a) - storage.address(owner)) // a.itemsize


@public(function=False)
def data_ptr(self: Tensor) -> int:
    """The address of the first element. Whoever knows it may write there: compiled calls read copies of this memory from now on."""
    force(self)
    self._store.export_for_good()
    _show(self)
    return address(self)


@public()
def is_floating_point(input: Tensor) -> bool:
    """True for floating-point dtypes."""
    return input._meta.dtype.is_floating_point


@public()
def is_nonzero(input: Tensor) -> bool:
    """The truth of a one-element tensor."""
    return _bool(input)


def _version(self: Tensor) -> int:
    run = STATE.run
    if run is not None and (run.writes_pending or self._np is None):
        force(self)
    return self._store.version


_TYPE_NAMES: dict[DType, str] = {
    dtypes.float32: "Float", dtypes.float64: "Double", dtypes.float16: "Half", dtypes.bfloat16: "BFloat16", dtypes.int8: "Char",
    dtypes.uint8: "Byte", dtypes.int16: "Short", dtypes.int32: "Int", dtypes.int64: "Long", dtypes.bool_: "Bool", dtypes.complex64: "ComplexFloat",
    dtypes.complex128: "ComplexDouble",
}
METHODS |= {
    "is_signed": lambda self: self._meta.dtype.is_signed,
    "type": lambda self, dtype=None: (
        f"{dtypes.PACKAGE}.{'cuda.' if self.is_cuda else ''}{_TYPE_NAMES[self._meta.dtype]}Tensor" if dtype is None else self.to(dtype)
    ),
    "get_device": lambda self: -1 if self.device is CPU else self.device.index,
    "is_cuda": property(lambda self: self._meta.device is not CPU, doc="True on a CUDA device."),
    "itemsize": property(lambda self: self._meta.dtype.itemsize, doc="Bytes of one element."),
    "nbytes": property(lambda self: self._meta.numel * self._meta.dtype.itemsize, doc="Bytes of all elements."),
    "_version": property(_version, doc="How often the memory was overwritten."),
    "is_pinned": lambda self: self._meta.device is CPU and storage.is_pinned(force(self)),
    "is_same_size": lambda self, other: self.shape == other.shape,
    "is_set_to": lambda self, tensor: (
        address(self) == address(tensor) and self._meta.replace(shared=True, requires_grad=False) is tensor._meta.replace(shared=True, requires_grad=False)
    ) if force(self) is not None and force(tensor) is not None else False,
}

# ------------------------------------------------------------------------------------------------ conversion


@public(function=False)
def to(
    self: Tensor,
    *args: Any,
    dtype: DType | None = None,
    device: Any = None,
    copy: bool = False,
    non_blocking: bool = False,
    memory_format: Any = None,
) -> Tensor:
    """The tensor with another dtype, on another device, or like another tensor; itself where nothing changes, unless `copy`."""
    for arg in args:
        if isinstance(arg, DType):
            dtype = arg
        elif isinstance(arg, Tensor):
            dtype, device = arg.dtype, arg.device
        elif isinstance(arg, bool):
            non_blocking = arg
        elif arg is not None:
            if not isinstance(arg, str | int | Device):
                raise TypeError(f"to: argument of type {type(arg).__name__}; expected a dtype, a device or a Tensor")
            device = arg
    out = self
    if dtype is not None and dtype is not self._meta.dtype:
        out = apply(cast_, (out,), (dtype,))
    if device is not None and device is not self._meta.device and (place := place_of(device)) is not self._meta.device:
        out = apply(to_device_, (out,), (place, non_blocking))
    return apply(clone_, (out,)) if copy and out is self else out


def _converter(name: str, d: DType) -> None:
    def f(self: Tensor, memory_format: Any = None) -> Tensor:
        return cast(self, d)

    f.__name__, f.__qualname__, f.__doc__ = name, name, f"The tensor as {d.name}."
    METHODS[name] = f


for _name, _dtype in {
    "float": dtypes.float32,
    "double": dtypes.float64,
    "half": dtypes.float16,
    "bfloat16": dtypes.bfloat16,
    "int": dtypes.int32,
    "long": dtypes.int64,
    "short": dtypes.int16,
    "char": dtypes.int8,
    "byte": dtypes.uint8,
    "bool": dtypes.bool_,
}.items():
    _converter(_name, _dtype)


@public(function=False)
def cpu(self: Tensor, memory_format: Any = None) -> Tensor:
    """The tensor on the CPU."""
    return to(self, CPU)


@public(function=False)
def cuda(self: Tensor, device: Any = None, non_blocking: bool = False) -> Tensor:
    """The tensor on a CUDA device. Raises RuntimeError where there is none."""
    return to(self, Device("cuda") if device is None else Device(device), non_blocking=non_blocking)


@public(function=False)
def pin_memory(self: Tensor, device: Any = None) -> Tensor:
    """A copy in memory that a CUDA device reads directly, so that `to(device, non_blocking=True)` does not wait; itself where it lies there."""
    if self._meta.device is not CPU:
        raise RuntimeError(f"cannot pin '{_TYPE_NAMES[self._meta.dtype]}Tensor' of {self._meta.device}; only dense CPU tensors can be pinned")
    source = force(self)
    return self if storage.is_pinned(source) else wrap(storage.pinned(source))


@public(function=False)
def record_stream(self: Tensor, stream: Any) -> None:
    """Nothing has to be told: memory is used again only when every stream has passed the point where it was freed."""


@public(function=False)
def type_as(self: Tensor, other: Tensor) -> Tensor:
    """The tensor with the dtype of `other`."""
    return cast(self, other._meta.dtype)


@public()
def clone(input: Tensor, *, memory_format: Any = None) -> Tensor:
    """A copy in fresh memory; gradients flow through. It keeps the memory order, unless `memory_format` asks for row-major."""
    row_major = input._meta.contiguous or memory_format is FUNCTIONS["contiguous_format"]
    return apply(clone_ if row_major else clone_in_order_, (input,))


@public("copy_", function=False)
def copy_(self: Tensor, src: Any, non_blocking: bool = False) -> Tensor:
    """Overwrite the elements with those of `src`, broadcast and converted. Raises RuntimeError where the shapes do not fit."""
    if not isinstance(src, Tensor):
        src = as_tensor(src)
    if src._meta.shape != self._meta.shape:
        src = src.expand(self._meta.shape)
    return inplace(clone_, self, (src,))


def _new(name: str, make: str) -> None:
    def f(self: Tensor, *args: Any, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any) -> Tensor:
        return FUNCTIONS[make](*args, dtype=dtype or self._meta.dtype, device=device or self._meta.device, requires_grad=requires_grad)  # type: ignore[no-any-return]

    f.__name__, f.__qualname__, f.__doc__ = name, name, f"`torchlet.{make}` with this tensor's dtype and device unless given."
    METHODS[name] = f


for _name in ("zeros", "ones", "empty", "full"):
    _new("new_" + _name, _name)


@public(function=False)
def new_tensor(self: Tensor, data: Any, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """`torchlet.tensor` with this tensor's dtype unless given."""
    return tensor(data, dtype=dtype or self._meta.dtype, device=device or self._meta.device, requires_grad=requires_grad)


@public("fill_", function=False)
def fill_(self: Tensor, value: Any) -> Tensor:
    """Overwrite every element with a number or a 0-d tensor."""
    if isinstance(value, Tensor):
        if value.ndim:
            raise RuntimeError(f"fill_ only supports 0-dimension value tensor but got tensor with {value.ndim} dimensions.")
        return copy_(self, value)
    return inplace(full_, self, (value,), (tuple(self._meta.shape), self._meta.dtype))


@public("zero_", function=False)
def zero_(self: Tensor) -> Tensor:
    """Overwrite every element with 0."""
    return inplace(full_, self, (0,), (tuple(self._meta.shape), self._meta.dtype))


# ------------------------------------------------------------------------------------------------ the tape


class GradFn:
    """What made a tensor, as `t.grad_fn` shows it; its class has the name of the operation's backward."""

    __slots__ = ("node", "output")

    def __init__(self, node: Node | Tensor, output: int = 0):
        self.node, self.output = node, output

    def name(self) -> str:
        """The name of the operation's backward: "MulBackward0"."""
        return type(self).__name__

    @property
    def next_functions(self) -> tuple[tuple[GradFn | None, int], ...]:
        """Where the gradients of the inputs go: (function, output number) for each input."""
        edges = self.node.edges if isinstance(self.node, Node) else ()
        return tuple((None, 0) if e is None else (_shown(e), 0) if isinstance(e, Tensor) else (_shown(*e), e[1]) for e in edges)

    @property
    def variable(self) -> Tensor:
        """The leaf tensor of an AccumulateGrad."""
        if isinstance(self.node, Tensor):
            return self.node
        raise AttributeError(f"{self.name()} has no variable; only AccumulateGrad has")

    def __repr__(self) -> str:
        return f"<{self.name()}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GradFn) and other.node is self.node and other.output == self.output

    def __hash__(self) -> int:
        return id(self.node)


_BACKWARD_NAMES = {
    "pow_number": "Pow",
    "matmul": "Mm",
    "linear": "Addmm",
    "linear_without_bias": "Mm",
    "cast": "ToCopy",
    "cat": "Cat",
    "view_scatter": "CopySlices",
}


@cache
def _kind(name: str) -> type[GradFn]:
    return type(name, (GradFn,), {"__slots__": ()})


def _shown(node: Node | Tensor, output: int = 0) -> GradFn:
    return _kind(_backward_name(node, output))(node, output)


def _backward_name(node: Any, output: int) -> str:
    if isinstance(node, Tensor):
        return "AccumulateGrad"
    if isinstance(node, OpNode):
        op, attrs, out, first = node.op, node.attrs, node.metas[0], node.in_metas[0]
    elif getattr(node, "maker", None) is not None and (made := node.maker(output)).kind == "op":  # of a compiled call
        op, attrs, out, first = made.op, made.attrs, made.spec, (*made.args(), made)[0].spec
    else:
        function = getattr(node, "function", None)
        return f"{function.__name__}Backward" if function is not None else type(node).__name__
    name = op.name
    if name == "index_basic":
        kinds = [item[0] for item in attrs[0]]
        stem = "Select" if "i" in kinds else "Unsqueeze" if "n" in kinds else "Slice"
    elif name == "permute":
        stem = "T" if attrs[0] == (1, 0) else "Permute"
    elif name == "matmul" and len(out.shape) > 2:
        stem = "Bmm"
    elif name == "view_chain":
        return "AsStridedBackward0"
    elif name == "view_scatter":
        return "CopySlices"
    else:
        stem = _BACKWARD_NAMES.get(name) or "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    return f"{stem}Backward{1 if name in ('sum', 'mean') and len(attrs[0]) < len(first.shape) else 0}"


def grad_fn(self: Tensor) -> GradFn | None:
    """What made the tensor; None for leaves."""
    if not self._meta.requires_grad:
        return None
    if self._np is None:
        force(self)
    edge = edge_of(self)
    return _shown(*edge) if edge.__class__ is tuple else None


def _get_grad(self: Tensor) -> Tensor | None:
    return self._grad


def _set_grad_of(self: Tensor, value: Tensor | None) -> None:
    if value is not None:
        if not isinstance(value, Tensor):
            raise TypeError(f"assigned grad expected to be a Tensor or None but got grad of type {type(value).__name__}")
        if value is self:
            raise RuntimeError("can't assign Variable as its own grad")
        if value._meta.dtype is not self._meta.dtype:
            raise RuntimeError(f"assigned grad has data of a different type: {value._meta.dtype}; expected the tensor's {self._meta.dtype}")
        if value._meta.shape != self._meta.shape:
            raise RuntimeError(
                f"assigned grad has data of a different size: {list(value._meta.shape)}; expected the tensor's "
                f"{list(self._meta.shape)}"
            )
    self._grad = value


def _settle(self: Tensor, why: str) -> None:
    """What is pending is run, because the description of a tensor is about to change under it."""
    run = STATE.run
    if self._np is None:
        force(self)
    if run is not None:
        run.flush(why)


@public("requires_grad_", function=False)
def requires_grad_(self: Tensor, requires_grad: bool = True) -> Tensor:
    """Say that gradients shall (not) be collected for this leaf. Raises RuntimeError for integers and for non-leaves."""
    m = self._meta
    if requires_grad == m.requires_grad:
        return self
    if requires_grad and not m.dtype.has_gradient:
        raise RuntimeError(
            f"requires_grad_: only Tensors of floating point dtype can require gradients; the tensor has dtype {m.dtype.name}"
        )
    if not requires_grad and not autograd.is_leaf(self):
        raise RuntimeError(
            "you can only change requires_grad flags of leaf variables.\nhelp: use .detach() to get a tensor that does not require "
            "grad"
        )
    _settle(self, "requires_grad_")
    self._meta = self._meta.replace(requires_grad=bool(requires_grad))
    return self


def _set_requires_grad(self: Tensor, value: bool) -> None:
    requires_grad_(self, value)


@public("detach_", function=False)
def detach_(self: Tensor) -> Tensor:
    """Take the tensor itself off the tape. Raises RuntimeError for views of tensors that require grad."""
    base = self._base
    if base is not None and base[0]._meta.requires_grad:  # type: ignore[index]
        raise RuntimeError("Can't detach views in-place. Use detach() instead.")
    if self._meta.requires_grad:
        _settle(self, "detach_")
        self._node, self._out, self._meta = None, 0, self._meta.replace(requires_grad=False)
    return self


def _get_data(self: Tensor) -> Tensor:
    return apply(detach_op, (self,))


def _set_data(self: Tensor, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"Variable data has to be a tensor, but got {type(value).__name__}")
    if self._meta.requires_grad and not value._meta.dtype.has_gradient:
        raise RuntimeError("data set to a tensor that requires gradients must be floating point or complex dtype")
    _settle(self, ".data =")
    array = force(value)
    share(value)
    self._np, self._store, self._ptr = array, value._store, 0
    self._meta = value._meta.replace(requires_grad=self._meta.requires_grad)


@public(function=False)
def backward(
    self: Tensor, gradient: Tensor | None = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
) -> None:
    """Add the gradients of this tensor to `.grad` of the leaves (of `inputs` alone where given).

    `gradient` weights the elements; a tensor of one element needs none. Raises RuntimeError where there is nothing to go back
    through, on a second call without `retain_graph`, and where saved values were overwritten.
    """
    run = STATE.run
    if run is not None and inputs is None and run.follow_backward((self,), (gradient,), bool(create_graph if retain_graph is None else retain_graph), create_graph, None):
        return
    only = None if inputs is None else [inputs] if isinstance(inputs, Tensor) else list(inputs)
    autograd.backward((self,), (gradient,), create_graph if retain_graph is None else retain_graph, create_graph, only)


def _put_backward(walk: Any) -> None:
    """`Tensor.backward` in C, for backward passes that are known."""
    if Tensor.__dict__.get("backward") is backward:
        Tensor.backward = walk.Twin("backward", backward)  # type: ignore[method-assign]


when_walking(_put_backward)

METHODS |= {
    "grad": property(_get_grad, _set_grad_of, doc="The gradient that `backward` collected, or None."),
    "grad_fn": property(grad_fn, doc="What made the tensor; None for leaves."),
    "is_leaf": property(autograd.is_leaf, doc="True for tensors that no recorded operation made."),
    "data": property(_get_data, _set_data, doc="The same memory, off the tape; assigning replaces the memory."),
    "requires_grad": property(lambda self: self._meta.requires_grad, _set_requires_grad, doc="True if gradients flow to this tensor."),
    "retains_grad": property(lambda self: self._retains_grad, doc="True after `retain_grad` on a non-leaf."),
    "retain_grad": autograd.retain_grad,
    "register_hook": autograd.register_hook,
    "register_post_accumulate_grad_hook": autograd.register_post_accumulate_grad_hook,
}

# ------------------------------------------------------------------------------------------------ comparison of whole tensors


@public()
def equal(input: Tensor, other: Tensor) -> bool:
    """True if shapes and all elements are equal (NaN equals nothing)."""
    return input._meta.shape == other._meta.shape and bool(np.array_equal(as_host(force(input)), as_host(force(other))))


@public()
def isclose(input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Tensor:
    """Elementwise |input - other| <= atol + rtol * |other|."""
    if rtol < 0 or atol < 0:
        raise RuntimeError(f"isclose: rtol and atol must be greater than or equal to zero, but got {rtol} and {atol}")
    same = input == other
    if equal_nan:
        same = same | (input.isnan() & other.isnan())
    if not input.dtype.has_gradient and rtol == 0 == atol or input.dtype is dtypes.bool_:
        return same
    return same | (((input - other).abs() <= atol + rtol * other.abs()) & other.isfinite())


@public()
def allclose(input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> bool:
    """True if all elements are close (see `isclose`). Raises RuntimeError for different dtypes."""
    if input.dtype is not other.dtype:
        raise RuntimeError(f"allclose: {input.dtype.name} did not match {other.dtype.name}; expected equal dtypes")
    with autograd.no_grad():
        return bool(isclose(input, other, rtol, atol, equal_nan).all())


@public(method=False)
def result_type(tensor1: Any, tensor2: Any) -> DType:
    """The dtype that an operation on the two gives."""
    specs = [
        x._meta.spec if isinstance(x, Tensor) else Spec((), dtypes.of_scalar(x) if not isinstance(x, float) else dtypes.float64, weak=True)
        for x in (tensor1, tensor2)
    ]
    return common_dtype(*specs)


@public("can_cast", method=False)
def can_cast(from_: DType, to: DType) -> bool:
    """True if in-place results of dtype `from_` may be stored in `to`: categories only go up."""
    return from_.category <= to.category


def set_default_dtype(d: DType) -> None:
    """Make `d` the dtype of new floating-point tensors. Raises TypeError if it is not a floating-point dtype."""
    run = STATE.run
    if run is None:
        dtypes.set_default_dtype(d)
    else:  # the operations before and after it belong to different paths
        run.flush("set_default_dtype")
        dtypes.set_default_dtype(d)
        run.event("default dtype", d)


FUNCTIONS |= {
    "promote_types": dtypes.promote_types,
    "get_default_dtype": dtypes.get_default_dtype,
    "set_default_dtype": set_default_dtype,
    "set_printoptions": printing.set_printoptions,
}

# ------------------------------------------------------------------------------------------------ copying and pickling


def _deepcopy(self: Tensor, memo: dict[int, Any]) -> Tensor:
    if id(self) in memo:
        return memo[id(self)]  # type: ignore[no-any-return]
    if not autograd.is_leaf(self):
        raise RuntimeError(
            "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol at the moment.\nhelp: copy "
            ".detach()"
        )
    out = _rebuild(storage.copy(force(self)), self._meta.requires_grad)
    out.__class__ = self.__class__
    if self._grad is not None:
        out._grad = _deepcopy(self._grad, memo)
    memo[id(self)] = out
    return out


def _copy(self: Tensor) -> Tensor:
    """Another leaf over the same memory."""
    out: Tensor = new(self.__class__)
    out._np, out._store = force(self), self._store
    share(self)
    out._meta = self._meta
    out.__dict__.update(self.__dict__)
    return out


def _rebuild(array: Any, requires_grad: bool, place: str = "cpu") -> Tensor:
    t = wrap(array if place == "cpu" else storage.transfer(array, place_of(place)))
    t._meta = t._meta.replace(requires_grad=requires_grad)
    return t


def _reduce(self: Tensor, protocol: Any) -> Any:
    array = as_host(force(self))
    if self._meta.device is CPU:  # a pickle may leave the bytes where they are (PickleBuffer)
        sight = self._store.export()
        _show(self)
        array = window(array, sight)
    array = np.ascontiguousarray(array).reshape(self._meta.shape)
    return _rebuild, (array, self._meta.requires_grad, str(self._meta.device))


def _dlpack(self: Tensor, **kwargs: Any) -> Any:
    return numpy(self).__dlpack__(**kwargs)


METHODS |= {"__copy__": _copy, "__deepcopy__": _deepcopy, "__reduce_ex__": _reduce, "__dlpack__": _dlpack, "__dlpack_device__": lambda self: (1, 0) if self._meta.device is CPU else (2, self._meta.device.index)}


@public(method=False)
def from_dlpack(ext_tensor: Any) -> Tensor:
    """A tensor over the memory of an object with `__dlpack__`."""
    return from_numpy(np.from_dlpack(ext_tensor))
