"""CUDA through the driver alone: devices, memory, streams, loaded kernels, graphs. Nothing is loaded before a device is asked for."""

from __future__ import annotations

from torchlet.runtime.cuda.devices import (
    Block,
    Device,
    Event,
    Properties,
    Stream,
    clear,
    device,
    device_count,
    download,
    empty,
    is_pinned,
    opened,
    pinned_empty,
    upload,
    write,
)
from torchlet.runtime.cuda.driver import RECENT, CudaError, DriverError, OutOfMemoryError, note
from torchlet.runtime.cuda.launch import Function, Launch, LaunchGraph, LaunchInfo, TableLaunch
from torchlet.runtime.cuda.tensor_map import UNIT, MapForm, TensorMap

__all__ = [
    "RECENT", "UNIT", "Block", "CudaError", "Device", "DriverError", "Event", "Function", "Launch", "LaunchGraph", "LaunchInfo", "MapForm",
    "OutOfMemoryError", "Properties", "Stream", "TableLaunch", "TensorMap", "clear", "device", "device_count", "download", "empty",
    "is_pinned", "note", "opened", "pinned_empty", "upload", "write",
]
