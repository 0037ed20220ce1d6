"""torchlet.backends.cuda: switches of PyTorch's CUDA products and attention kernels; but for TF32 they are only kept and told back."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torchlet.config import config


class _Matmul(SimpleNamespace):
    @property
    def allow_tf32(self) -> bool:
        """True where products of float32 may run in TF32; the same switch as `torchlet.set_float32_matmul_precision`."""
        return config.float32_dot == "tf32"

    @allow_tf32.setter
    def allow_tf32(self, allowed: bool) -> None:
        config.float32_dot = "tf32" if allowed else "ieee"


matmul = _Matmul(allow_fp16_reduced_precision_reduction=True, allow_bf16_reduced_precision_reduction=True)
_attention = {"flash": True, "mem_efficient": True, "math": True, "cudnn": True}


def is_built() -> bool:
    """True: kernels for CUDA devices can be made."""
    return True


def _switch(kind: str) -> tuple[Any, Any]:
    def enable(enabled: bool) -> None:
        _attention[kind] = bool(enabled)

    return enable, lambda: _attention[kind]


enable_flash_sdp, flash_sdp_enabled = _switch("flash")
enable_mem_efficient_sdp, mem_efficient_sdp_enabled = _switch("mem_efficient")
enable_math_sdp, math_sdp_enabled = _switch("math")
enable_cudnn_sdp, cudnn_sdp_enabled = _switch("cudnn")


@contextmanager
def sdp_kernel(
    enable_flash: bool = True, enable_math: bool = True, enable_mem_efficient: bool = True, enable_cudnn: bool = True
) -> Iterator[None]:
    """Switches for the length of a block."""
    before = dict(_attention)
    _attention.update(flash=enable_flash, math=enable_math, mem_efficient=enable_mem_efficient, cudnn=enable_cudnn)
    try:
        yield
    finally:
        _attention.update(before)
