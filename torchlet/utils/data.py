"""torchlet.data under PyTorch's name."""

from torchlet.data import *  # noqa: F403
from torchlet.data import __all__ as __all__
