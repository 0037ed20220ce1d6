"""torchlet.special: special functions under PyTorch's names; the operators are in ops/mathematics.py."""

from __future__ import annotations

from torchlet.ops.mathematics import SPECIAL
from torchlet.ops.public import FUNCTIONS

_SHARED = "digamma erf erfc erfinv exp2 expm1 i0 log1p log_softmax logit logsumexp polygamma round sinc softmax xlogy"
_RENAMED = {"psi": "digamma", "expit": "sigmoid", "gammaln": "lgamma", "multigammaln": "mvlgamma"}

globals().update(SPECIAL | {name: FUNCTIONS[name] for name in _SHARED.split()} | {new: FUNCTIONS[old] for new, old in _RENAMED.items()})


def xlog1py(input, other):  # type: ignore[no-untyped-def]
    """input * log1p(other), 0 where input is 0."""
    return FUNCTIONS["xlogy"](input, other + 1)


def ndtr(input):  # type: ignore[no-untyped-def]
    """The distribution function of the standard normal."""
    return FUNCTIONS["erfc"](input * -(0.5**0.5)) * 0.5


__all__ = [*SPECIAL, *_SHARED.split(), *_RENAMED, "ndtr", "xlog1py"]
