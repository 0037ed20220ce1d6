"""nn.utils.prune: parameters times a mask of zeros and ones, kept as `name_orig` and `name_mask` as in PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torchlet import ops
from torchlet.autograd import no_grad
from torchlet.nn.module import Module
from torchlet.tensor import Tensor

__all__ = [
    "BasePruningMethod", "CustomFromMask", "Identity", "L1Unstructured", "LnStructured", "PruningContainer", "RandomStructured",
    "RandomUnstructured", "custom_from_mask", "global_unstructured", "identity", "is_pruned", "l1_unstructured", "ln_structured",
    "random_structured", "random_unstructured", "remove",
]


class BasePruningMethod:
    """A way to make masks. A subclass defines `compute_mask` and PRUNING_TYPE: "unstructured", "structured" or "global"."""

    PRUNING_TYPE = "unstructured"
    _tensor_name = ""

    def __call__(self, module: Module, inputs: Any) -> None:
        """Before each forward pass: the parameter is its original times the mask."""
        module.__dict__[self._tensor_name] = self.apply_mask(module)

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The mask of `t`, zero at least where `default_mask` is."""
        raise NotImplementedError(f"{type(self).__name__} does not define compute_mask")

    def apply_mask(self, module: Module) -> Tensor:
        """The original times the mask."""
        mask, original = getattr(module, self._tensor_name + "_mask"), getattr(module, self._tensor_name + "_orig")
        return mask.to(dtype=original.dtype) * original  # type: ignore[no-any-return]

    @classmethod
    def apply(cls, module: Module, name: str, *args: Any, importance_scores: Tensor | None = None, **kwargs: Any) -> BasePruningMethod:
        """Prune a parameter, on top of what was pruned before; `importance_scores` of its shape rank it instead of its values."""
        method: BasePruningMethod = cls(*args, **kwargs)
        method._tensor_name = name
        key, old = _find(module, name)
        fresh = old is None
        if old is not None:
            method = PruningContainer(*(old if isinstance(old, PruningContainer) else (old,)), method)
        original = getattr(module, name if fresh else name + "_orig")
        if importance_scores is not None and importance_scores.shape != original.shape:
            raise ValueError(
                f"prune: importance_scores have shape {tuple(importance_scores.shape)}; expected that of {name}, {tuple(original.shape)}"
            )
        scores = original if importance_scores is None else importance_scores
        with no_grad():
            default = ops.ones_like(original) if fresh else getattr(module, name + "_mask").detach().clone()
            mask = method.compute_mask(scores.detach(), default)
        if fresh:
            del module._parameters[name]
            module.register_parameter(name + "_orig", original)
            module.register_buffer(name + "_mask", mask)
        else:
            setattr(module, name + "_mask", mask)
            del module._forward_pre_hooks[key]
        module.__dict__[name] = method.apply_mask(module)
        module.register_forward_pre_hook(method)
        return method

    def prune(self, t: Tensor, default_mask: Tensor | None = None, importance_scores: Tensor | None = None) -> Tensor:
        """A pruned copy of a tensor."""
        scores = t if importance_scores is None else importance_scores
        return t * self.compute_mask(scores, ops.ones_like(t) if default_mask is None else default_mask)

    def remove(self, module: Module) -> None:
        """Make the pruned values the parameter. The hook goes by `prune.remove`."""
        name = self._tensor_name
        original = module._parameters.pop(name + "_orig")
        with no_grad():
            values = (getattr(module, name + "_mask") * original).detach()
        module._buffers.pop(name + "_mask")
        module.__dict__.pop(name, None)
        assert original is not None
        original.data = values
        module.register_parameter(name, original)


class PruningContainer(BasePruningMethod):
    """Several methods on one parameter, each pruning of what the ones before left."""

    def __init__(self, *methods: BasePruningMethod) -> None:
        self._pruning_methods: tuple[BasePruningMethod, ...] = ()
        for method in methods:
            self.add_pruning_method(method)

    def add_pruning_method(self, method: BasePruningMethod) -> None:
        """Add one. Raises TypeError for what is no method and ValueError for one of another parameter."""
        if not isinstance(method, BasePruningMethod):
            raise TypeError(f"prune: {type(method)} is not a BasePruningMethod subclass")
        if self._pruning_methods and self._tensor_name != method._tensor_name:
            raise ValueError(f"prune: a method of parameter {method._tensor_name!r} cannot join those of {self._tensor_name!r}")
        self._tensor_name = method._tensor_name
        self._pruning_methods += (method,)

    def __len__(self) -> int:
        return len(self._pruning_methods)

    def __iter__(self) -> Any:
        return iter(self._pruning_methods)

    def __getitem__(self, index: int) -> BasePruningMethod:
        return self._pruning_methods[index]

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The default mask and the last method's, which sees only what is left."""
        method, mask = self._pruning_methods[-1], default_mask.to(dtype=t.dtype)
        if method.PRUNING_TYPE == "unstructured":
            at: Any = mask == 1
        elif method.PRUNING_TYPE == "structured":
            dim = method.dim % t.dim()  # type: ignore[attr-defined]
            left = mask.sum(dim=tuple(d for d in range(t.dim()) if d != dim)) != 0
            at = (slice(None),) * dim + (left,)
        elif method.PRUNING_TYPE == "global":
            at = (slice(None),) * t.dim()
        else:
            raise ValueError(f"Unrecognized PRUNING_TYPE {method.PRUNING_TYPE}")
        mask = mask.clone()
        mask[at] = method.compute_mask(t[at], default_mask=mask[at])
        return mask


class Identity(BasePruningMethod):
    """Prunes nothing."""

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The default mask."""
        return default_mask


class _Amount(BasePruningMethod):
    """Prunes `amount` units: a whole number, or a fraction between 0 and 1."""

    def __init__(self, amount: float) -> None:
        if not isinstance(amount, int | float):
            raise TypeError(f"Invalid type for amount: {amount}. Must be int or float.")
        if amount < 0 or (isinstance(amount, float) and amount > 1.0):
            raise ValueError(f"amount={amount} should either be a float in the range [0, 1] or a non-negative integer")
        self.amount = amount

    def _count(self, units: int) -> int:
        count = self.amount if isinstance(self.amount, int) else round(self.amount * units)
        if count > units:
            raise ValueError(f"amount={self.amount} should be smaller than the number of parameters to prune={units}")
        return count


class RandomUnstructured(_Amount):
    """Prunes elements at random."""

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The default mask with further zeros at random."""
        return _without(default_mask, ops.rand_like(t), self._count(t.nelement()))


class L1Unstructured(_Amount):
    """Prunes the elements of smallest magnitude."""

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The default mask with further zeros where |t| is smallest."""
        return _without(default_mask, t.abs(), self._count(t.nelement()))


class RandomStructured(_Amount):
    """Prunes whole slices along `dim` at random."""

    PRUNING_TYPE = "structured"

    def __init__(self, amount: float, dim: int = -1) -> None:
        super().__init__(amount)
        self.dim = dim

    def _scores(self, t: Tensor) -> Tensor:
        return ops.rand(t.shape[self.dim])

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The default mask with whole slices of zeros. Raises ValueError for vectors and IndexError for a dimension that is not there."""
        if t.dim() <= 1:
            raise ValueError(f"Structured pruning can only be applied to a multidimensional tensor. Found tensor of shape {t.shape}")
        if not -t.dim() <= self.dim < t.dim():
            raise IndexError(f"Invalid index {self.dim} for tensor of size {t.shape}")
        scores = self._scores(t)
        keep = _without(ops.ones_like(scores), scores, self._count(t.shape[self.dim]))
        return default_mask * keep.view([-1 if d == self.dim % t.dim() else 1 for d in range(t.dim())])


class LnStructured(RandomStructured):
    """Prunes the slices along `dim` of smallest n-norm."""

    def __init__(self, amount: float, n: Any, dim: int = -1) -> None:
        super().__init__(amount, dim)
        self.n = n

    def _scores(self, t: Tensor) -> Tensor:
        dim = self.dim % t.dim()
        return ops.norm(t, p=self.n, dim=tuple(d for d in range(t.dim()) if d != dim))


class CustomFromMask(BasePruningMethod):
    """Prunes by a mask that is given."""

    PRUNING_TYPE = "global"

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The product of both masks."""
        return default_mask * self.mask.to(dtype=default_mask.dtype)


def _without(mask: Tensor, scores: Tensor, count: int) -> Tensor:
    """A copy of the mask with zeros at the `count` smallest scores."""
    out = mask.clone()
    if count:
        flat = out.view(-1)
        flat[ops.topk(scores.reshape(-1), k=count, largest=False)[1]] = 0
    return out


def _find(module: Module, name: str) -> tuple[Any, BasePruningMethod | None]:
    """(key of its hook, the method) that prunes a parameter."""
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook.function, BasePruningMethod) and hook.function._tensor_name == name:
            return key, hook.function
    return None, None


def identity(module: Module, name: str) -> Module:
    """Make a parameter pruned without pruning anything of it."""
    Identity.apply(module, name)
    return module


def random_unstructured(module: Module, name: str, amount: float) -> Module:
    """Prune elements of a parameter at random: `amount` of them, or that fraction."""
    RandomUnstructured.apply(module, name, amount)
    return module


def l1_unstructured(module: Module, name: str, amount: float, importance_scores: Tensor | None = None) -> Module:
    """Prune the elements of smallest magnitude: `amount` of them, or that fraction."""
    L1Unstructured.apply(module, name, amount, importance_scores=importance_scores)
    return module


def random_structured(module: Module, name: str, amount: float, dim: int) -> Module:
    """Prune whole slices along `dim` at random."""
    RandomStructured.apply(module, name, amount, dim)
    return module


def ln_structured(module: Module, name: str, amount: float, n: Any, dim: int, importance_scores: Tensor | None = None) -> Module:
    """Prune the slices along `dim` of smallest n-norm."""
    LnStructured.apply(module, name, amount, n, dim, importance_scores=importance_scores)
    return module


def custom_from_mask(module: Module, name: str, mask: Tensor) -> Module:
    """Prune by a mask of the parameter's shape."""
    CustomFromMask.apply(module, name, mask)
    return module


def global_unstructured(
    parameters: Iterable[tuple[Module, str]], pruning_method: type[BasePruningMethod],
    importance_scores: dict[tuple[Module, str], Tensor] | None = None, **kwargs: Any,
) -> None:
    """Prune several parameters as if they were one, so that each may lose another part of itself.

    Raises TypeError where `pruning_method` is not an unstructured one.
    """
    places: Sequence[tuple[Module, str]] = list(parameters)
    scores = importance_scores or {}
    values = ops.cat([scores.get((m, n), getattr(m, n)).detach().reshape(-1) for m, n in places])
    default = ops.cat([getattr(m, n + "_mask", ops.ones_like(getattr(m, n))).detach().reshape(-1) for m, n in places])
    method: Any = pruning_method(**kwargs)
    if method.PRUNING_TYPE != "unstructured":
        raise TypeError(
            f'Only "unstructured" PRUNING_TYPE supported for the `pruning_method`. Found method {pruning_method} of type '
            f"{method.PRUNING_TYPE}"
        )
    method._tensor_name = "temp"
    container = PruningContainer(method)
    mask, start = container.compute_mask(values, default), 0
    for m, n in places:
        t = getattr(m, n)
        custom_from_mask(m, n, mask[start : start + t.numel()].view_as(t))
        start += t.numel()


def remove(module: Module, name: str) -> Module:
    """Make pruning permanent: `name` is a plain parameter again. Raises ValueError where it was not pruned."""
    key, method = _find(module, name)
    if method is None:
        raise ValueError(f"Parameter '{name}' of module {module} has to be pruned before pruning can be removed")
    del module._forward_pre_hooks[key]
    method.remove(module)
    return module


def is_pruned(module: Module) -> bool:
    """True if a parameter of the module or of one inside it is pruned."""
    return any(isinstance(hook.function, BasePruningMethod) for m in module.modules() for hook in m._forward_pre_hooks.values())
