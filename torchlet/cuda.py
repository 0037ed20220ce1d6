"""torchlet.cuda: devices, streams, events and memory of CUDA, by PyTorch's names. Nothing touches the driver before it is asked."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from torchlet.ops.create import default_generator
from torchlet.ops.public import FUNCTIONS
from torchlet.runtime import cuda as runtime
from torchlet.runtime.cuda import CudaError, DriverError, Event, OutOfMemoryError, Properties, Stream
from torchlet.runtime.cuda.devices import THREAD
from torchlet.spec import device as Place

__all__ = [
    "CudaError", "DriverError", "Event", "OutOfMemoryError", "Stream", "current_device", "current_stream", "default_stream", "device",
    "device_count", "empty_cache", "get_device_capability", "get_device_name", "get_device_properties", "is_available", "is_bf16_supported",
    "is_initialized", "init", "manual_seed", "manual_seed_all", "max_memory_allocated", "max_memory_reserved", "mem_get_info",
    "memory_allocated", "memory_reserved", "memory_summary", "reset_peak_memory_stats", "set_device", "set_stream", "stream", "synchronize",
]  # fmt: skip


def _opened(device: Any = None) -> runtime.Device:
    """The device meant by a number, a string, a torchlet.device or None (the current one). Raises DriverError where it is not there."""
    if device is None or isinstance(device, int):
        return runtime.device(device)
    place = Place(device)
    if place.type != "cuda":
        raise ValueError(f"cuda: got device '{place}'; expected a CUDA device")
    return runtime.device(place)


def is_available() -> bool:
    """True if tensors can live on a CUDA device."""
    return device_count() > 0


def device_count() -> int:
    """How many CUDA devices there are; 0 without a driver."""
    try:
        return runtime.device_count()
    except DriverError:
        return 0


def is_initialized() -> bool:
    """True once a device was used."""
    return bool(runtime.opened())


def init() -> None:
    """Open the current device now. Raises DriverError, which says what is missing."""
    _opened()


def current_device() -> int:
    """The number of the current device. Raises DriverError where there is none."""
    return _opened().index


def set_device(device: Any) -> None:
    """Make a device current in this thread. Raises DriverError where it is not there."""
    THREAD.device = _opened(device).index


@contextlib.contextmanager
def device(index: Any) -> Iterator[None]:
    """`with device(1):` makes a device current until the end of the block."""
    before = THREAD.device
    set_device(index)
    try:
        yield
    finally:
        THREAD.device = before


def synchronize(device: Any = None) -> None:
    """Wait until the device has done everything. Raises CudaError where a kernel failed, DriverError where there is no device."""
    _opened(device).synchronize()
    runtime.RECENT.clear()


def get_device_properties(device: Any = None) -> Properties:
    """Name, compute capability, memory and processors of a device."""
    return _opened(device).properties


def get_device_name(device: Any = None) -> str:
    """The device's name: "NVIDIA H200"."""
    return _opened(device).properties.name


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """The compute capability: (9, 0)."""
    return _opened(device).capability


def is_bf16_supported() -> bool:
    """True on devices with bfloat16 arithmetic."""
    return is_available() and _opened().capability >= (8, 0)


def memory_allocated(device: Any = None) -> int:
    """Bytes of live buffers on the device."""
    return _opened(device).allocated


def max_memory_allocated(device: Any = None) -> int:
    """The most bytes of live buffers since the start or `reset_peak_memory_stats`."""
    return _opened(device).peak


def reset_peak_memory_stats(device: Any = None) -> None:
    """Start counting the peak anew."""
    d = _opened(device)
    d.peak = d.allocated


def memory_reserved(device: Any = None) -> int:
    """Bytes that the pool holds, live or ready to be used again."""
    return _opened(device).reserved()


def max_memory_reserved(device: Any = None) -> int:
    """The most bytes that the pool has held."""
    return _opened(device).reserved(highest=True)


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Free and total bytes of the device, for all processes."""
    return _opened(device).memory_info()


def memory_summary(device: Any = None) -> str:
    """The live buffers by the line that made them, largest first."""
    d = _opened(device)
    by_line: dict[str, tuple[int, int]] = {}
    for nbytes, line in list(d.live.values()):
        total, count = by_line.get(line, (0, 0))
        by_line[line] = (total + nbytes, count + 1)
    rows = sorted(by_line.items(), key=lambda entry: -entry[1][0])
    return "\n".join(f"{total:>16,} bytes in {count:>6} buffers  {line}" for line, (total, count) in rows)


def empty_cache() -> None:
    """Give memory that nobody uses back to the driver."""
    for d in runtime.opened():
        d.empty_cache()


def current_stream(device: Any = None) -> Stream:
    """The stream that this thread's work goes to."""
    return _opened(device).stream


def default_stream(device: Any = None) -> Stream:
    """The stream that work goes to where no other was chosen."""
    return _opened(device).default


def set_stream(stream: Stream) -> None:
    """Make a stream current in this thread. Raises CudaError for one that was closed."""
    _ = stream.cuda_stream
    THREAD.streams[stream.device.index] = stream


@contextlib.contextmanager
def stream(stream: Stream | None) -> Iterator[None]:
    """`with stream(s):` sends this thread's work to a stream until the end of the block."""
    if stream is None:
        yield
        return
    index = stream.device.index
    before = THREAD.streams.get(index)
    set_stream(stream)
    try:
        yield
    finally:
        if before is None:
            THREAD.streams.pop(index, None)
        else:
            THREAD.streams[index] = before


def manual_seed(seed: int) -> None:
    """Seed the generator: there is one for all devices, so that the same seed gives the same numbers everywhere."""
    default_generator.manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """The same as `manual_seed`."""
    default_generator.manual_seed(seed)


def get_rng_state(device: Any = "cuda") -> Any:
    """The state of the one generator."""
    return FUNCTIONS["get_rng_state"]()


def get_rng_state_all() -> list[Any]:
    """The generator's state, once for each device."""
    return [get_rng_state() for _ in range(device_count())]


def set_rng_state(new_state: Any, device: Any = "cuda") -> None:
    """Put the one generator's state back."""
    FUNCTIONS["set_rng_state"](new_state)


def set_rng_state_all(new_states: Any) -> None:
    """Put the generator's state back, from a list of one for each device."""
    for state in new_states:
        set_rng_state(state)


def seed() -> None:
    """Seed the generator from the clock."""
    default_generator.seed()


seed_all = seed


def initial_seed() -> int:
    """What the generator was seeded with."""
    return int(default_generator.initial_seed())


def memory_stats(device: Any = None) -> dict[str, int]:
    """Bytes allocated and reserved, now and at most."""
    return {
        "allocated_bytes.all.current": memory_allocated(device), "allocated_bytes.all.peak": max_memory_allocated(device),
        "reserved_bytes.all.current": memory_reserved(device), "reserved_bytes.all.peak": max_memory_reserved(device),
    }  # fmt: skip


def reset_max_memory_allocated(device: Any = None) -> None:
    """`reset_peak_memory_stats` under its old name."""
    reset_peak_memory_stats(device)


reset_max_memory_cached = reset_max_memory_allocated
memory_cached, max_memory_cached = memory_reserved, max_memory_reserved
StreamContext = stream


def is_current_stream_capturing() -> bool:
    """False: graphs of launches are made by the compiler, not by the program."""
    return False


def is_tf32_supported() -> bool:
    """True on devices of compute capability 8.0 and later."""
    return is_available() and get_device_capability()[0] >= 8


def get_arch_list() -> list[str]:
    """The architectures kernels can be compiled for."""
    return ["sm_80", "sm_90", "sm_100", "sm_120"] if is_available() else []


def ipc_collect() -> None:
    """Nothing is shared between processes."""


class _Range(contextlib.ContextDecorator):
    """nvtx.range: a region named for NVIDIA's profiler, which is not told here."""

    def __init__(self, msg: str = "", *_: Any, **__: Any):
        self.msg = msg

    def __enter__(self) -> None:
        """Nothing to tell."""

    def __exit__(self, *_: object) -> None:
        """Nothing to tell."""


nvtx = SimpleNamespace(range=_Range, range_push=lambda msg: 0, range_pop=lambda: 0, mark=lambda msg: None)


def __getattr__(name: str) -> Any:  # torchlet.cuda.amp, on first use; torchlet.cuda.FloatTensor and its kin
    if name == "amp":
        return importlib.import_module("torchlet.amp").cuda_amp
    if name.endswith("Tensor") and name in FUNCTIONS:
        return lambda *args: FUNCTIONS[name](*args).to("cuda")
    raise AttributeError(f"module 'torchlet.cuda' has no attribute '{name}'")
