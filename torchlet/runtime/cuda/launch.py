"""Loaded kernels and their launches: prepacked parameters, one driver call each, or all of a segment as one CUDA graph."""

from __future__ import annotations

import ctypes as C
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchlet.config import config
from torchlet.runtime.cuda.devices import Block, Device
from torchlet.runtime.cuda.driver import CudaError, KernelNodeParams, LaunchAttribute, LaunchConfig, call, failure, launcher, out
from torchlet.runtime.cuda.tensor_map import MapForm, MapSlot, TensorMap

_COOPERATIVE, _CLUSTER, _CLUSTER_POLICY, _PDL = 2, 4, 5, 6
_REGISTERS, _LOCAL, _MAX_SHARED, _NON_PORTABLE_CLUSTER = 4, 3, 8, 14
_FORMAT = {  # Triton's types as struct's codes
    "i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u1": "B", "u8": "B", "u16": "H", "u32": "I", "u64": "Q", "fp32": "f",
    "fp64": "d",
}


@dataclass(frozen=True)
class LaunchInfo:
    """What a compiled kernel says about its launch; from Triton's metadata, kept beside the cubin."""

    name: str
    num_warps: int
    shared: int = 0
    num_ctas: int = 1
    global_scratch_size: int = 0
    global_scratch_align: int = 1
    launch_pdl: bool = False
    launch_cooperative_grid: bool = False
    maps: Sequence[MapForm] = ()
    flaw: int = 0
    """0: its tile fits the registers; see `compiler.offline`."""


class Function:
    """A kernel loaded on a device."""

    def __init__(self, device: Device, cubin: bytes, info: LaunchInfo):
        self.device, self.info = device, info
        allowed = device.properties.shared_memory_per_block_optin
        if info.shared > allowed:
            raise CudaError(f"cuda: kernel {info.name} needs {info.shared} bytes of shared memory; {device.properties.name} has {allowed}")
        device.activate()
        self._image = C.create_string_buffer(cubin, len(cubin))
        self.module = out(C.c_void_p, "cuModuleLoadData", C.addressof(self._image))
        self.handle: int = out(C.c_void_p, "cuModuleGetFunction", self.module, info.name.encode())
        if info.shared > 48 * 1024:
            call("cuFuncSetAttribute", self.handle, _MAX_SHARED, info.shared)
        if info.num_ctas > 8:
            call("cuFuncSetAttribute", self.handle, _NON_PORTABLE_CLUSTER, 1)

    @property
    def registers(self) -> int:
        """Registers of a thread."""
        return self._attribute(_REGISTERS)

    @property
    def local_bytes(self) -> int:
        """Bytes of a thread's local memory: what was spilled."""
        return self._attribute(_LOCAL)

    def _attribute(self, number: int) -> int:
        value = C.c_int()
        call("cuFuncGetAttribute", C.byref(value), number, self.handle)
        return value.value


class Launch:
    """One call site: the grid is fixed; the parameters lie packed in memory that the driver reads at each launch.

    `types` are Triton's names of the arguments that are no constexprs ("*fp32", "i64", …). The `sizes` follow as int32, then tensor
    maps, each with its extents and strides, then two pointers to scratch memory.
    """

    def __init__(
        self, function: Function, grid: Sequence[int], types: Sequence[str], name: str = "", lines: Sequence[str] = (),
        maps: Sequence[TensorMap] = (), sizes: Sequence[int] = (),
    ):  # fmt: skip
        info = function.info
        self.function, self.name, self.lines = function, name or info.name, tuple(lines)
        # native alignment is what a C caller's arguments have, and what the kernel expects
        codes = ["Q" if t[0] == "*" else _FORMAT[t] for t in types] + ["i"] * len(sizes)
        codes += [c for m in maps for c in "i" * len(m.shape) + "q" * len(m.shape)] + ["Q", "Q"]
        packed = struct.Struct("@" + "".join(codes))
        self._memory = C.create_string_buffer(packed.size + 64)
        base = -(-C.addressof(self._memory) // 64) * 64
        self._skip = base - C.addressof(self._memory)
        offsets = [struct.calcsize("@" + "".join(codes[: i + 1])) - struct.calcsize("@" + c) for i, c in enumerate(codes)]
        self._maps = [MapSlot(m, form) for m, form in zip(maps, info.maps, strict=True)]
        self._fixed = [*sizes, *(n for m in maps for n in (*m.shape, *m.strides))]
        where = iter([base + o for o in offsets])
        addresses = [next(where) for _ in (*types, *sizes)]
        for slot in self._maps:
            addresses += [slot.address, *(next(where) for _ in (*slot.map.shape, *slot.map.strides))]
        addresses += where
        self._parameters = (C.c_void_p * len(addresses))(*addresses)
        self._pack = packed.pack_into
        self.grid = (grid[0] * info.num_ctas, *grid[1:])
        self._scratch: Block | None = None
        if info.global_scratch_size:
            programs = self.grid[0] * self.grid[1] * self.grid[2]
            self._scratch = function.device.allocate(programs * info.global_scratch_size, f"scratch memory of kernel {self.name}")
        self._tail = (self._scratch.address if self._scratch else 0, 0)
        attributes: list[tuple[int, tuple[int, ...]]] = []
        if info.launch_pdl:
            attributes.append((_PDL, (1,)))
        if info.launch_cooperative_grid:
            attributes.append((_COOPERATIVE, (1,)))
        if info.num_ctas != 1:
            attributes += [(_CLUSTER, (info.num_ctas, 1, 1)), (_CLUSTER_POLICY, (1,))]
        self.attributes = (LaunchAttribute * max(1, len(attributes)))()
        for slot, (number, values) in zip(self.attributes, attributes, strict=False):
            slot.id = number
            slot.value[: len(values)] = values
        self.attribute_count = len(attributes)
        block = (32 * info.num_warps, 1, 1)
        self._config = LaunchConfig(self.grid, block, info.shared, None, C.addressof(self.attributes), len(attributes))
        self.node = KernelNodeParams(function.handle, self.grid, block, info.shared, C.addressof(self._parameters), None, None, None)
        self._call = launcher().cuLaunchKernelEx
        self._arguments = (C.addressof(self._config), function.handle, C.addressof(self._parameters), None)

    def bind(self, values: Sequence[Any]) -> None:
        """Set the arguments: addresses and numbers in the order of `types`."""
        self._pack(self._memory, self._skip, *values, *self._fixed, *self._tail)
        for slot in self._maps:
            slot.fill(values[slot.map.buffer])

    def __call__(self, stream: int) -> None:
        """Queue the kernel. Raises CudaError."""
        self._config.stream = stream
        status = self._call(*self._arguments)
        if status:
            raise failure("cuLaunchKernelEx", status, f"kernel {self.name}, grid {self.grid}, lines {', '.join(self.lines) or 'unknown'}")
        if config.cuda_sync:
            self._check()

    def _check(self) -> None:
        try:
            self.function.device.synchronize()
        except CudaError as error:
            raise CudaError(f"kernel {self.name} (lines {', '.join(self.lines) or 'unknown'}) failed\n{error}") from None


class TableLaunch(Launch):
    """A launch whose argument is a table in device memory, which `table(addresses, numbers)` makes of `count` addresses and numbers."""

    def __init__(
        self, function: Function, grid: Sequence[int], types: Sequence[str], name: str, lines: Sequence[str], *,
        table: Callable[[Sequence[int], Sequence[float]], np.ndarray[Any, Any]], count: int,
    ):  # fmt: skip
        super().__init__(function, grid, types, name, lines)
        self._table, self._count = table, count
        self._rows: Block | None = None

    def bind(self, values: Sequence[Any]) -> None:
        """Copy the table, in the order of the current stream."""
        rows, device = self._table(values[: self._count], values[self._count :]), self.function.device
        if self._rows is None:
            self._rows = device.allocate(rows.nbytes, f"table of kernel {self.name}")
        device.copy_in(self._rows.address, rows.ctypes.data, rows.nbytes, device.stream.cuda_stream)
        super().bind((self._rows.address,))


class LaunchGraph:
    """Launches in order as one CUDA graph: one driver call replays them all; arguments of single kernels can be changed between replays."""

    def __init__(self, device: Device, launches: Sequence[Launch]):
        self.device, self.launches = device, tuple(launches)
        self.names = [x.name for x in launches]
        device.activate()
        graph = out(C.c_void_p, "cuGraphCreate", 0)
        try:
            self.nodes: list[int] = []
            for launch in launches:
                before = (C.c_void_p * 1)(self.nodes[-1]) if self.nodes else None
                node = out(C.c_void_p, "cuGraphAddKernelNode_v2", graph, before, len(self.nodes[-1:]), C.addressof(launch.node))
                for attribute in launch.attributes[: launch.attribute_count]:
                    if attribute.id != _PDL:  # that one is about edges, which are full dependencies here
                        call("cuGraphKernelNodeSetAttribute", node, attribute.id, C.addressof(attribute) + LaunchAttribute.value.offset)
                self.nodes.append(node)
            self.handle: int | None = out(C.c_void_p, "cuGraphInstantiateWithFlags", graph, 0)
        finally:
            call("cuGraphDestroy", graph)
        self._launch = launcher().cuGraphLaunch
        self._set = launcher().cuGraphExecKernelNodeSetParams_v2

    def update(self, i: int) -> None:
        """The arguments of launch `i` were bound anew."""
        status = self._set(self.handle, self.nodes[i], C.addressof(self.launches[i].node))
        if status:
            raise failure("cuGraphExecKernelNodeSetParams", status, f"kernel {self.names[i]}")

    def __call__(self, stream: int) -> None:
        """Queue all kernels. Raises CudaError, also after `close`."""
        if self.handle is None:
            raise CudaError("cuda: this graph was closed")
        status = self._launch(self.handle, stream)
        if status:
            raise failure("cuGraphLaunch", status, f"kernels {', '.join(self.names)}")

    def close(self) -> None:
        """Let go of the graph."""
        handle, self.handle = self.handle, None
        if handle is not None:
            call("cuGraphExecDestroy", handle)
