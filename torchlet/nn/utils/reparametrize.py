"""nn.utils.weight_norm and spectral_norm in their older form, with PyTorch's names in the state dict."""

from __future__ import annotations

from typing import Any

from torchlet import ops
from torchlet.autograd import no_grad
from torchlet.nn import functional as F
from torchlet.nn.module import Module
from torchlet.nn.parameter import Parameter
from torchlet.nn.utils.parametrizations import norm_except_dim
from torchlet.tensor import Tensor

__all__ = ["remove_spectral_norm", "remove_weight_norm", "spectral_norm", "weight_norm"]


class _WeightNorm:
    """Sets `name` from `name_g` and `name_v` before each forward pass."""

    def __init__(self, name: str, dim: int) -> None:
        self.name, self.dim = name, dim

    def compute(self, module: Module) -> Tensor:
        """g * v / ‖v‖."""
        g, v = getattr(module, self.name + "_g"), getattr(module, self.name + "_v")
        return v * (g / norm_except_dim(v, self.dim))

    def __call__(self, module: Module, inputs: Any) -> None:
        module.__dict__[self.name] = self.compute(module)


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """Train the norm `name_g` and the direction `name_v` of a weight apart (Salimans & Kingma 2016)."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook.function, _WeightNorm) and hook.function.name == name:
            raise RuntimeError(f"Cannot register two weight_norm hooks on the same parameter {name}")
    rule = _WeightNorm(name, -1 if dim is None else dim)
    weight = getattr(module, name)
    del module._parameters[name]
    with no_grad():
        norm = norm_except_dim(weight, rule.dim).detach()
    module.register_parameter(name + "_g", Parameter(norm))
    module.register_parameter(name + "_v", Parameter(weight.detach()))
    module.__dict__[name] = rule.compute(module)
    module.register_forward_pre_hook(rule)
    return module


def remove_weight_norm(module: Module, name: str = "weight") -> Module:
    """Make the weight an ordinary parameter with its present value. Raises ValueError where there is no weight norm."""
    for key, hook in module._forward_pre_hooks.items():
        rule = hook.function
        if isinstance(rule, _WeightNorm) and rule.name == name:
            with no_grad():
                weight = rule.compute(module).detach()
            module.__dict__.pop(name, None)
            del module._parameters[name + "_g"], module._parameters[name + "_v"]
            module.register_parameter(name, Parameter(weight))
            del module._forward_pre_hooks[key]
            return module
    raise ValueError(f"weight_norm of '{name}' not found in {module}")


class _SpectralNorm:
    def __init__(self, name: str, count: int, dim: int, eps: float) -> None:
        self.name, self.count, self.dim, self.eps = name, count, dim, eps

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight with `dim` in front, as a matrix."""
        return (weight if self.dim == 0 else weight.movedim(self.dim, 0)).flatten(1)

    def compute(self, module: Module, iterate: bool) -> Tensor:
        """The weight divided by its largest singular value, which gets better with every training pass."""
        weight, u, v = (getattr(module, self.name + end) for end in ("_orig", "_u", "_v"))
        matrix = self.matrix(weight)
        if iterate:
            with no_grad():
                for _ in range(self.count):
                    v.copy_(F.normalize(ops.mv(matrix.detach().transpose(0, 1), u), dim=0, eps=self.eps))
                    u.copy_(F.normalize(ops.mv(matrix.detach(), v), dim=0, eps=self.eps))
        return weight / ops.dot(u.clone(), ops.mv(matrix, v.clone()))

    def __call__(self, module: Module, inputs: Any) -> None:
        module.__dict__[self.name] = self.compute(module, module.training)


def spectral_norm(module: Module, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None) -> Module:
    """Divide a weight by its largest singular value (Miyato et al. 2018); `name_orig` is what is trained."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook.function, _SpectralNorm) and hook.function.name == name:
            raise RuntimeError(f"Cannot register two spectral_norm hooks on the same parameter {name}")
    if dim is None:
        dim = 1 if type(module).__name__.startswith("ConvTranspose") else 0
    rule = _SpectralNorm(name, n_power_iterations, dim, eps)
    weight = module._parameters[name]
    if weight is None:
        raise ValueError(f"`SpectralNorm` cannot be applied as parameter `{name}` is None")
    rows, columns = rule.matrix(weight.detach()).shape
    del module._parameters[name]
    module.register_parameter(name + "_orig", weight)
    with no_grad():
        module.register_buffer(name + "_u", F.normalize(ops.randn(rows, dtype=weight.dtype), dim=0, eps=eps))
        module.register_buffer(name + "_v", F.normalize(ops.randn(columns, dtype=weight.dtype), dim=0, eps=eps))
    module.__dict__[name] = weight.detach()
    module.register_forward_pre_hook(rule)
    return module


def remove_spectral_norm(module: Module, name: str = "weight") -> Module:
    """Make the weight an ordinary parameter with its present value. Raises ValueError where there is no spectral norm."""
    for key, hook in module._forward_pre_hooks.items():
        rule = hook.function
        if isinstance(rule, _SpectralNorm) and rule.name == name:
            with no_grad():
                weight = rule.compute(module, False).detach()
            module.__dict__.pop(name, None)
            del module._parameters[name + "_orig"], module._buffers[name + "_u"], module._buffers[name + "_v"]
            module.register_parameter(name, Parameter(weight))
            del module._forward_pre_hooks[key]
            return module
    raise ValueError(f"spectral_norm of '{name}' not found in {module}")
