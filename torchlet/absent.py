"""What of PyTorch is left out on purpose, with the reason, and the words of an error about a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["ABSENT", "reason", "missing"]

# the beginnings of paths below torch -> why they are not there
ABSENT = {
    "_C _dynamo _functorch _inductor _jit _prims ops classes": (
        "PyTorch's own machinery; torchlet compiles by running (see torchlet.explain)"
    ),
    "ao quantization quantize qint quint int_repr dequantize fake_quantize Tensor.q_ backends.quantized nn.quantized": (
        "quantized dtypes; examples/quantization.py shows int8 weights"
    ),
    "distributed.fsdp distributed.tensor distributed.rpc distributed.autograd distributed.nn distributed.algorithms distributed.TCPStore "
    "distributed.PrefixStore distributed.Store distributed.device_mesh": "several processes; torchlet.distributed knows one",
    "export onnx fx jit.load jit.save _export": "graphs for other runtimes: TorchScript, torch.export, FX and ONNX",
    "float8 float4 bits uint1 uint2 uint3 uint4 uint5 uint6 uint7 int1 int2 int3 int4 int5 int6 int7 _scaled_mm": (
        "dtypes that torchlet has not: floats of 8 bits and less, integers of fewer than 8, unsigned ones of 16 bits and more"
    ),
    "hub.load hub.list hub.help": "running code from the network",
    "mps xpu mtia cuda.CUDAGraph cuda.graph cuda.make_graphed_callables": (
        "devices and launch graphs that the compiler does not leave to programs"
    ),
    "nested jagged": "nested tensors; pad, or use torchlet.nn.utils.rnn.PackedSequence",
    "sparse to_sparse spmm smm hspmm sspaddmm saddmm Tensor.to_sparse Tensor.coalesce": (
        "sparse layouts; tensors are dense: use index_add, scatter_add or matmul with a dense matrix"
    ),
    "autograd.graph.saved_tensors_hooks autograd.forward_ad": (
        "the tape keeps what its rules name, and walks backwards only; torchlet.func.jvp gives forward derivatives"
    ),
    "linalg.ldl_factor linalg.ldl_solve lobpcg nn.CrossMapLRN2d": "rarely used; linalg.eigh and nn.LocalResponseNorm do the same work",
    "utils.cpp_extension utils.benchmark utils.bottleneck": "PyTorch's build and measuring tools",
}
_REASONS = {start: why for starts, why in ABSENT.items() for start in starts.split()}


def reason(path: str) -> str | None:
    """Why the name at `path` (below torch) is left out; None where it is not in the list."""
    name = path.removeprefix("torch.").removeprefix("torchlet.")
    best = max((start for start in _REASONS if name.startswith(start)), key=len, default=None)
    return None if best is None else _REASONS[best]


def missing(path: str, name: str, among: Iterable[str]) -> str:
    """The end of a sentence about a name that is not there: the reason, or the nearest names that are, and where the list is."""
    why = reason(path)
    if why is not None:
        return f": left out, {why}\nhelp: torchlet/absent.py lists what is left out and why"
    there = [n for n in among if not n.startswith("__")]
    lower = {n.lower(): n for n in there}
    close = [lower[name.lower()]] if name.lower() in lower else difflib.get_close_matches(name, there, 3, 0.6)
    close = close or difflib.get_close_matches(name, there, 1, 0.5)
    if not close:
        return "\nhelp: torchlet/absent.py lists what is left out and why"
    others = f" (also near: {', '.join(close[1:])})" if close[1:] else ""
    return f"; the nearest name is '{close[0]}'{others}\nhelp: torchlet/absent.py lists what is left out and why"
