"""torchlet.distributed: PyTorch's names for a group of one process; several processes are not there yet, and say so."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torchlet.tensor import Tensor

__all__ = [
    "ReduceOp",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "destroy_process_group",
    "gather",
    "get_backend",
    "get_rank",
    "get_world_size",
    "init_process_group",
    "is_available",
    "is_initialized",
    "is_mpi_available",
    "is_nccl_available",
    "is_torchelastic_launched",
    "new_group",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
]


class ReduceOp:
    """How values of several processes are combined."""

    SUM, AVG, PRODUCT, MIN, MAX = "sum", "avg", "product", "min", "max"


class Work:
    """What an asynchronous operation returns; it is done already."""

    def wait(self, timeout: Any = None) -> bool:
        """True at once."""
        return True

    def is_completed(self) -> bool:
        """True."""
        return True


group = type("group", (), {"WORLD": None})
_backend: list[str] = []


def is_available() -> bool:
    """True: the names work, for one process."""
    return True


def is_nccl_available() -> bool:
    """False: one process needs no transport."""
    return False


def is_mpi_available() -> bool:
    """False: one process needs no transport."""
    return False


def is_torchelastic_launched() -> bool:
    """False."""
    return False


def is_initialized() -> bool:
    """True between `init_process_group` and `destroy_process_group`."""
    return bool(_backend)


def init_process_group(
    backend: str | None = None, init_method: str | None = None, timeout: Any = None, world_size: int = -1, rank: int = -1, **_: Any
) -> None:
    """Begin the group of this one process. Raises RuntimeError for more processes, or when it has begun already."""
    if _backend:
        raise ValueError("trying to initialize the default process group twice!")
    size = int(os.environ.get("WORLD_SIZE", "1")) if world_size == -1 else world_size
    if size != 1:
        raise RuntimeError(f"init_process_group: world size {size}; expected 1, groups of several processes are not there")
    _backend.append(backend or "gloo")


def destroy_process_group(group: Any = None) -> None:
    """End the group."""
    _backend.clear()


def _begun() -> None:
    if not _backend:
        raise ValueError("Default process group has not been initialized, please make sure to call init_process_group.")


def get_rank(group: Any = None) -> int:
    """0. Raises ValueError before `init_process_group`."""
    _begun()
    return 0


def get_world_size(group: Any = None) -> int:
    """1. Raises ValueError before `init_process_group`."""
    _begun()
    return 1


def get_backend(group: Any = None) -> str:
    """The name that was given."""
    _begun()
    return _backend[0]


def new_group(ranks: Any = None, *_: Any, **__: Any) -> None:
    """A group of the same one process."""
    _begun()


def _alone(async_op: bool) -> Work | None:
    _begun()
    return Work() if async_op else None


def all_reduce(tensor: Tensor, op: Any = ReduceOp.SUM, group: Any = None, async_op: bool = False) -> Work | None:
    """The tensor stays what it is: the only process's value."""
    return _alone(async_op)


def broadcast(tensor: Tensor, src: int = 0, group: Any = None, async_op: bool = False, **_: Any) -> Work | None:
    """The tensor stays what it is."""
    return _alone(async_op)


def reduce(tensor: Tensor, dst: int = 0, op: Any = ReduceOp.SUM, group: Any = None, async_op: bool = False, **_: Any) -> Work | None:
    """The tensor stays what it is."""
    return _alone(async_op)


def barrier(group: Any = None, async_op: bool = False, device_ids: Any = None) -> Work | None:
    """Nobody to wait for."""
    return _alone(async_op)


def broadcast_object_list(object_list: list[Any], src: int = 0, group: Any = None, device: Any = None, **_: Any) -> None:
    """The list stays what it is."""
    _begun()


def all_gather(tensor_list: list[Tensor], tensor: Tensor, group: Any = None, async_op: bool = False) -> Work | None:
    """The one tensor goes into the list's one tensor."""
    tensor_list[0].copy_(tensor)
    return _alone(async_op)


def all_gather_object(object_list: list[Any], obj: Any, group: Any = None) -> None:
    """The one object goes into the list."""
    _begun()
    object_list[0] = obj


def all_gather_into_tensor(output_tensor: Tensor, input_tensor: Tensor, group: Any = None, async_op: bool = False) -> Work | None:
    """The output becomes the input."""
    output_tensor.copy_(input_tensor.reshape(output_tensor.shape))
    return _alone(async_op)


reduce_scatter_tensor = all_gather_into_tensor


def gather(
    tensor: Tensor, gather_list: list[Tensor] | None = None, dst: int = 0, group: Any = None, async_op: bool = False, **_: Any
) -> Work | None:
    """The one tensor goes into the list's one tensor."""
    if gather_list:
        gather_list[0].copy_(tensor)
    return _alone(async_op)


def scatter(
    tensor: Tensor, scatter_list: Sequence[Tensor] | None = None, src: int = 0, group: Any = None, async_op: bool = False, **_: Any
) -> Work | None:
    """The tensor becomes the list's one tensor."""
    if scatter_list:
        tensor.copy_(scatter_list[0])
    return _alone(async_op)


def reduce_scatter(
    output: Tensor, input_list: Sequence[Tensor], op: Any = ReduceOp.SUM, group: Any = None, async_op: bool = False
) -> Work | None:
    """The output becomes the list's one tensor."""
    output.copy_(input_list[0])
    return _alone(async_op)


def all_to_all_single(
    output: Tensor, input: Tensor, output_split_sizes: Any = None, input_split_sizes: Any = None, group: Any = None, async_op: bool = False
) -> Work | None:
    """The output becomes the input."""
    output.copy_(input.reshape(output.shape))
    return _alone(async_op)


def all_to_all(
    output_tensor_list: list[Tensor], input_tensor_list: list[Tensor], group: Any = None, async_op: bool = False
) -> Work | None:
    """The one tensor goes into the list's one tensor."""
    output_tensor_list[0].copy_(input_tensor_list[0])
    return _alone(async_op)


def get_process_group_ranks(group: Any = None) -> list[int]:
    """[0]."""
    _begun()
    return [0]


def get_global_rank(group: Any, group_rank: int) -> int:
    """0."""
    return 0


def get_group_rank(group: Any, global_rank: int) -> int:
    """0."""
    return 0


class ProcessGroup:
    """The one process; the name is for annotations."""
