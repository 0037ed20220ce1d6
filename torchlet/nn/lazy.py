"""Layers whose input size is found out by their first input."""

from __future__ import annotations

from typing import Any

from torchlet import ops
from torchlet.nn.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from torchlet.nn.linear import Linear
from torchlet.nn.module import Module
from torchlet.nn.normalization import BatchNorm1d, BatchNorm2d, BatchNorm3d, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from torchlet.nn.parameter import UninitializedParameter
from torchlet.tensor import Tensor

__all__ = [
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "LazyLinear",
]


class _Lazy(Module):
    """A layer with parameters that are not there yet; the first call gives them their shapes and makes it an ordinary layer.

    The Parameter objects stay the same, so an optimizer may be made before.
    """

    cls_to_become: Any

    def has_uninitialized_params(self) -> bool:
        """True before the first call."""
        return any(isinstance(p, UninitializedParameter) for p in self._parameters.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Find out the sizes, then call."""
        self._settle(args[0])
        return self(*args, **kwargs)

    def _take_shapes(self, size: int) -> Module:
        """A layer of the final kind for inputs of that size."""
        raise NotImplementedError

    def _settle(self, input: Tensor) -> None:
        whole = self._take_shapes(self._size_of(input))
        for name, p in self._parameters.items():
            if isinstance(p, UninitializedParameter):
                p.become(getattr(whole, name))
        for name, b in whole._buffers.items():
            self._buffers[name] = b
        for name, value in whole.__dict__.items():
            if not name.startswith("_") and name not in whole._parameters and name not in whole._buffers and name != "training":
                self.__dict__[name] = value
        self.__class__ = self.cls_to_become  # type: ignore[assignment]

    def _size_of(self, input: Tensor) -> int:
        return int(input.shape[1])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        weight = state_dict.get(prefix + "weight")
        if self.has_uninitialized_params() and isinstance(weight, Tensor):
            self._settle(ops.empty(*self._like(weight)))
            self._load_from_state_dict(state_dict, prefix, *rest)  # of the class that it is now
        else:
            super()._load_from_state_dict(state_dict, prefix, *rest)

    def _like(self, weight: Tensor) -> tuple[int, ...]:
        """The shape of an input that fits a weight."""
        return (1, weight.shape[1])


class LazyLinear(_Lazy):
    """Linear with `in_features` from the first input."""

    cls_to_become = Linear

    def __init__(self, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.in_features = 0
        self.out_features = out_features
        self.weight = UninitializedParameter()
        self.register_parameter("bias", UninitializedParameter() if bias else None)
        self.__dict__["_options"] = (device, dtype)

    def _take_shapes(self, size: int) -> Module:
        return Linear(size, self.out_features, self._parameters["bias"] is not None, *self._options)

    def _size_of(self, input: Tensor) -> int:
        return int(input.shape[-1])

    def extra_repr(self) -> str:
        """The arguments of construction."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self._parameters['bias'] is not None}"


class _LazyConv(_Lazy):
    def __init__(self, out_channels: int, kernel_size: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.in_channels = 0
        self.out_channels = out_channels
        whole: Any = self.cls_to_become(kwargs.get("groups", 1), out_channels, kernel_size, *args, **kwargs)
        self.__dict__["_options"] = (out_channels, kernel_size, args, kwargs)
        self.__dict__["_text"] = whole.extra_repr().split(", ", 1)[1]
        self.__dict__["_transposed"] = whole.transposed
        self.weight = UninitializedParameter()
        self.register_parameter("bias", None if whole.bias is None else UninitializedParameter())

    def _take_shapes(self, size: int) -> Module:
        out, kernel, args, kwargs = self._options
        return self.cls_to_become(size, out, kernel, *args, **kwargs)

    def _like(self, weight: Tensor) -> tuple[int, ...]:
        return (1, weight.shape[0] if self._transposed else weight.shape[1] * self._options[3].get("groups", 1))

    def extra_repr(self) -> str:
        """The arguments of construction."""
        return f"{self.in_channels}, {self._text}"


class _LazyNorm(_Lazy):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        whole: Any = self.cls_to_become(0, *args, **kwargs)
        self.num_features = 0
        self.__dict__["_options"] = (args, kwargs)
        self.__dict__["_text"] = whole.extra_repr()
        for name, p in whole._parameters.items():
            self.register_parameter(name, None if p is None else UninitializedParameter())
        for name, b in whole._buffers.items():
            self.register_buffer(name, b)

    def _take_shapes(self, size: int) -> Module:
        args, kwargs = self._options
        return self.cls_to_become(size, *args, **kwargs)

    def _like(self, weight: Tensor) -> tuple[int, ...]:
        return (1, weight.shape[0])

    def extra_repr(self) -> str:
        """The arguments of construction."""
        return str(self._text)


def _lazy(base: type[_Lazy], kind: type[Module]) -> Any:
    doc = f"{kind.__name__} with the number of its input channels from the first input."
    return type(f"Lazy{kind.__name__}", (base,), {"cls_to_become": kind, "__doc__": doc, "__module__": __name__})


LazyConv1d, LazyConv2d, LazyConv3d = (_lazy(_LazyConv, k) for k in (Conv1d, Conv2d, Conv3d))
LazyConvTranspose1d, LazyConvTranspose2d, LazyConvTranspose3d = (
    _lazy(_LazyConv, k) for k in (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
)
LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d = (_lazy(_LazyNorm, k) for k in (BatchNorm1d, BatchNorm2d, BatchNorm3d))
LazyInstanceNorm1d, LazyInstanceNorm2d, LazyInstanceNorm3d = (_lazy(_LazyNorm, k) for k in (InstanceNorm1d, InstanceNorm2d, InstanceNorm3d))
