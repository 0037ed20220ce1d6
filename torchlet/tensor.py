"""Tensor = storage + view + place on the tape. Its methods are attached from the op table (`ops/__init__.py`)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from torchlet import dtypes, storage
from torchlet.dtypes import dtype
from torchlet.spec import CPU, Size, Spec, contiguous_strides, device
from torchlet.storage import DeviceArray
from torchlet.window import ALONE, FOREVER, LOCK, Sight, references

Array = np.ndarray[Any, Any]


class Meta:
    """Interned description of a tensor, so that capture compares all of it by one `is`.

    `strides` are in elements. `shared` says that other tensors or NumPy may see the same storage.
    `weak` marks a Python number inside a graph under construction.
    """

    __slots__ = ("shape", "dtype", "strides", "requires_grad", "shared", "device", "weak", "spec", "contiguous", "row_major", "numel")
    table: ClassVar[dict[tuple[Any, ...], Meta]] = {}

    shape: Size
    dtype: dtype
    strides: tuple[int, ...]
    requires_grad: bool
    shared: bool
    device: device
    weak: bool
    spec: Spec
    contiguous: bool  # the elements lie in row-major order without gaps
    row_major: bool  # and the strides of dimensions of size 1 are those of fresh memory, too
    numel: int

    @staticmethod
    def get(
        shape: tuple[int, ...], dtype: dtype, strides: tuple[int, ...] | None = None, requires_grad: bool = False,
        shared: bool = False, device: device = CPU, weak: bool = False,
    ) -> Meta:
        """The one Meta with these values; `strides=None` means contiguous."""
        if strides is None:
            strides = contiguous_strides(shape)
        key = (shape, dtype, strides, requires_grad, shared, device, weak)
        found = Meta.table.get(key)
        if found is None and 0 in shape and strides != contiguous_strides(shape):  # nothing is there to lie anywhere
            found = Meta.table[key] = Meta.get(shape, dtype, None, requires_grad, shared, device, weak)
        if found is None:
            m = object.__new__(Meta)
            m.shape, m.dtype, m.strides, m.requires_grad, m.shared, m.device, m.weak = (
                Size(shape),
                dtype,
                strides,
                requires_grad,
                shared,
                device,
                weak,
            )
            m.spec = Spec(tuple(shape), dtype, device, weak)
            m.numel = m.spec.numel
            dense = contiguous_strides(shape)
            m.row_major = strides == dense
            m.contiguous = m.numel == 0 or all(n == 1 or a == b for n, a, b in zip(shape, strides, dense, strict=True))
            found = Meta.table.setdefault(key, m)
        return found

    def replace(self, **changes: Any) -> Meta:
        """The Meta that differs in the named values."""
        parts = dict(
            shape=tuple(self.shape), dtype=self.dtype, strides=self.strides, requires_grad=self.requires_grad,
            shared=self.shared, device=self.device, weak=self.weak,
        )
        return Meta.get(**{**parts, **changes})

    def __repr__(self) -> str:
        flags = "".join(f", {n}" for n in ("requires_grad", "shared", "weak") if getattr(self, n))
        return f"Meta({self.spec}, strides={self.strides}{flags})"


class Storage:
    """The identity of memory that tensors share: a version that counts in-place writes, and whether NumPy can see it.

    It can while somebody holds one of the windows that it was given (`sight` knows), or holds the array, not ours, that the memory
    belongs to (`lent`, see `from_numpy`). The C walk asks for `exported` where one of the two is not None.
    """

    __slots__ = ("version", "sight", "lent")

    def __init__(self) -> None:
        self.version = 0
        self.sight: Any = None  # a weak reference to what the windows hold
        self.lent: Array | None = None

    @property
    def exported(self) -> bool:
        """True while anybody can read or write the memory without asking its tensors."""
        sight = self.sight
        if sight is not None and sight() is not None:
            return True
        return self.lent is not None and references(self.lent) not in ALONE

    def export(self) -> Any:
        """The memory is seen for as long as somebody holds what this returns."""
        made = Sight()
        mine = weakref.ref(made)
        while True:
            known = self.sight
            found = None if known is None else known()
            if found is not None:
                return found
            with LOCK:
                if self.sight is known:  # no other thread, nor a finalizer in this one, was here in the meantime
                    self.sight = mine
                    return made

    def export_for_good(self) -> None:
        """The memory is seen from now on."""
        with LOCK:
            self.sight = FOREVER


class Tensor:
    """A multi-dimensional array that records what is done with it. Create one with `torchlet.tensor` and its kin.

    A tensor is either computed (`_np` is its array, a DeviceArray for memory of a GPU) or pending inside a compiled call
    (`_np` is None; `_run` and `_step` say where). Reading a pending tensor's value runs what is pending.

    The fields lie in slots, where the C walk reads them without a lookup; `new` fills them. The instance dictionary is for what is rare
    and for attributes of the user's.
    """

    __slots__ = ("_np", "_meta", "_store", "_run", "_step", "_node", "_out", "_grad", "_hooks", "_base", "_ptr", "__dict__", "__weakref__")

    _np: Array | None
    _meta: Meta
    _store: Storage
    _run: Any  # the running capture that will compute it
    _step: Any  # its step in that capture
    _node: Any  # the tape node that made it (None: a leaf, or read from the capture)
    _out: int  # which output of that node it is
    _grad: Tensor | None
    _hooks: dict[int, Callable[[Tensor], Tensor | None]] | None
    _base: Tensor | None  # the tensor it is a view of, where autograd has to know
    _ptr: int  # address of the first element, once it was asked for
    _accumulated_hooks: dict[int, Callable[[Tensor], None]] | None = None
    _retains_grad = False
    _stands_for: Tensor | None = None  # of a copy that a compiled call reads in place of memory that NumPy can see
    __array_priority__ = 1000

    # identity: `==` is elementwise, so hashing is by object
    __hash__ = object.__hash__

    @property
    def shape(self) -> Size:
        """The size of each dimension."""
        return self._meta.shape

    @property
    def dtype(self) -> dtype:
        """The element type."""
        return self._meta.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self._meta.shape)

    @property
    def device(self) -> device:
        """Where the elements live."""
        return self._meta.device

    @property
    def requires_grad(self) -> bool:
        """True if gradients flow to this tensor."""
        return self._meta.requires_grad


class Parameter(Tensor):
    """A tensor that `nn.Module` lists as its parameter when assigned as an attribute."""

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True) -> None:
        """All is done by `__new__`, which `nn/parameter.py` attaches."""


class Node:
    """A step of the eager tape: which rule turns the gradient of the output into gradients of the inputs.

    `edges[i]` leads to input i: a `Node` with an output number, an `AccumulateGrad`, or None where no gradient is wanted.    """

    __slots__ = ("edges", "hooks", "metas", "__weakref__")

    def __init__(self, edges: tuple[tuple[Any, int] | None, ...], metas: tuple[Meta, ...]):
        self.edges = edges
        self.metas = metas  # of the outputs
        self.hooks: dict[int, Any] | None = None

    def backward(self, grads: list[Any], needs: Any) -> list[Any]:
        """Gradients of the inputs that are needed from gradients of the outputs; given by subclasses."""
        raise TypeError(f"{type(self).__name__} has no backward")

    def release(self) -> None:
        """Let go of what was saved."""


_allocate = object.__new__


def new(cls: type[Any]) -> Any:
    """A tensor of class `cls` without array, description and storage, which the caller gives it."""
    t = _allocate(cls)
    t._np = t._run = t._step = t._node = t._grad = t._hooks = t._base = None
    t._out = t._ptr = 0
    return t


def wrap(array: Array, requires_grad: bool = False, store: Storage | None = None, cls: type[Tensor] = Tensor) -> Tensor:
    """A tensor around an array (not copied). With `store`, it shares that storage's identity."""
    t = new(cls)
    t._np = array
    size = array.itemsize
    t._meta = Meta.get(
        array.shape, dtypes.from_numpy(array.dtype), tuple([s // size for s in array.strides]), requires_grad, store is not None,
        array.device if array.__class__ is DeviceArray else CPU,
    )
    t._store = Storage() if store is None else store
    return t


def share(t: Tensor) -> None:
    """Note that another tensor or NumPy now sees `t`'s storage."""
    if not t._meta.shared:
        t._meta = t._meta.replace(shared=True)


def address(t: Tensor) -> int:
    """The address of the first element of a computed tensor."""
    p = t._ptr
    if not p:
        assert t._np is not None
        p = t._ptr = storage.address(t._np)
    return p


