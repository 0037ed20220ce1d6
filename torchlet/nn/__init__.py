"""torchlet.nn: modules, parameters and losses, with PyTorch's names."""

from torchlet.nn import functional, init, parameter, utils
from torchlet.nn.activation import *  # noqa: F403
from torchlet.nn.container import ModuleDict, ModuleList, ParameterDict, ParameterList, Sequential
from torchlet.nn.dropout import AlphaDropout, Dropout, Dropout1d, Dropout2d
from torchlet.nn.embedding import Embedding
from torchlet.nn.linear import Flatten, Identity, Linear, Unflatten
from torchlet.nn.loss import *  # noqa: F403
from torchlet.nn.module import Module
from torchlet.nn.normalization import BatchNorm1d, BatchNorm2d, GroupNorm, LayerNorm, RMSNorm
from torchlet.nn.parameter import Buffer, Parameter
