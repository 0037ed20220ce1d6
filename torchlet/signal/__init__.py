"""torchlet.signal: windows."""

from torchlet.signal import windows

__all__ = ["windows"]
