"""einops on torchlet tensors: its functions by a backend, its layers as `einops.layers.torchlet`; registered when einops is imported.

einops finds backends among the subclasses of `einops._backends.AbstractBackend`, so a hook on its first import defines ours.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

__all__ = ["register_when_imported"]


class _Hook:  # no importlib.abc: it imports a tenth of what torchlet does
    """Waits for `einops._backends` (and for `einops.layers.torchlet`, which it provides)."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The real spec with a loader that registers the backend afterwards; ours for the layers."""
        if fullname == "einops.layers.torchlet":
            return importlib.machinery.ModuleSpec(fullname, _Layers())  # type: ignore[arg-type]
        if fullname != "einops._backends":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


class _Loader:
    """Loads einops' backends, then adds ours."""

    def __init__(self, inner: Any):
        self.inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        """As the module's own loader does."""
        return self.inner.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: types.ModuleType) -> None:
        """Run the module, then define the backend."""
        self.inner.exec_module(module)
        _define_backend(module)


class _Layers:
    """Makes `einops.layers.torchlet`."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        """A plain module."""
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        """Rearrange, Reduce and EinMix over einops' own mixins."""
        module.__dict__.update(_layers())


def _define_backend(backends: Any) -> None:
    torchlet = sys.modules["torchlet"]

    class TorchletBackend(backends.AbstractBackend):  # type: ignore[misc]
        """What einops asks of a framework."""

        framework_name = "torchlet"

        def is_appropriate_type(self, tensor: Any) -> bool:
            return isinstance(tensor, torchlet.Tensor)

        def from_numpy(self, x: Any) -> Any:
            return torchlet.from_numpy(x)

        def to_numpy(self, x: Any) -> Any:
            return x.detach().cpu().numpy()

        def arange(self, start: int, stop: int) -> Any:
            return torchlet.arange(start, stop)

        def reduce(self, x: Any, operation: str, reduced_axes: Sequence[int]) -> Any:
            axes = tuple(sorted(reduced_axes))
            if operation in ("sum", "mean"):
                return getattr(x, operation)(axes)
            if operation in ("min", "max"):
                return getattr(x, f"a{operation}")(axes)
            for axis in reversed(axes):  # prod, any, all
                x = getattr(x, operation)(dim=axis)
            return x

        def transpose(self, x: Any, axes: Sequence[int]) -> Any:
            return x.permute(tuple(axes))

        def stack_on_zeroth_dimension(self, tensors: Sequence[Any]) -> Any:
            return torchlet.stack(tensors)

        def add_axes(self, x: Any, n_axes: int, pos2len: dict[int, int]) -> Any:
            repeats = [-1] * n_axes
            for position, length in pos2len.items():
                x = self.add_axis(x, position)
                repeats[position] = length
            return x.expand(repeats)

        def tile(self, x: Any, repeats: Sequence[int]) -> Any:
            return x.repeat(tuple(repeats))

        def concat(self, tensors: Sequence[Any], axis: int) -> Any:
            return torchlet.cat(tensors, dim=axis)

        def add_axis(self, x: Any, new_position: int) -> Any:
            return x.unsqueeze(new_position)

        def is_float_type(self, x: Any) -> bool:
            return bool(x.dtype.is_floating_point)

        def layers(self) -> Any:
            return importlib.import_module("einops.layers.torchlet")

        def einsum(self, pattern: str, *x: Any) -> Any:
            return torchlet.einsum(pattern, *x)

    backends.TorchletBackend = TorchletBackend  # einops finds it among the subclasses, which hold it weakly


def _layers() -> dict[str, Any]:
    nn, layers = sys.modules["torchlet"].nn, importlib.import_module("einops.layers")
    mix = importlib.import_module("einops.layers._einmix")

    class Rearrange(layers.RearrangeMixin, nn.Module):  # type: ignore[misc,name-defined]
        """`einops.rearrange` as a module."""

        def forward(self, input: Any) -> Any:
            return self._apply_recipe(input)

    class Reduce(layers.ReduceMixin, nn.Module):  # type: ignore[misc,name-defined]
        """`einops.reduce` as a module."""

        def forward(self, input: Any) -> Any:
            return self._apply_recipe(input)

    class EinMix(mix._EinmixMixin, nn.Module):  # type: ignore[misc,name-defined]
        """A linear map by a pattern, with a weight and a bias."""

        def _create_parameters(self, weight_shape: Any, weight_bound: float, bias_shape: Any, bias_bound: float) -> None:
            def uniform(shape: Any, bound: float) -> Any:
                return nn.Parameter(sys.modules["torchlet"].zeros(shape).uniform_(-bound, bound))

            self.weight = uniform(weight_shape, weight_bound)
            self.bias = None if bias_shape is None else uniform(bias_shape, bias_bound)

        def _create_rearrange_layers(
            self, pre_reshape_pattern: Any, pre_reshape_lengths: Any, post_reshape_pattern: Any, post_reshape_lengths: Any
        ) -> None:
            self.pre_rearrange = None if pre_reshape_pattern is None else Rearrange(pre_reshape_pattern, **pre_reshape_lengths)
            self.post_rearrange = None if post_reshape_pattern is None else Rearrange(post_reshape_pattern, **post_reshape_lengths)

        def forward(self, input: Any) -> Any:
            if self.pre_rearrange is not None:
                input = self.pre_rearrange(input)
            result = sys.modules["torchlet"].einsum(self.einsum_pattern, input, self.weight)
            if self.bias is not None:
                result = result + self.bias
            return result if self.post_rearrange is None else self.post_rearrange(result)

    return {"Rearrange": Rearrange, "Reduce": Reduce, "EinMix": EinMix}


def register_when_imported() -> None:
    """Called once by `import torchlet`: einops may be imported before or after."""
    if any(isinstance(finder, _Hook) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Hook())
    loaded = sys.modules.get("einops._backends")
    if loaded is not None:
        _define_backend(loaded)
