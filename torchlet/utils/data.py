"""torchlet.data under PyTorch's name."""

from torchlet.data import *  # noqa: F403  exactly the names of torchlet.data
from torchlet.data import __all__ as __all__
