"""torchlet.backends: PyTorch's switches for vendor libraries, none of which is used here; values are kept and told back."""

from torchlet.backends import cuda, cudnn, mkldnn, mps

__all__ = ["cuda", "cudnn", "mkldnn", "mps"]
