"""Tensor maps: the 128 bytes from which the tensor memory accelerator (sm_90 and newer) copies tiles, made by the driver."""

from __future__ import annotations

import ctypes as C
from collections.abc import Sequence
from dataclasses import dataclass

from torchlet.runtime.cuda.driver import call, driver_version

MAP_BYTES, MAP_ALIGN = 128, 64
UNIT = 16  # bytes: what starts and strides are multiples of, and the least length of a line of a box
_FARTHEST = 1 << 40  # bytes: what strides are less than
# CUtensorMapDataType of what Triton's metadata calls elem_type: its numbering is that of the device, which differs in three places
_HOST_TYPES = {8: 10, 9: 8, 10: 9}
_L2_128 = 2  # CU_TENSOR_MAP_L2_PROMOTION_L2_128B
_SMALL, _FIXED_DRIVER = 128 * 1024, 13010


@dataclass(frozen=True, slots=True)
class TensorMap:
    """A matrix, or a stack of matrices, inside buffer number `buffer` of a kernel: first element, extents and strides in elements.

    The last stride is 1; the others, and the first element, are multiples of 16 bytes.
    """

    buffer: int
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def fits(self, itemsize: int) -> bool:
        """True where starts and strides are what the accelerator takes, and there is something to copy."""
        steps = [s * itemsize for s in self.strides[:-1]]
        aligned = self.strides[-1] == 1 and self.start * itemsize % UNIT == 0 and all(0 < s < _FARTHEST and s % UNIT == 0 for s in steps)
        return aligned and all(self.shape)


@dataclass(frozen=True, slots=True)
class MapForm:
    """What a compiled kernel expects of one map: how a tile is swizzled in shared memory, the elements, the box of one copy."""

    swizzle: int
    element_type: int
    element_size: int
    box: Sequence[int]


class MapSlot:
    """Memory for one map of one launch, at an address that the driver accepts."""

    def __init__(self, tensor_map: TensorMap, form: MapForm):
        self.map = tensor_map
        rank, size = len(tensor_map.shape), form.element_size
        self._memory = C.create_string_buffer(MAP_BYTES + MAP_ALIGN)
        self.address = -(-C.addressof(self._memory) // MAP_ALIGN) * MAP_ALIGN
        self._offset = tensor_map.start * size
        shape = (C.c_uint64 * rank)(*reversed(tensor_map.shape))
        strides = (C.c_uint64 * rank)(*[size * s for s in reversed(tensor_map.strides[:-1])], 0)
        box, steps = (C.c_uint32 * rank)(*reversed(form.box)), (C.c_uint32 * rank)(*[1] * rank)
        self._extents = shape, strides, box, steps  # the driver reads them at each call
        kind = _HOST_TYPES.get(form.element_type, form.element_type)
        self._head = (self.address, kind, rank)
        self._tail = (*[C.addressof(x) for x in self._extents], 0, form.swizzle, _L2_128, 0)
        spanned = size * (1 + sum((n - 1) * s for n, s in zip(tensor_map.shape, tensor_map.strides, strict=True)))
        self._small = spanned < _SMALL

    def fill(self, base: int) -> None:
        """Make the map for a buffer that starts at `base`. Raises CudaError."""
        call("cuTensorMapEncodeTiled", *self._head, base + self._offset, *self._tail)
        if self._small and driver_version() <= _FIXED_DRIVER:
            # as CUTLASS and Triton do: drivers up to 13.1 set a bit that is wrong for small tensors
            word = C.c_uint64.from_address(self.address + 8)
            word.value &= ~(1 << 21)
