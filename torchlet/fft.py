"""torchlet.fft: Fourier transforms under PyTorch's names; the operators are in ops/fourier.py."""

from __future__ import annotations

from torchlet.ops.fourier import FFT

globals().update(FFT)
__all__ = [*FFT]
