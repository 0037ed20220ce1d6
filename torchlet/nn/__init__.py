"""torchlet.nn: modules, parameters and losses, with PyTorch's names."""

from torchlet.nn import (
    activation,
    adaptive,
    attention,
    container,
    conv,
    dropout,
    embedding,
    functional,
    init,
    lazy,
    linear,
    loss,
    modules,
    normalization,
    padding,
    parallel,
    parameter,
    pooling,
    rnn,
    transformer,
    utils,
    vision,
)
from torchlet.nn import embedding as sparse
from torchlet.nn.activation import *  # noqa: F403
from torchlet.nn.adaptive import AdaptiveLogSoftmaxWithLoss
from torchlet.nn.container import *  # noqa: F403
from torchlet.nn.conv import *  # noqa: F403
from torchlet.nn.dropout import *  # noqa: F403
from torchlet.nn.embedding import *  # noqa: F403
from torchlet.nn.lazy import *  # noqa: F403
from torchlet.nn.linear import *  # noqa: F403
from torchlet.nn.loss import *  # noqa: F403
from torchlet.nn.module import Module
from torchlet.nn.normalization import *  # noqa: F403
from torchlet.nn.padding import *  # noqa: F403
from torchlet.nn.parallel import DataParallel
from torchlet.nn.parameter import Buffer, Parameter, UninitializedParameter
from torchlet.nn.parameter import UninitializedParameter as UninitializedBuffer
from torchlet.nn.pooling import *  # noqa: F403
from torchlet.nn.rnn import *  # noqa: F403
from torchlet.nn.transformer import *  # noqa: F403
from torchlet.nn.vision import *  # noqa: F403

__all__ = [
    "AdaptiveLogSoftmaxWithLoss", "Buffer", "DataParallel", "Module", "Parameter", "UninitializedBuffer", "UninitializedParameter",
    "adaptive",
    "attention", "functional", "init", "modules", "parallel",
    "parameter",
    "sparse", "utils",
]
__all__ += activation.__all__
__all__ += container.__all__
__all__ += conv.__all__
__all__ += dropout.__all__
__all__ += embedding.__all__
__all__ += lazy.__all__
__all__ += linear.__all__
__all__ += loss.__all__
__all__ += normalization.__all__
__all__ += padding.__all__
__all__ += pooling.__all__
__all__ += rnn.__all__
__all__ += transformer.__all__
__all__ += vision.__all__
