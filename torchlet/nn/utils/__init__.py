"""torchlet.nn.utils: gradient clipping, parameters as one vector, parametrizations, pruning, sequences of different lengths."""

from collections.abc import Callable
from typing import Any

from torchlet.nn.module import Module
from torchlet.nn.utils import parametrizations, parametrize, prune, rnn
from torchlet.nn.utils.clip_grad import clip_grad_norm, clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torchlet.nn.utils.convert_parameters import parameters_to_vector, vector_to_parameters
from torchlet.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights, fuse_linear_bn_eval, fuse_linear_bn_weights
from torchlet.nn.utils.reparametrize import remove_spectral_norm, remove_weight_norm, spectral_norm, weight_norm

__all__ = [
    "clip_grad_norm", "clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm",
    "convert_conv2d_weight_memory_format",
    "convert_conv3d_weight_memory_format", "fuse_conv_bn_eval", "fuse_conv_bn_weights", "fuse_linear_bn_eval", "fuse_linear_bn_weights",
    "parameters_to_vector", "parametrizations", "parametrize", "prune", "remove_spectral_norm", "remove_weight_norm", "rnn", "skip_init",
    "spectral_norm", "vector_to_parameters", "weight_norm",
]


def skip_init(module_cls: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A module whose parameters are to be overwritten; making them costs little here, so they are what they would be anyway."""
    if not (isinstance(module_cls, type) and issubclass(module_cls, Module)):
        raise RuntimeError(f"Expected a Module; got {module_cls}")
    return module_cls(*args, **kwargs)


def convert_conv2d_weight_memory_format(module: Module, memory_format: Any) -> Module:
    """The module itself: kernels choose their own layout of the weights."""
    return module


convert_conv3d_weight_memory_format = convert_conv2d_weight_memory_format
