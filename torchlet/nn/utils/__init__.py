"""torchlet.nn.utils: gradient clipping, parameters as one vector, parametrizations, pruning, sequences of different lengths."""

from torchlet.nn.utils import parametrizations, parametrize, prune, rnn
from torchlet.nn.utils.clip_grad import clip_grad_norm, clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torchlet.nn.utils.convert_parameters import parameters_to_vector, vector_to_parameters
from torchlet.nn.utils.reparametrize import remove_spectral_norm, remove_weight_norm, spectral_norm, weight_norm

__all__ = [
    "clip_grad_norm", "clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm", "parameters_to_vector",
    "parametrizations", "parametrize", "prune",
    "remove_spectral_norm", "remove_weight_norm", "rnn", "spectral_norm", "vector_to_parameters", "weight_norm",
]
