"""The NVIDIA driver's C interface through ctypes: names, structures, and errors that say what to do.

Nothing is loaded at import; the library opens when a device is first asked for. Every name and number is from cuda.h of CUDA 12.8.
"""

from __future__ import annotations

import ctypes as C
import functools
from typing import Any

from torchlet.config import config

__all__ = ["CudaError", "DriverError", "KernelNodeParams", "LaunchAttribute", "LaunchConfig", "OutOfMemoryError", "call", "load", "out"]


class CudaError(RuntimeError):
    """The driver refused a call, or a kernel failed."""


class DriverError(CudaError):
    """There is no NVIDIA driver here, or it knows no device."""


class OutOfMemoryError(CudaError):
    """The device has no room for an allocation; the text lists the largest live buffers."""


class LaunchAttribute(C.Structure):
    """CUlaunchAttribute: which one, and a union of 64 bytes."""

    _fields_ = [("id", C.c_int), ("pad", C.c_char * 4), ("value", C.c_uint32 * 16)]


class LaunchConfig(C.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", C.c_uint * 3), ("block", C.c_uint * 3), ("shared", C.c_uint), ("stream", C.c_void_p), ("attributes", C.c_void_p),
        ("count", C.c_uint),
    ]


class KernelNodeParams(C.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = [
        ("function", C.c_void_p), ("grid", C.c_uint * 3), ("block", C.c_uint * 3), ("shared", C.c_uint), ("parameters", C.c_void_p),
        ("extra", C.c_void_p), ("kernel", C.c_void_p), ("context", C.c_void_p),
    ]


assert (C.sizeof(LaunchAttribute), C.sizeof(LaunchConfig), C.sizeof(KernelNodeParams)) == (72, 56, 72)

_P, _U, _I, _S, _D = C.c_void_p, C.c_uint, C.c_int, C.c_size_t, C.c_uint64
_SIGNATURES: dict[str, list[Any]] = {  # all return a CUresult
    "cuInit": [_U], "cuDriverGetVersion": [_P], "cuDeviceGetCount": [_P], "cuDeviceGet": [_P, _I], "cuDeviceGetName": [_P, _I, _I],
    "cuDeviceGetAttribute": [_P, _I, _I], "cuDeviceTotalMem_v2": [_P, _I], "cuDevicePrimaryCtxRetain": [_P, _I],
    "cuCtxSetCurrent": [_P], "cuCtxSynchronize": [],
    "cuModuleLoadData": [_P, _P], "cuModuleGetFunction": [_P, _P, C.c_char_p], "cuModuleUnload": [_P],
    "cuFuncSetAttribute": [_P, _I, _I], "cuFuncGetAttribute": [_P, _I, _P],
    "cuMemAllocAsync": [_P, _S, _P], "cuMemFreeAsync": [_D, _P], "cuMemGetInfo_v2": [_P, _P],
    "cuDeviceGetDefaultMemPool": [_P, _I], "cuMemPoolSetAttribute": [_P, _I, _P], "cuMemPoolGetAttribute": [_P, _I, _P],
    "cuMemPoolTrimTo": [_P, _S], "cuMemHostAlloc": [_P, _S, _U], "cuMemFreeHost": [_P],
    "cuMemcpyHtoDAsync_v2": [_D, _P, _S, _P], "cuMemcpyDtoHAsync_v2": [_P, _D, _S, _P], "cuMemcpyDtoDAsync_v2": [_D, _D, _S, _P],
    "cuMemsetD8Async": [_D, C.c_ubyte, _S, _P],
    "cuStreamCreateWithPriority": [_P, _U, _I], "cuStreamDestroy_v2": [_P], "cuStreamSynchronize": [_P], "cuStreamQuery": [_P],
    "cuStreamWaitEvent": [_P, _P, _U],
    "cuEventCreate": [_P, _U], "cuEventRecord": [_P, _P], "cuEventQuery": [_P], "cuEventSynchronize": [_P],
    "cuEventElapsedTime": [_P, _P, _P], "cuEventDestroy_v2": [_P],
    "cuTensorMapEncodeTiled": [_P, _I, _U, _D, _P, _P, _P, _P, _I, _I, _I, _I],
    "cuLaunchKernelEx": [_P, _P, _P, _P],
    "cuGraphCreate": [_P, _U], "cuGraphAddKernelNode_v2": [_P, _P, _P, _S, _P], "cuGraphKernelNodeSetAttribute": [_P, _I, _P],
    "cuGraphInstantiateWithFlags": [_P, _P, C.c_ulonglong], "cuGraphExecKernelNodeSetParams_v2": [_P, _P, _P], "cuGraphLaunch": [_P, _P],
    "cuGraphExecDestroy": [_P], "cuGraphDestroy": [_P],
    "cuGetErrorString": [_I, _P], "cuGetErrorName": [_I, _P],
}  # fmt: skip

NO_ROOM, NOT_READY = 2, 600
_FATAL = {  # after these the device answers nothing but errors to this process
    700: "a kernel read or wrote outside its memory", 702: "a kernel ran too long for the display driver",
    714: "a kernel's stack is corrupt", 715: "a kernel met an illegal instruction", 716: "a kernel used a misaligned address",
    717: "a kernel used an address of the wrong kind", 718: "a kernel jumped to nowhere", 719: "a kernel failed",
}  # fmt: skip
_IMAGE = {200, 209, 218, 220, 222, 223}  # cuModuleLoadData: the binary is not for this device or this driver


@functools.lru_cache(maxsize=1)
def load() -> C.CDLL:
    """The driver library, initialised. Raises DriverError with the remedy where there is none or it finds no device."""
    name = config.libcuda or "libcuda.so.1"
    try:
        library = C.CDLL(name)
    except OSError as problem:
        raise DriverError(
            f"cuda: no NVIDIA driver on this machine ({name}: {problem})\nhelp: tensors can stay on the CPU; ask "
            "torchlet.cuda.is_available() first"
        ) from None
    for symbol, arguments in _SIGNATURES.items():
        try:
            f = getattr(library, symbol)
        except AttributeError:
            version = C.c_int()
            library.cuDriverGetVersion(C.byref(version))
            raise DriverError(
                f"cuda: the NVIDIA driver is for CUDA {_dotted(version.value)} and has no {symbol}; expected CUDA 12.0 or newer\n"
                "help: update the NVIDIA driver"
            ) from None
        f.argtypes, f.restype = arguments, _I
    status = library.cuInit(0)
    if status:
        what = "no CUDA device is visible" if status == 100 else f"cuInit failed: {_text(library, status)}"
        raise DriverError(f"cuda: {what}\nhelp: check nvidia-smi and the environment variable CUDA_VISIBLE_DEVICES")
    return library


@functools.lru_cache(maxsize=1)
def launcher() -> C.PyDLL:
    """The same library for calls that take a microsecond: the interpreter lock is kept, which is cheaper than giving it away."""
    library = C.PyDLL(config.libcuda or load()._name)
    for name in ("cuLaunchKernelEx", "cuGraphLaunch", "cuGraphExecKernelNodeSetParams_v2"):
        f = getattr(library, name)
        f.argtypes, f.restype = _SIGNATURES[name], _I
    return library


def driver_version() -> int:
    """12080 for CUDA 12.8."""
    return out(C.c_int, "cuDriverGetVersion")


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _text(library: Any, status: int) -> str:
    name, words = C.c_char_p(), C.c_char_p()
    library.cuGetErrorName(status, C.byref(name))
    library.cuGetErrorString(status, C.byref(words))
    return f"{(name.value or b'?').decode()} ({status}), {(words.value or b'no text').decode()}"


def call(name: str, *arguments: Any) -> None:
    """Call the driver. Raises CudaError saying what happened and what to do about it."""
    status = getattr(load(), name)(*arguments)
    if status:
        raise failure(name, status)


def failure(name: str, status: int, about: str = "") -> CudaError:
    """The error of a call that returned `status`; `about` says what was being done."""
    text = f"cuda: {name}: {_text(load(), status)}" + (f"; {about}" if about else "")
    if status in _FATAL:
        recent = ", ".join(dict.fromkeys(RECENT[-8:]))
        text = (
            f"cuda: {_FATAL[status]} ({name}: {_text(load(), status)}). The last kernels launched: {recent or 'none'}. This process cannot "
            "use the device any more; tensors on the CPU are not touched\nhelp: run with TORCHLET_CUDA_SYNC=1, which checks after every "
            "kernel and names the one that failed with the lines it computes"
        )
    elif status in _IMAGE and name == "cuModuleLoadData":
        text += (
            f"\nhelp: the binary was made for another device or by a newer CUDA than this driver's ({_dotted(driver_version())}): update "
            "the NVIDIA driver, or install the Triton version that fits it"
        )
    return (OutOfMemoryError if status == NO_ROOM else CudaError)(text)


RECENT: list[str] = []  # names of kernels whose success is not known yet, newest last


def note(names: list[str]) -> None:
    """Remember kernels that were launched, for the text of a later error."""
    RECENT.extend(names)
    if len(RECENT) > 256:
        del RECENT[:-16]


def out(kind: Any, name: str, *arguments: Any) -> Any:
    """The value that a driver function writes through its first argument."""
    value = kind()
    call(name, C.byref(value), *arguments)
    return value.value


