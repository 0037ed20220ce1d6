"""Programs that say `import torch` run on torchlet: `torchlet.compat.install()`, or `python -m torchlet.compat script.py [args]`.

`torch` and every module below it resolve to torchlet's module, namespace or class of the same path. What is not there raises
ImportError or AttributeError with its name and the nearest name that is. Dtypes and sizes are printed as `torch.float32` and
`torch.Size([2])`. A PyTorch that is already imported is never replaced.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import runpy
import sys
import types
from collections.abc import Sequence
from typing import Any

from torchlet import dtypes
from torchlet.absent import missing

__all__ = ["install", "is_installed", "uninstall"]

_PREFIX = "torch."
# where PyTorch keeps a name in a submodule that is one module here: path below torch -> path below torchlet
_MOVED = {
    "cuda.amp": "amp.cuda_amp",
    "cpu.amp": "amp.cpu_amp",
    "cuda.amp.autocast_mode": "amp.cuda_amp",
    "cuda.amp.grad_scaler": "amp.cuda_amp",
    "utils.data.dataloader": "utils.data",
    "utils.data.dataset": "utils.data",
    "utils.data.sampler": "utils.data",
    "utils.data._utils.collate": "utils.data",
    "nn.modules": "nn",
    "nn.modules.module": "nn",
    "nn.modules.utils": "nn",
    "nn.parameter": "nn",
    "optim.optimizer": "optim",
    "_tensor": "",
    "cuda.random": "cuda",
    "nn.utils.stateless": "func",
}
_DISTRIBUTIONS = (
    "bernoulli beta binomial categorical cauchy chi2 continuous_bernoulli dirichlet exp_family exponential fishersnedecor gamma geometric "
    "gumbel half_cauchy half_normal independent inverse_gamma kumaraswamy laplace lkj_cholesky log_normal logistic_normal "
    "lowrank_multivariate_normal mixture_same_family multinomial multivariate_normal negative_binomial normal one_hot_categorical pareto "
    "poisson relaxed_bernoulli relaxed_categorical studentT transformed_distribution uniform von_mises weibull wishart"
)
_MOVED |= {f"distributions.{name}": "distributions" for name in _DISTRIBUTIONS.split()}


def _resolve(path: str) -> Any:
    """What stands at `path` below torchlet. Raises AttributeError naming the part that is missing, and the nearest that is there."""
    found: Any = sys.modules["torchlet"]
    done = "torchlet"
    for part in path.split(".") if path else ():
        done = f"{done}.{part}"
        try:
            found = getattr(found, part)
        except AttributeError:
            if not isinstance(found, types.ModuleType) or not hasattr(found, "__path__"):
                raise AttributeError(f"torchlet has no '{path}'{missing(path, part, dir(found))}") from None
            try:
                found = importlib.import_module(done)
            except ModuleNotFoundError:
                raise AttributeError(f"torchlet has no '{path}'{missing(path, part, dir(found))}") from None
    return found


class _Alias(types.ModuleType):
    """`torch.x.y` as a module: attributes are those of torchlet's x.y, asked for when they are used."""

    def __init__(self, name: str, target: Any):
        super().__init__(name, f"torchlet's {name[len(_PREFIX) :] or 'package'} under PyTorch's name.")
        self.__dict__["_target"] = target
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__version__", "__all__"):
            raise AttributeError(name)
        try:
            found = getattr(self._target, name)
            inner = isinstance(found, types.ModuleType) and found.__name__.startswith("torchlet.")
            return importlib.import_module(f"{self.__name__}.{name}") if inner else found
        except AttributeError:
            path = f"{self.__name__}.{name}"
            if path[len(_PREFIX) :] in _MOVED:
                return importlib.import_module(path)
            raise AttributeError(
                f"module '{self.__name__}' has no attribute '{name}' in torchlet{missing(path, name, dir(self._target))}"
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__") or isinstance(value, _Alias):
            super().__setattr__(name, value)
        else:  # `torch.backends.cudnn.benchmark = True`
            setattr(self._target, name, value)

    def __dir__(self) -> list[str]:
        return dir(self._target)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `torch` and what is below it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """A spec for names under torch; the loader raises where nothing stands behind one."""
        if fullname == "torch" or fullname.startswith(_PREFIX):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """An alias of torchlet's module. Raises ModuleNotFoundError naming the nearest name."""
        below = spec.name[len(_PREFIX) :]
        try:
            return _Alias(spec.name, _resolve(_MOVED.get(below, below)))
        except AttributeError as error:
            # without `name`, so that `from torch.nn import Missing` shows this text instead of "unknown location"
            raise ModuleNotFoundError(f"No module or name '{spec.name}': {error}") from None

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


_FINDER = _Finder()


def is_installed() -> bool:
    """True while `import torch` gives torchlet."""
    return _FINDER in sys.meta_path


def install() -> None:
    """From now on `import torch` gives torchlet. Raises ImportError if PyTorch itself was imported before."""
    if is_installed():
        return
    real = sys.modules.get("torch")
    if real is not None:
        raise ImportError(
            f"compat: PyTorch {getattr(real, '__version__', '')} is already imported, and is not replaced; expected "
            "torchlet.compat.install() before the first import of torch"
        )
    sys.meta_path.insert(0, _FINDER)
    dtypes.PACKAGE = "torch"


def uninstall() -> None:
    """Take it back: the next `import torch` looks for PyTorch."""
    if is_installed():
        sys.meta_path.remove(_FINDER)
        dtypes.PACKAGE = "torchlet"
    for name in [n for n, m in sys.modules.items() if isinstance(m, _Alias)]:
        del sys.modules[name]


def main(arguments: Sequence[str]) -> None:
    """Run a script, or `-m module`, with its arguments, `torch` being torchlet."""
    if not arguments or arguments[0] in ("-h", "--help"):
        raise SystemExit("usage: python -m torchlet.compat script.py [arguments]\n       python -m torchlet.compat -m module [arguments]")
    install()
    if arguments[0] == "-m" and len(arguments) > 1:
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    importlib.import_module("torchlet.compat").main(sys.argv[1:])  # the imported module, not this run of it, keeps the state
