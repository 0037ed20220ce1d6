"""Home of PyTorch's name `torchlet.utils.data`; nothing else lives here."""

from torchlet.utils import data

__all__ = ["data"]
