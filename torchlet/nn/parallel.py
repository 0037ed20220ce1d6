"""Modules that PyTorch wraps around a model to train it on several devices; with one device they pass everything through."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torchlet import ops
from torchlet.nn.module import Module
from torchlet.tensor import Tensor

__all__ = ["DataParallel", "DistributedDataParallel", "data_parallel", "gather", "replicate", "scatter"]


class DataParallel(Module):
    """The module itself: there is one device to run on."""

    def __init__(self, module: Module, device_ids: Any = None, output_device: Any = None, dim: int = 0) -> None:
        super().__init__()
        self.dim = dim
        self.module = module
        self.device_ids = list(device_ids or [])
        self.output_device = output_device

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The result of the module."""
        return self.module(*inputs, **kwargs)


class DistributedDataParallel(Module):
    """The module of one process of a data-parallel run; with one process its gradients are already those of all."""

    def __init__(
        self,
        module: Module,
        device_ids: Any = None,
        output_device: Any = None,
        dim: int = 0,
        broadcast_buffers: bool = True,
        process_group: Any = None,
        bucket_cap_mb: float | None = None,
        find_unused_parameters: bool = False,
        check_reduction: bool = False,
        gradient_as_bucket_view: bool = False,
        static_graph: bool = False,
        **_: Any,
    ) -> None:
        super().__init__()
        if not any(p.requires_grad for p in module.parameters()):
            raise RuntimeError("DistributedDataParallel is not needed when a module doesn't have any parameters that require a gradient.")
        self.dim = dim
        self.module = module
        self.device_ids = device_ids
        self.output_device = output_device
        self.process_group = process_group
        self.broadcast_buffers = broadcast_buffers
        self.find_unused_parameters = find_unused_parameters
        self.require_backward_grad_sync = True

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The result of the module."""
        return self.module(*inputs, **kwargs)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients are only accumulated inside."""
        before, self.require_backward_grad_sync = self.require_backward_grad_sync, False
        try:
            yield
        finally:
            self.require_backward_grad_sync = before


def data_parallel(
    module: Module, inputs: Any, device_ids: Any = None, output_device: Any = None, dim: int = 0, module_kwargs: Any = None
) -> Any:
    """module(*inputs, **module_kwargs)."""
    return module(*(inputs if isinstance(inputs, tuple) else (inputs,)), **(module_kwargs or {}))


def scatter(inputs: Tensor, target_gpus: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """One part for each device."""
    return inputs.chunk(len(target_gpus), dim)  # type: ignore[no-any-return]


def gather(outputs: Any, target_device: Any, dim: int = 0) -> Any:
    """The parts joined again."""
    return ops.cat(list(outputs), dim)


def replicate(network: Module, devices: Any, detach: bool = False) -> list[Module]:
    """The module itself for each device."""
    return [network for _ in devices]
