"""torchlet.nn.utils: gradient clipping, parameters as one vector, sequences of different lengths; parametrizations load on first use."""

import importlib
from typing import Any

from torchlet.nn.utils import rnn
from torchlet.nn.utils.clip_grad import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torchlet.nn.utils.convert_parameters import parameters_to_vector, vector_to_parameters

__all__ = [
    "clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm", "parameters_to_vector", "rnn", "vector_to_parameters",
]
