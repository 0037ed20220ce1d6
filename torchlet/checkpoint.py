"""PyTorch's .pt files, read and written without PyTorch and without unpickling: an own machine runs the opcodes that tensors need.

A .pt file is a zip archive without compression: NAME/data.pkl, a pickle of the value in which storages are named by number, and
NAME/data/N, the bytes of storage N. Nothing in a file is imported or called: the names that a pickle may mention are listed here
with what is built for each. Every size is checked against the bytes that are there before it is used; the CRC of every member is.
"""

from __future__ import annotations

import ctypes
import io
import math
import pickletools
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import PurePath
from typing import IO, Any

import numpy as np

from torchlet import dtypes
from torchlet.autograd import force
from torchlet.nn.parameter import Parameter, fresh_parameter
from torchlet.spec import Size, device
from torchlet.tensor import Storage, Tensor, wrap

__all__ = ["CheckpointError", "is_pytorch", "read", "write"]

MAX_OPCODES, MAX_MEMBERS, MAX_PICKLE = 5_000_000, 200_000, 256 << 20
_STORAGES = {
    "FloatStorage": dtypes.float32,
    "DoubleStorage": dtypes.float64,
    "HalfStorage": dtypes.float16,
    "BFloat16Storage": dtypes.bfloat16,
    "LongStorage": dtypes.int64,
    "IntStorage": dtypes.int32,
    "ShortStorage": dtypes.int16,
    "CharStorage": dtypes.int8,
    "ByteStorage": dtypes.uint8,
    "BoolStorage": dtypes.bool_,
    "ComplexFloatStorage": dtypes.complex64,
    "ComplexDoubleStorage": dtypes.complex128,
}
_STORAGE_OF = {d: name for name, d in _STORAGES.items()}


class CheckpointError(RuntimeError):
    """A file that is damaged, cut short, or holds something else than tensors and plain values."""


class _Name:
    """A global that a pickle mentions; it stands for a name, never for an object."""

    def __init__(self, text: str):
        self.text = text


# ------------------------------------------------------------------------------------------------ the archive


def is_pytorch(archive: zipfile.ZipFile) -> bool:
    """True for an archive that PyTorch wrote."""
    return any(n.count("/") == 1 and n.endswith("/data.pkl") for n in archive.namelist())


class _Archive:
    """The members of a file, each checked."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self.archive = archive
        self.members: dict[str, zipfile.ZipInfo] = {}
        infos = archive.infolist()
        if len(infos) > MAX_MEMBERS:
            raise CheckpointError(f"it has {len(infos)} members; expected at most {MAX_MEMBERS}")
        for info in infos:
            name = info.filename
            if name.startswith("/") or "\\" in name or ".." in name.split("/") or name in self.members:
                raise CheckpointError(f"it has a member named {name!r}")
            if info.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{name} is compressed, which may hide any size; PyTorch stores members as they are")
            if info.file_size > size:
                raise CheckpointError(f"{name} should have {info.file_size} bytes; the file has {size}")
            self.members[name] = info
        self.root = next(n for n in self.members if n.count("/") == 1 and n.endswith("/data.pkl"))[: -len("data.pkl")]

    def __contains__(self, name: str) -> bool:
        return self.root + name in self.members

    def read(self, name: str) -> bytearray:
        """A member's bytes; reading to the end checks the CRC."""
        info = self.members.get(self.root + name)
        if info is None:
            raise CheckpointError(f"{self.root}{name} is missing")
        out = bytearray(info.file_size)
        with self.archive.open(info) as opened:
            filled = opened.readinto(out)  # type: ignore[attr-defined]
            if filled != len(out) or opened.read(1):
                raise CheckpointError(f"{info.filename} is cut short")
        return out


# ------------------------------------------------------------------------------------------------ building values


class _Builder:
    """Builds tensors and the few other objects that a checkpoint may hold."""

    def __init__(self, archive: _Archive, swap: bool, place: device | None):
        self.archive, self.swap, self.place = archive, swap, place
        self.storages: dict[str, tuple[np.ndarray[Any, Any], Storage]] = {}
        self.calls: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_tensor": lambda s, o, shape, stride: self.tensor(s, o, shape, stride, False),
            "torch._utils._rebuild_parameter": self.parameter,
            "torch._utils._rebuild_parameter_with_state": self.parameter,
            "collections.OrderedDict": OrderedDict,
            "torch.Size": Size,
            "torch.device": device,
            "builtins.set": set,
            "__builtin__.set": set,
            "torch._tensor._rebuild_from_type_v2": self.subclass,
            "builtins.complex": complex,
            "builtins.slice": slice,
            "_codecs.encode": self.encode,
            "numpy.core.multiarray.scalar": self.numpy_scalar,
            "numpy._core.multiarray.scalar": self.numpy_scalar,
            "numpy.dtype": self.numpy_dtype,
        }
        self.values = {f"torch.{d.name}": d for d in dtypes.ALL} | {f"torch.{name}": _Name(name) for name in _STORAGES}
        self.values["torch.storage.UntypedStorage"] = _Name("UntypedStorage")
        self.values["torch.Tensor"] = self.values["torch._tensor.Tensor"] = self.values["torch.nn.parameter.Parameter"] = _Name("Tensor")

    def name(self, text: str, position: int) -> Any:
        """What a global stands for. Raises CheckpointError for names that are not listed."""
        if text in self.values:
            return self.values[text]
        if text not in self.calls:
            raise CheckpointError(
                f"it names {text!r} (at byte {position} of data.pkl); only tensors, numbers, text, lists, tuples, dicts "
                "and sets are read, nothing is executed"
            )
        return _Name(text)

    def call(self, name: Any, arguments: Any) -> Any:
        """What REDUCE makes."""
        if not isinstance(name, _Name) or name.text not in self.calls or not isinstance(arguments, tuple):
            raise CheckpointError("it calls something that is no known constructor")
        return self.calls[name.text](*arguments)

    def storage(self, key: Any) -> tuple[np.ndarray[Any, Any], Storage]:
        """A storage by its persistent id ("storage", type, number, location, count)."""
        if not (
            isinstance(key, tuple)
            and len(key) == 5
            and key[0] == "storage"
            and isinstance(key[1], _Name)
            and isinstance(key[2], str)
            and type(key[4]) is int
        ):
            raise CheckpointError("a storage has no proper id")
        kind = _STORAGES.get(key[1].text, dtypes.uint8)
        number = key[2]
        if not number.isdigit():
            raise CheckpointError(f"a storage is called {number!r}; expected a number")
        if number not in self.storages:
            content = self.archive.read(f"data/{number}")
            if key[4] < 0 or key[4] * kind.itemsize != len(content):
                raise CheckpointError(f"storage {number} should hold {key[4]} elements of {kind.name}; it has {len(content)} bytes")
            array = np.frombuffer(content, kind.np)
            self.storages[number] = array.byteswap() if self.swap else array, Storage()
        found = self.storages[number]
        if found[0].dtype != kind.np:
            raise CheckpointError(f"storage {number} is used with two dtypes")
        return found

    def tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any = False, *_: Any) -> Tensor:
        """A tensor that lies within its storage."""
        array, store = storage
        numbers = (offset, *shape, *stride)
        if len(shape) != len(stride) or len(shape) > 64 or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
            raise CheckpointError(f"a tensor has shape {shape}, strides {stride} and offset {offset}")
        count = math.prod(shape)
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if count else offset - 1
        if last >= array.size or offset > array.size:
            raise CheckpointError(
                f"a tensor of shape {tuple(shape)}, strides {tuple(stride)} and offset {offset} reaches outside of its "
                f"storage of {array.size} elements"
            )
        if count > max(array.size, 1) * 4096:
            raise CheckpointError(f"a tensor of shape {tuple(shape)} repeats a storage of {array.size} elements")
        width = array.itemsize
        memory = array.view(np.uint8) if array.size else array
        view = (
            np.ndarray(tuple(shape), array.dtype, memory, offset * width, tuple(s * width for s in stride))
            if count
            else np.empty(tuple(shape), array.dtype)
        )
        t = wrap(view, store=store)
        t = t if self.place is None else t.to(self.place)
        return t.requires_grad_() if requires_grad and t.dtype.has_gradient else t

    def parameter(self, data: Any, requires_grad: Any, *_: Any) -> Tensor:
        """A Parameter."""
        t = fresh_parameter(data) if isinstance(data, Tensor) else None
        if t is None:
            raise CheckpointError("a parameter is no tensor")
        t._store = data._store
        return t.requires_grad_(bool(requires_grad))

    def subclass(self, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        """A tensor of a subclass, as a plain tensor."""
        return self.call(function, arguments)

    @staticmethod
    def encode(text: Any, encoding: Any = "utf-8") -> bytes:
        """Bytes that an old pickle spells as text."""
        if not isinstance(text, str) or encoding not in ("latin1", "utf-8"):
            raise CheckpointError("bytes in an unknown encoding")
        return text.encode(encoding)

    @staticmethod
    def numpy_dtype(name: Any, *_: Any) -> np.dtype[Any]:
        """A NumPy number type."""
        kind = np.dtype(name) if isinstance(name, str) else np.dtype(object)
        if kind.kind not in "biufc":
            raise CheckpointError(f"a NumPy dtype {name!r}")
        return kind

    @staticmethod
    def numpy_scalar(kind: Any, content: Any) -> Any:
        """A NumPy number, as a Python one."""
        if not isinstance(kind, np.dtype) or not isinstance(content, bytes) or len(content) != kind.itemsize:
            raise CheckpointError("a NumPy number that is none")
        return np.frombuffer(content, kind)[0].item()


# ------------------------------------------------------------------------------------------------ the machine

_MARK = object()
_PUSH = frozenset(
    [
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BININT",
        "BININT1",
        "BININT2",
        "BINFLOAT",
        "LONG1",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "UNICODE",
        "INT",
        "FLOAT",
    ]
)
_MAKE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}


def _is(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise CheckpointError(f"data.pkl adds to a {type(value).__name__} as if it were a {kinds[0].__name__}")
    return value


def _run(program: bytes, builder: _Builder) -> Any:
    """Run a pickle's opcodes on a stack of values."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise CheckpointError("data.pkl has no mark where one is needed")
        items = stack[at + 1 :]
        del stack[at:]
        return items

    for count, (opcode, argument, position) in enumerate(pickletools.genops(io.BytesIO(program))):
        op = opcode.name
        if count > MAX_OPCODES:
            raise CheckpointError(f"data.pkl has more than {MAX_OPCODES} instructions")
        if op in _PUSH:
            stack.append(argument)
        elif op in _MAKE:
            stack.append(_MAKE[op]())
        elif op in ("PROTO", "FRAME"):
            continue
        elif op == "STOP":
            return stack.pop()
        elif op == "TUPLE":
            stack.append(tuple(since_mark()))
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(op[-1])
            stack[-n:] = [tuple(stack[-n:])]
        elif op in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(str(argument))] = stack[-1]
        elif op == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(str(argument))])
        elif op == "APPEND":
            value = stack.pop()
            _is(stack[-1], list).append(value)
        elif op == "APPENDS":
            items = since_mark()
            _is(stack[-1], list).extend(items)
        elif op == "ADDITEMS":
            items = since_mark()
            _is(stack[-1], set).update(items)
        elif op == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _is(stack[-1], dict, OrderedDict)[key] = value
        elif op == "SETITEMS":
            items = since_mark()
            _is(stack[-1], dict, OrderedDict).update(zip(items[::2], items[1::2], strict=True))
        elif op == "FROZENSET":
            stack.append(frozenset(since_mark()))
        elif op == "GLOBAL":
            stack.append(builder.name(str(argument).replace(" ", "."), position or 0))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(builder.name(f"{module}.{name}", position or 0))
        elif op == "BINPERSID":
            stack.append(builder.storage(stack.pop()))
        elif op in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            stack.append(builder.call(stack.pop(), arguments))
        elif op == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], OrderedDict) and isinstance(state, dict):
                stack[-1].__dict__.update({k: v for k, v in state.items() if k == "_metadata"})
            elif not isinstance(stack[-1], np.dtype):
                raise CheckpointError("data.pkl gives a state to an object that has none")
        else:
            raise CheckpointError(f"data.pkl uses the instruction {op} (at byte {position}), which no checkpoint of tensors needs")
    raise CheckpointError("data.pkl ends early")


def read(archive: zipfile.ZipFile, size: int, place: device | None = None) -> Any:
    """The value in an archive that PyTorch wrote; `size` is the file's, `place` where tensors go. Raises CheckpointError."""
    try:
        members = _Archive(archive, size)
        order = bytes(members.read("byteorder")).decode("ascii", "replace") if "byteorder" in members else "little"
        if order not in ("little", "big"):
            raise CheckpointError(f"its byte order is {order!r}")
        program = bytes(members.read("data.pkl"))
        if len(program) > MAX_PICKLE:
            raise CheckpointError(f"data.pkl has {len(program)} bytes; expected at most {MAX_PICKLE}")
        return _run(program, _Builder(members, order != sys.byteorder, place))
    except CheckpointError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
        OverflowError,
        struct.error,
        RuntimeError,
    ) as error:
        raise CheckpointError(f"it is damaged: {type(error).__name__}: {str(error)[:200]}") from None


# ------------------------------------------------------------------------------------------------ writing


class _Pickler:
    """Writes a value as the pickle (protocol 2) that PyTorch itself would write."""

    def __init__(self, tensors: list[Tensor]):
        self.out = bytearray(b"\x80\x02")
        self.storages: list[tuple[Any, Any]] = []  # what keeps the memory alive, the memory
        self.numbers: dict[Storage, tuple[int, int, int]] = {}
        self.extents: dict[Storage, tuple[int, int]] = {}  # of each storage, the addresses that are seen of it
        for t in tensors:
            a = force(t)
            first = a.__array_interface__["data"][0]
            end = first + sum((n - 1) * s for n, s in zip(a.shape, a.strides, strict=True)) + a.itemsize
            low, high = self.extents.get(t._store, (first, first))
            self.extents[t._store] = (min(low, first), max(high, end)) if a.size else (low, high)

    def value(self, x: Any, where: str) -> None:
        """Append the instructions that build `x`."""
        out = self.out
        if x is None or x is True or x is False:
            out += {None: b"N", True: b"\x88", False: b"\x89"}[x]
        elif type(x) is int:
            if -(1 << 31) <= x < 1 << 31:
                out += b"J" + struct.pack("<i", x)
            else:
                content = x.to_bytes((x.bit_length() >> 3) + 1, "little", signed=True)
                out += b"\x8a" + bytes((len(content),)) + content
        elif type(x) is float:
            out += b"G" + struct.pack(">d", x)
        elif type(x) is str:
            content = x.encode("utf-8", "surrogatepass")
            out += b"X" + struct.pack("<I", len(content)) + content
        elif isinstance(x, Tensor):
            self.tensor(x, where)
        elif type(x) in (dict, OrderedDict):
            self.mapping(x, where)
        elif type(x) in (list, tuple, Size):
            self.sequence(x, where)
        elif type(x) in (set, frozenset):
            self.name("__builtin__", "set")
            self.value([*x], where)
            out += b"\x85R"
        elif isinstance(x, dtypes.dtype):
            self.name("torch", x.name)
        elif isinstance(x, device):
            self.name("torch", "device")
            self.value((x.type,) if x.index is None else (x.type, x.index), where)
            out += b"R"
        elif isinstance(x, np.generic):
            self.value(x.item(), where)
        else:
            raise TypeError(
                f"save: {where} is a {type(x).__module__}.{type(x).__qualname__}; expected tensors, numbers, strings, "
                "None, and dicts, lists, tuples or sets of them"
            )

    def name(self, module: str, name: str) -> None:
        """A global."""
        self.out += f"c{module}\n{name}\n".encode()

    def mapping(self, x: Any, where: str) -> None:
        """A dict or an OrderedDict."""
        if type(x) is OrderedDict:
            self.name("collections", "OrderedDict")
            self.out += b")R"
        else:
            self.out += b"}"
        self.out += b"("
        for k, v in x.items():
            self.value(k, f"a key of {where}")
            self.value(v, f"{where}[{k!r}]")
        self.out += b"u"

    def sequence(self, x: Any, where: str) -> None:
        """A list, a tuple or a Size."""
        if type(x) is Size:
            self.name("torch", "Size")
        self.out += b"](" if type(x) is list else b"("
        for k, v in enumerate(x):
            self.value(v, f"{where}[{k}]")
        self.out += b"e" if type(x) is list else b"t"
        if type(x) is Size:
            self.out += b"\x85R"

    def place_of(self, t: Tensor, array: np.ndarray[Any, Any]) -> tuple[int, int, int]:
        """(number of the storage, first element in it, elements of the storage)."""
        entry = self.numbers.get(t._store)
        if entry is None:
            low, high = self.extents[t._store]
            content = (ctypes.c_ubyte * (high - low)).from_address(low) if high > low else b""
            entry = self.numbers[t._store] = len(self.storages), low, high
            self.storages.append((array, content))
        number, low, high = entry
        start = (array.__array_interface__["data"][0] - low) // array.itemsize if array.size else 0
        return number, start, (high - low) // array.itemsize

    def tensor(self, t: Tensor, where: str) -> None:
        """A tensor over a storage; views of one memory share it."""
        array = force(t)
        kind = dtypes.from_numpy(array.dtype)
        number, start, count = self.place_of(t, array)
        if isinstance(t, Parameter):
            self.name("torch._utils", "_rebuild_parameter")
            self.out += b"("
        self.name("torch._utils", "_rebuild_tensor_v2")
        self.out += b"(("
        self.value("storage", where)
        self.name("torch", _STORAGE_OF[kind])
        for part in (str(number), "cpu", count):
            self.value(part, where)
        self.out += b"tQ"
        self.value(start, where)
        self.value(tuple(array.shape), where)
        self.value(tuple(s // array.itemsize for s in array.strides), where)
        self.value(bool(t.requires_grad) and not isinstance(t, Parameter), where)
        self.name("collections", "OrderedDict")
        self.out += b")RtR"
        if isinstance(t, Parameter):
            self.value(bool(t.requires_grad), where)
            self.name("collections", "OrderedDict")
            self.out += b")RtR"


def _tensors_of(value: Any) -> list[Tensor]:
    """Every tensor in a nest of containers."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [t for v in inner for t in _tensors_of(v)]


def write(value: Any, f: IO[bytes], name: str = "archive") -> None:
    """Write a value as a .pt file that `torch.load` reads. Raises TypeError for objects that are no plain values."""
    pickler = _Pickler(_tensors_of(value))
    pickler.value(value, "obj")
    root = PurePath(name).stem or "archive"
    with zipfile.ZipFile(f, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", bytes(pickler.out) + b".")
        archive.writestr(f"{root}/byteorder", sys.byteorder)
        for number, (_, content) in enumerate(pickler.storages):
            archive.writestr(f"{root}/data/{number}", bytes(content) if not content else memoryview(content).cast("B"))  # type: ignore[arg-type]
        archive.writestr(f"{root}/version", "3\n")
