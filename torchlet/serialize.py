"""save and load: nested containers of tensors in a file that holds data only, and the safetensors format.

A file of `save` is a zip archive without compression: `structure.json`, a tree of tagged values, and `data/N`, the raw bytes of
storage N. Loading builds values from the tags it knows; nothing in a file is ever executed. Every member has a CRC.
"""

from __future__ import annotations

import base64
import ctypes
import json
import math
import os
import struct
import sys
import tempfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from torchlet import checkpoint, dtypes
from torchlet.autograd import force
from torchlet.dtypes import dtype
from torchlet.nn.parameter import Parameter, fresh_parameter
from torchlet.spec import CPU, Size, device
from torchlet.storage import as_host
from torchlet.tensor import Storage, Tensor, wrap

__all__ = ["load", "load_file", "save", "save_file"]

FORMAT, VERSION = "torchlet", 1
_DTYPES = {d.name: d for d in dtypes.ALL}
File = str | os.PathLike[str] | IO[bytes]


# ------------------------------------------------------------------------------------------------ files


@contextmanager
def _replacing(f: File) -> Iterator[IO[bytes]]:
    """A file to write to. A path gets its new content all at once when the block ends well, and is untouched otherwise."""
    if not isinstance(f, str | os.PathLike):
        yield f
        return
    path = Path(f)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes files that only their owner may read
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@contextmanager
def _reading(f: File) -> Iterator[IO[bytes]]:
    if isinstance(f, str | os.PathLike):
        with open(f, "rb") as opened:
            yield opened
    else:
        yield f


def _name_of(f: File) -> str:
    return str(f) if isinstance(f, str | os.PathLike) else getattr(f, "name", None) or "<file>"


# ------------------------------------------------------------------------------------------------ save


class _Writer:
    """Turns a value into its tagged tree, and collects the tensors it meets."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.numbers: dict[int, int] = {}
        self.open: set[int] = set()

    def tree(self, value: Any, where: str) -> Any:
        """JSON for `value`: plain values stand for themselves, everything else is {"tag": …}."""
        if value is None or isinstance(value, bool | str) or type(value) in (int, float):
            return value
        if isinstance(value, Tensor):
            number = self.numbers.get(id(value))
            if number is None:
                number = self.numbers[id(value)] = len(self.tensors)
                self.tensors.append(value)
            return {"tensor": number}
        if isinstance(value, dtype):
            return {"dtype": value.name}
        if isinstance(value, device):
            return {"device": str(value)}
        if isinstance(value, Size):
            return {"size": list(value)}
        if isinstance(value, bytes):
            return {"bytes": base64.b64encode(value).decode()}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, np.generic | np.ndarray) and value.dtype in dtypes._FROM_NUMPY:
            number = len(self.tensors)
            self.tensors.append(wrap(np.array(value)))
            return {"scalar" if isinstance(value, np.generic) else "array": number}
        if isinstance(value, dict | list | tuple | set | frozenset):
            if id(value) in self.open:
                raise ValueError(f"save: {where} contains itself; expected a tree of values")
            self.open.add(id(value))
            try:
                return self.container(value, where)
            finally:
                self.open.discard(id(value))
        raise TypeError(
            f"save: {where} is a {type(value).__module__}.{type(value).__qualname__}; expected tensors, numbers, strings, None, and "
            f"dicts, lists, "
            "tuples or sets of them\nhelp: save model.state_dict() or optimizer.state_dict() instead of the object"
        )

    def container(self, value: Any, where: str) -> Any:
        """JSON for a container; subclasses of the known ones are refused, because loading would not give them back."""
        kind = type(value)
        if kind in (list, tuple, set, frozenset):
            return {kind.__name__: [self.tree(v, f"{where}[{i}]") for i, v in enumerate(value)]}
        entries = (
            [[self.tree(k, f"a key of {where}"), self.tree(v, f"{where}[{k!r}]")] for k, v in value.items()]
            if isinstance(value, dict)
            else []
        )
        if kind is dict:
            return {"dict": entries}
        if isinstance(value, OrderedDict):
            attributes = {k: v for k, v in vars(value).items() if isinstance(k, str)}  # _metadata of a state_dict
            return (
                {"ordered": entries, "attributes": self.tree(attributes, f"the attributes of {where}")}
                if attributes
                else {"ordered": entries}
            )
        if isinstance(value, dict):  # Counter, defaultdict: their entries
            return {"dict": entries}
        raise TypeError(f"save: {where} is a {kind.__qualname__}; expected a plain list, tuple or set")


def _extent(array: np.ndarray[Any, Any]) -> tuple[int, int]:
    """The addresses of the first byte and of the byte after the last that an array's elements take."""
    start = end = array.__array_interface__["data"][0]
    if array.size == 0:
        return start, start
    for n, step in zip(array.shape, array.strides, strict=True):
        if step < 0:
            start += (n - 1) * step
        else:
            end += (n - 1) * step
    return start, end + array.itemsize


def _storages(tensors: list[Tensor]) -> tuple[list[dict[str, Any]], list[tuple[list[Any], memoryview | bytes]]]:
    """Each tensor's description; for each storage, arrays that keep its memory alive, and the memory.

    Tensors that share memory share a storage.
    """
    groups: dict[Storage, list[int]] = {}
    for i, t in enumerate(tensors):
        groups.setdefault(t._store if t.device is CPU else Storage(), []).append(i)  # tensors of a device travel as copies
    described: list[dict[str, Any]] = [{}] * len(tensors)
    contents: list[tuple[list[Any], memoryview | bytes]] = []
    for members in groups.values():
        arrays = [as_host(force(tensors[i])) for i in members]
        if len(arrays) == 1 and not arrays[0].flags.c_contiguous:  # a lone view of something larger: only its elements
            arrays = [np.ascontiguousarray(arrays[0]).reshape(arrays[0].shape)]
        extents = [_extent(a) for a in arrays if a.size] or [(0, 0)]
        start = min(e[0] for e in extents)
        for i, a in zip(members, arrays, strict=True):
            t = tensors[i]
            entry = {
                "storage": len(contents), "dtype": t.dtype.name, "shape": list(a.shape), "strides": list(a.strides),
                "offset": a.__array_interface__["data"][0] - start if a.size else 0,
                "requires_grad": t.requires_grad, "parameter": isinstance(t, Parameter),
            }
            described[i] = entry
        size = max(e[1] for e in extents) - start
        contents.append((arrays, memoryview((ctypes.c_ubyte * size).from_address(start)).cast("B") if size else b""))
    return described, contents


def save(obj: Any, f: File, pickle_module: Any = None, pickle_protocol: int = 2, *, format: str = "torchlet") -> None:
    """Write a value (tensors, numbers, strings, None; dicts, lists, tuples, sets of them) to a path or a binary file.

    `format="pytorch"` writes the file that PyTorch's own `torch.load` reads; pickle's arguments say nothing here.

    Tensors that share memory share it again after `load`, and one tensor met twice is one tensor. A path is replaced only
    when all is written. Raises TypeError for other objects, naming where in the value they stand.
    """
    if format not in ("torchlet", "pytorch"):
        raise ValueError(f"save: format {format!r}; expected 'torchlet' or 'pytorch'")
    if format == "pytorch":
        with _replacing(f) as out:
            checkpoint.write(obj, out, _name_of(f))
        return
    writer = _Writer()
    tree = writer.tree(obj, "obj")
    described, contents = _storages(writer.tensors)
    head = {"format": FORMAT, "version": VERSION, "byteorder": sys.byteorder, "tensors": described, "value": tree}
    with _replacing(f) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("structure.json", json.dumps(head, separators=(",", ":")))
        for i, (_, content) in enumerate(contents):
            archive.writestr(f"data/{i}", content)  # type: ignore[arg-type]  # takes any bytes


# ------------------------------------------------------------------------------------------------ load


class _Damaged(Exception):
    """The file does not hold what it should; worded by `load`."""


class _Reader:
    """Builds the value back from its tree. Nothing in the tree is trusted."""

    def __init__(self, archive: zipfile.ZipFile, head: dict[str, Any], where: device | None):
        self.archive = archive
        self.described = head["tensors"]
        self.tensors: dict[int, Tensor] = {}
        self.storages: dict[int, tuple[np.ndarray[Any, Any], Storage]] = {}
        self.users: dict[int, int] = {}
        for d in self.described:
            self.users[d["storage"]] = self.users.get(d["storage"], 0) + 1
        self.device = where

    def value(self, tree: Any) -> Any:
        """The value of a tree."""
        if not isinstance(tree, dict):
            if isinstance(tree, list):
                raise _Damaged("a list without a tag")
            return tree
        (tag, content), *more = tree.items()
        if tag == "tensor":
            return self.tensor(content)
        if tag in ("list", "tuple", "set", "frozenset"):
            return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[tag](self.value(v) for v in content)
        if tag == "dict":
            return {self.value(k): self.value(v) for k, v in content}
        if tag == "ordered":
            made = OrderedDict((self.value(k), self.value(v)) for k, v in content)
            made.__dict__.update(self.value(more[0][1]) if more else {})
            return made
        if tag == "dtype":
            return _DTYPES[content]
        if tag == "device":
            return device(content)
        if tag == "size":
            return Size(content)
        if tag == "bytes":
            return base64.b64decode(content, validate=True)
        if tag == "complex":
            return complex(*content)
        if tag in ("array", "scalar"):
            array = as_host(force(self.tensor(content)))
            return array if tag == "array" else array[()]
        raise _Damaged(f"unknown tag {tag!r}")

    def storage(self, number: int) -> tuple[np.ndarray[Any, Any], Storage]:
        """The bytes of a storage, read once."""
        if number not in self.storages:
            info = self.archive.getinfo(f"data/{int(number)}")
            if info.compress_type != zipfile.ZIP_STORED:
                raise _Damaged(f"{info.filename} is compressed")
            content: Any = np.empty(info.file_size, np.uint8)
            with self.archive.open(info) as opened:
                member: Any = opened  # a buffered reader; reading to the end checks the CRC
                filled = 0
                while filled < content.size and (got := member.readinto(memoryview(content)[filled:])):
                    filled += got
                if filled < content.size or member.read(1):
                    raise _Damaged(f"{info.filename} is too short")
            self.storages[number] = content, Storage()
        return self.storages[number]

    def tensor(self, number: int) -> Tensor:
        """A tensor, built once."""
        if number in self.tensors:
            return self.tensors[number]
        d = self.described[number]
        content, store = self.storage(d["storage"])
        kind = _DTYPES[d["dtype"]].np
        shape, strides, offset = [int(n) for n in d["shape"]], [int(n) for n in d["strides"]], int(d["offset"])
        if len(shape) != len(strides) or any(n < 0 for n in shape) or any(n % kind.itemsize for n in [*strides, offset]):
            raise _Damaged(f"tensor {number} has an impossible layout")
        reach = [(n - 1) * step for n, step in zip(shape, strides, strict=True)]
        low, high = offset + sum(r for r in reach if r < 0), offset + sum(r for r in reach if r > 0) + kind.itemsize
        if math.prod(shape) == 0:
            array = np.empty(shape, kind)
        elif low < 0 or high > content.size:
            raise _Damaged(f"tensor {number} reaches outside of its storage")
        else:
            array = np.ndarray(shape, kind, content.data, offset, strides)
        t = wrap(array, store=store if self.users[d["storage"]] > 1 else None)
        if self.device is not None and self.device is not t.device:
            t = t.to(self.device)
        if d.get("parameter"):
            t = (
                Parameter(t, bool(d.get("requires_grad")))
                if self.users[d["storage"]] > 1
                else fresh_parameter(t).requires_grad_(bool(d.get("requires_grad")))
            )
        elif d.get("requires_grad"):
            t.requires_grad_()
        self.tensors[number] = t
        return t


def load(f: File, map_location: Any = None, pickle_module: Any = None, *, weights_only: bool = True, mmap: bool | None = None) -> Any:
    """Read what `save` or PyTorch's zip format (since 1.6) wrote. Nothing in the file is executed, whatever `weights_only` says.

    `map_location` is the device that tensors go to. Raises RuntimeError, naming the file and what is wrong with it, when it is
    damaged, cut short, or of another kind.
    """
    where = None if map_location is None or callable(map_location) or isinstance(map_location, dict) else device(map_location)
    name = _name_of(f)
    with _reading(f) as source:
        start = source.read(4)
        source.seek(-len(start), os.SEEK_CUR)
        if start[:2] != b"PK":
            raise RuntimeError(
                f"load: {name} is not a torchlet file (it starts with {start!r}); expected a file written by "
                f"torchlet.save{_other_kind(start)}"
            )
        try:
            with zipfile.ZipFile(source) as archive:
                names = archive.namelist()
                if checkpoint.is_pytorch(archive):
                    source.seek(0, os.SEEK_END)
                    return checkpoint.read(archive, source.tell(), where)
                if "structure.json" not in names:
                    raise _Damaged("it has no structure.json")
                head = json.loads(archive.read("structure.json"))
                if head["format"] != FORMAT or head["version"] > VERSION:
                    raise _Damaged(f"its format is {head['format']} {head['version']}; this version reads {FORMAT} up to {VERSION}")
                if head["byteorder"] != sys.byteorder:
                    raise _Damaged(f"its numbers are {head['byteorder']}-endian, this machine's are not")
                return _Reader(archive, head, where).value(head["value"])
        except checkpoint.CheckpointError as error:
            raise checkpoint.CheckpointError(f"load: {name} cannot be read: {error}") from None
        except (
            _Damaged,
            zipfile.BadZipFile,
            EOFError,
            KeyError,
            IndexError,
            TypeError,
            ValueError,
            AttributeError,
            RecursionError,
            OverflowError,
            zlib.error,
        ) as error:
            raise RuntimeError(f"load: {name} cannot be read: {error}; expected an intact file written by torchlet.save") from error


def _other_kind(start: bytes) -> str:
    if start[:1] == b"\x80":
        return "\nhelp: it looks like a pickle; such files can run any code, so they are not read"
    return "\nhelp: safetensors files are read by torchlet.serialize.load_file" if start and len(start) == 4 else ""


# ------------------------------------------------------------------------------------------------ safetensors

# https://github.com/huggingface/safetensors#format: 8 bytes length, a JSON header of that length, the data
_SAFE = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
_SAFE_NAMES = {v: k for k, v in _SAFE.items()}
_HEADER_LIMIT = 100_000_000


def save_file(tensors: Mapping[str, Tensor], filename: File, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors by name in the safetensors format; tensors that share memory are written each on its own."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    arrays, position = [], 0
    for name, t in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):  # the format wants elements aligned
        if not isinstance(t, Tensor):
            raise TypeError(f"save_file: {name!r} is a {type(t).__name__}; expected a Tensor")
        if t.dtype.name not in _SAFE_NAMES:
            raise TypeError(
                f"save_file: {name!r} has dtype {t.dtype.name}, which the format does not know; expected one of {', '.join(_SAFE_NAMES)}"
            )
        a = np.ascontiguousarray(as_host(force(t)))
        header[name] = {"dtype": _SAFE_NAMES[t.dtype.name], "shape": list(t.shape), "data_offsets": [position, position + a.nbytes]}
        position += a.nbytes
        arrays.append(a)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _replacing(filename) as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for a in arrays:
            out.write(a.tobytes() if sys.byteorder == "little" else a.byteswap().tobytes())


def load_file(filename: File, device: Any = "cpu") -> dict[str, Tensor]:
    """Read the tensors of a safetensors file. Raises RuntimeError, naming what is wrong, when it is damaged."""
    with _reading(filename) as source:
        content = source.read()
    try:
        size = struct.unpack("<Q", content[:8])[0]
        if size > min(_HEADER_LIMIT, len(content) - 8):
            raise _Damaged(f"its header should have {size} bytes")
        data = memoryview(content)[8 + size :]
        header = json.loads(content[8 : 8 + size])
        header.pop("__metadata__", None)
        out, expected = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            kind = _DTYPES[_SAFE[entry["dtype"]]].np
            if (
                begin != expected
                or end > len(data)
                or end - begin != math.prod(entry["shape"]) * kind.itemsize
                or any(n < 0 for n in entry["shape"])
            ):
                raise _Damaged(f"tensor {name!r} has the bytes {begin} to {end} of {len(data)} and the shape {entry['shape']}")
            expected = end
            array = np.frombuffer(data[begin:end], kind.newbyteorder("<")).astype(kind).reshape(entry["shape"])  # a copy, so writable
            out[name] = wrap(array).to(device)
        if expected != len(data):
            raise _Damaged(f"{len(data) - expected} bytes belong to no tensor")
        return out
    except (_Damaged, struct.error, KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise RuntimeError(f"load_file: {_name_of(filename)} is not a valid safetensors file: {error}") from error
