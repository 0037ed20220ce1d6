"""torchlet.distributions: probability distributions with samples, log densities, entropies and divergences. Names only."""

# ruff: noqa: F401 -- to hold these names is what this file is for

from torchlet.distributions import constraints, kl, transforms, utils
from torchlet.distributions.constraint_registry import biject_to, transform_to
from torchlet.distributions.continuous import (
    Cauchy,
    Exponential,
    GeneralizedPareto,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    Kumaraswamy,
    Laplace,
    LogNormal,
    Normal,
    Pareto,
    Uniform,
    VonMises,
    Weibull,
)  # fmt: skip
from torchlet.distributions.discrete import (
    Bernoulli,
    Binomial,
    Categorical,
    ContinuousBernoulli,
    Geometric,
    Multinomial,
    NegativeBinomial,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    Poisson,
)  # fmt: skip
from torchlet.distributions.distribution import Distribution, ExponentialFamily
from torchlet.distributions.gammas import Beta, Chi2, Dirichlet, FisherSnedecor, Gamma, InverseGamma, StudentT
from torchlet.distributions.kl import kl_divergence, register_kl
from torchlet.distributions.matrices import LKJCholesky, LowRankMultivariateNormal, MultivariateNormal, Wishart
from torchlet.distributions.relaxed import LogisticNormal, RelaxedBernoulli, RelaxedOneHotCategorical
from torchlet.distributions.transformed import Independent, MixtureSameFamily, TransformedDistribution
from torchlet.distributions.transforms import (
    AbsTransform,
    AffineTransform,
    CatTransform,
    ComposeTransform,
    CorrCholeskyTransform,
    CumulativeDistributionTransform,
    ExpTransform,
    IndependentTransform,
    LowerCholeskyTransform,
    PositiveDefiniteTransform,
    PowerTransform,
    ReshapeTransform,
    SigmoidTransform,
    SoftmaxTransform,
    SoftplusTransform,
    StackTransform,
    StickBreakingTransform,
    TanhTransform,
    Transform,
    identity_transform,
)  # fmt: skip

__all__ = [name for name, value in list(globals().items()) if isinstance(value, type)]
__all__ += ["biject_to", "constraints", "identity_transform", "kl", "kl_divergence", "register_kl", "transform_to", "transforms", "utils"]
