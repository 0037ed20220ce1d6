"""Averages of weights along the way: stochastic weight averaging (Izmailov et al. 2018) and exponential moving averages."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from torchlet import dtypes, ops
from torchlet.autograd import no_grad
from torchlet.nn.module import Module
from torchlet.nn.normalization import _BatchNorm
from torchlet.optim.lr_scheduler import LRScheduler
from torchlet.optim.optimizer import Optimizer
from torchlet.tensor import Tensor

__all__ = ["AveragedModel", "SWALR", "get_ema_avg_fn", "get_ema_multi_avg_fn", "get_swa_avg_fn", "get_swa_multi_avg_fn", "update_bn"]


def _check_decay(decay: float) -> None:
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"Invalid decay value {decay} provided. Please provide a value in [0,1] range.")


def get_ema_avg_fn(decay: float = 0.999) -> Callable[..., Tensor]:
    """decay * average + (1 - decay) * value, of one tensor."""
    _check_decay(decay)

    def average(ema_param: Tensor, current_param: Tensor, num_averaged: Any) -> Tensor:
        return ema_param * decay + current_param * (1 - decay)

    return average


def get_swa_avg_fn() -> Callable[..., Tensor]:
    """The mean of all values so far, of one tensor."""

    def average(averaged_param: Tensor, current_param: Tensor, num_averaged: Any) -> Tensor:
        return averaged_param + (current_param - averaged_param) / (num_averaged + 1)

    return average


def _several(average: Callable[..., Tensor]) -> Callable[..., None]:
    def update(averaged: Iterable[Tensor], current: Iterable[Tensor], num_averaged: Any) -> None:
        with no_grad():
            for a, c in zip(averaged, current, strict=True):
                if a.dtype.is_floating_point:
                    a.copy_(average(a.detach(), c.detach(), num_averaged))
                else:
                    a.copy_(c)

    return update


def get_ema_multi_avg_fn(decay: float = 0.999) -> Callable[..., None]:
    """decay * average + (1 - decay) * value, of lists of tensors, in place."""
    return _several(get_ema_avg_fn(decay))


def get_swa_multi_avg_fn() -> Callable[..., None]:
    """The mean of all values so far, of lists of tensors, in place."""
    return _several(get_swa_avg_fn())


class AveragedModel(Module):
    """A copy of a model whose parameters (and, with `use_buffers`, buffers) average those that `update_parameters` shows it."""

    n_averaged: Tensor

    def __init__(
        self,
        model: Module,
        device: Any = None,
        avg_fn: Callable[..., Tensor] | None = None,
        multi_avg_fn: Callable[..., None] | None = None,
        use_buffers: bool = False,
    ) -> None:
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise AssertionError("Only one of avg_fn and multi_avg_fn should be provided")
        self.module = copy.deepcopy(model)
        if device is not None:
            self.module = self.module.to(device)
        self.register_buffer("n_averaged", ops.tensor(0, dtype=dtypes.int64))
        self.avg_fn = avg_fn
        self.multi_avg_fn = multi_avg_fn
        self.use_buffers = use_buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The result of the averaged model."""
        return self.module(*args, **kwargs)

    def update_parameters(self, model: Module) -> None:
        """Take the present weights of `model` into the average; the first time they are copied."""

        def tensors(m: Module) -> list[Tensor]:
            return list(chain(m.parameters(), m.buffers())) if self.use_buffers else list(m.parameters())

        ours, theirs = tensors(self.module), tensors(model)
        count = int(self.n_averaged)
        with no_grad():
            if count == 0:
                for a, c in zip(ours, theirs, strict=True):
                    a.copy_(c.detach())
            elif self.multi_avg_fn is not None:
                self.multi_avg_fn([a.detach() for a in ours], [c.detach() for c in theirs], self.n_averaged)
            else:
                _several(self.avg_fn or get_swa_avg_fn())([a.detach() for a in ours], [c.detach() for c in theirs], self.n_averaged)
            if not self.use_buffers:
                for b, c in zip(self.module.buffers(), model.buffers(), strict=True):
                    b.copy_(c.detach())
            self.n_averaged += 1


@no_grad()
def update_bn(loader: Iterable[Any], model: Module, device: Any = None) -> None:
    """Collect the statistics of the batch normalisations anew in one pass over the loader."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if not norms:
        return
    was_training, momenta = model.training, [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
    model.train()
    for batch in loader:
        x = batch[0] if isinstance(batch, list | tuple) else batch
        model(x if device is None else x.to(device))
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
    model.train(was_training)


class SWALR(LRScheduler):
    """Goes from the present rates to `swa_lr` in `anneal_epochs` epochs and stays there."""

    def __init__(
        self, optimizer: Optimizer, swa_lr: Any, anneal_epochs: int = 10, anneal_strategy: str = "cos", last_epoch: int = -1
    ) -> None:
        groups = optimizer.param_groups
        rates = list(swa_lr) if isinstance(swa_lr, list | tuple) else [swa_lr] * len(groups)
        if len(rates) != len(groups):
            raise ValueError(
                f"swa_lr must have the same length as optimizer.param_groups: swa_lr has {len(rates)}, optimizer.param_groups "
                f"has {len(groups)}"
            )
        for group, rate in zip(groups, rates, strict=True):
            group["swa_lr"] = rate
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"anneal_strategy must by one of 'cos' or 'linear', instead got {anneal_strategy}")
        if not isinstance(anneal_epochs, int) or anneal_epochs < 0:
            raise ValueError(f"anneal_epochs must be equal or greater than 0, got {anneal_epochs}")
        self._strategy = anneal_strategy
        self.anneal_epochs = anneal_epochs
        super().__init__(optimizer, last_epoch)

    def _share(self, epoch: int) -> float:
        """How far from the first rate to the last."""
        x = max(0.0, min(1.0, epoch / max(1, self.anneal_epochs)))
        return (1 - math.cos(math.pi * x)) / 2 if self._strategy == "cos" else x

    def get_lr(self) -> list[Any]:
        """The rates of epoch `last_epoch`."""
        step = self._step_count - 1
        if self.anneal_epochs == 0:
            step = max(1, step)
        before, now = self._share(max(0, min(step - 1, self.anneal_epochs))), self._share(step)
        out = []
        for group in self.optimizer.param_groups:
            rate, target = group["lr"], group["swa_lr"]
            start = target if before == 1 else (rate - before * target) / (1 - before)
            out.append(target * now + start * (1 - now))
        return out
