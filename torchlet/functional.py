"""torchlet.functional: the few functions that PyTorch also has under torch.functional."""

from torchlet.ops.public import FUNCTIONS

__all__ = [  # noqa: F822  taken from the table below
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
    "block_diag",
    "broadcast_shapes",
    "broadcast_tensors",
    "cartesian_prod",
    "cdist",
    "chain_matmul",
    "einsum",
    "istft",
    "meshgrid",
    "norm",
    "split",
    "stft",
    "tensordot",
    "unique",
    "unique_consecutive",
    "unravel_index",
]
globals().update({name: FUNCTIONS[name] for name in __all__})
