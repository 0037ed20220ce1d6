"""What is compared with recorded PyTorch results: (name, function of the module `m` and tensors, inputs as arrays).

`m` is torch when the values are recorded (`record.py`) and torchlet when they are tested. A result is a tensor, a number, a
string, or a nest of them; gradients of the sum of squares of its tensors are recorded too, for float64 inputs.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Case = tuple[str, Callable[..., Any], tuple[np.ndarray, ...]]
R = np.random.default_rng(2026)
X, Y, Z = R.standard_normal((3, 4)), R.standard_normal((3, 4)), R.standard_normal((2, 3, 4))
POSITIVE, UNIT, ROW = R.uniform(0.3, 2.0, (3, 4)), R.uniform(-0.9, 0.9, (3, 4)), R.standard_normal(4)
SQUARE, TALL = R.standard_normal((2, 3, 3)) + 3 * np.eye(3), R.standard_normal((5, 3))
WHOLE, OTHER, FLAGS = R.integers(-6, 7, (3, 4)), R.integers(1, 7, (3, 4)), R.random((3, 4)) > 0.5
HOLES = np.where(R.random((3, 4)) > 0.7, np.nan, X)
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, -1e30, 0.5])
INDEX, SIGNAL = np.array([[0, 2], [1, 3], [3, 0]]), R.standard_normal((2, 40))
SORTED = np.sort(R.standard_normal(6))

_UNARY = {
    "X": "abs atan asinh ceil cos cosh deg2rad erf erfc exp exp2 expm1 floor frac isfinite isinf isnan isneginf "
    "isposinf neg rad2deg relu round sigmoid sign sgn "
    "signbit sin sinc sinh square tan tanh trunc i0 nan_to_num positive logical_not",
    "POSITIVE": "log log10 log1p log2 sqrt rsqrt reciprocal lgamma digamma acosh",
    "UNIT": "asin acos atanh erfinv",
}
_BINARY = (
    "add sub mul div atan2 maximum minimum fmax fmin hypot logaddexp logaddexp2 "
    "copysign eq ne lt le gt ge logical_and logical_or logical_xor fmod remainder"
)
_WHOLE = "bitwise_and bitwise_or bitwise_xor gcd lcm floor_divide remainder fmod add mul eq maximum"
_REDUCTIONS = (
    "sum mean prod amax amin std var argmax argmin any all logsumexp median max min nansum nanmean "
    "count_nonzero cumsum cumprod logcumsumexp cummax cummin sort argsort norm mode"
)


def _pointwise() -> Iterator[Case]:
    arrays = {"X": X, "POSITIVE": POSITIVE, "UNIT": UNIT}
    for kind, names in _UNARY.items():
        for name in names.split():
            yield name, lambda m, x, n=name: getattr(m, n)(x), (arrays[kind] + 1 if name == "acosh" else arrays[kind],)
            if kind == "X" and name not in ("sinc", "i0", "erfc", "positive"):
                yield f"{name} of odd numbers", lambda m, x, n=name: getattr(m, n)(x), (SPECIAL.astype(np.float32),)
    for name in _BINARY.split():
        yield name, lambda m, x, y, n=name: getattr(m, n)(x, y), (X, POSITIVE)
        yield f"{name} of int and float", lambda m, x, y, n=name: getattr(m, n)(x, y), (WHOLE, POSITIVE[0].astype(np.float32))
    for name in _WHOLE.split():
        yield f"{name} of integers", lambda m, x, y, n=name: getattr(m, n)(x, y), (WHOLE, OTHER)
    yield "heaviside", lambda m, x, y: (m.heaviside(x, y), m.nextafter(x, y)), (X.astype(np.float32), Y.astype(np.float32))
    yield "shifts", lambda m, x: (x << 2, x >> 1, ~x, x**2), (WHOLE,)
    yield "powers", lambda m, x: (x**2, x**0.5, x**-1, 2**x, x**x, x**0, m.float_power(x, 2)), (POSITIVE,)
    yield "clamp", lambda m, x, y: (x.clamp(-0.5, 0.5), x.clamp(min=y), m.clamp(x, max=0.1), x.clip(0, 1)), (X, Y)
    yield (
        "lerp, addcmul, addcdiv",
        lambda m, x, y, z: (m.lerp(x, y, 0.3), m.addcmul(x, y, z, value=0.5), m.addcdiv(x, y, z, value=2)),
        (X, Y, POSITIVE),
    )
    yield "where", lambda m, c, x: (m.where(c, x, 0.0), m.where(c, 1, 2), x.masked_fill(c, 9.0), m.where(c)[0]), (FLAGS, X)
    yield "xlogy, logit", lambda m, x: (m.xlogy(x, x), m.logit(x / 3), m.special.entr(x), m.special.xlog1py(x, x)), (POSITIVE,)
    yield (
        "division",
        lambda m, x, y: (m.div(x, y, rounding_mode="floor"), m.div(x, y, rounding_mode="trunc"), x / y, x // y, x % y),
        (WHOLE, OTHER),
    )
    yield (
        "special",
        lambda m, x: [
            getattr(m.special, n)(x) for n in ["ndtr", "ndtri", "log_ndtr", "i0e", "i1", "i1e", "expit", "gammaln", "psi", "erfcx"]
        ],
        (POSITIVE / 3,),
    )
    yield "polygamma", lambda m, x: (m.polygamma(1, x), m.polygamma(2, x), m.mvlgamma(x + 2, 2)), (POSITIVE + 1,)
    yield "rounded decimals", lambda m, x: m.round(x, decimals=2), (X,)
    yield "alpha", lambda m, x, y: (m.add(x, y, alpha=2), m.sub(x, y, alpha=0.5), m.rsub(x, y)), (X, Y)


def _reduced() -> Iterator[Case]:
    for name in _REDUCTIONS.split():
        for dim in (0, -1):
            yield f"{name} over {dim}", lambda m, x, n=name, d=dim: getattr(m, n)(x, dim=d), (Z,)
        if name not in ("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "argsort", "logsumexp", "mode"):
            yield name, lambda m, x, n=name: getattr(m, n)(x), (X,)
    yield (
        "reductions of integers",
        lambda m, x: (x.sum(), x.prod(), x.max(), x.cumsum(0), x.any(1), x.float().mean(), x.argmax(1)),
        (OTHER,),
    )
    yield (
        "reductions with holes",
        lambda m, x: (x.sum(), m.nansum(x, 1), m.nanmedian(x), m.max(x), x.argmax(), x.sort(1).values, m.amax(x, 0)),
        (HOLES,),
    )
    yield "variances", lambda m, x: (x.var(1, unbiased=False), x.std(correction=2), m.var_mean(x, 0), m.std_mean(x, 1, keepdim=True)), (X,)
    yield "norms", lambda m, x: [m.norm(x, p) for p in (1, 2, 3, float("inf"))] + [x.norm(dim=1, keepdim=True)], (X,)
    yield (
        "quantiles",
        lambda m, x: (
            m.quantile(x, 0.3),
            m.quantile(x, m.tensor([0.1, 0.9], dtype=x.dtype), 1),
            m.quantile(x, 0.4, 0, interpolation="nearest"),
        ),
        (X,),
    )
    yield "topk", lambda m, x: (x.topk(2), x.topk(2, dim=0, largest=False), x.kthvalue(2, 1), m.msort(x)), (X,)
    yield "statistics", lambda m, x: (m.cov(x), m.corrcoef(x), m.histc(x, 5, -2, 2), m.cdist(x, x + 1), m.dist(x, x + 1)), (X,)
    yield (
        "unique",
        lambda m, x: (x.unique(), x.unique(return_inverse=True, return_counts=True), m.unique_consecutive(x.reshape(-1)), x.unique(dim=0)),
        (WHOLE,),
    )
    yield "bincount", lambda m, x: (m.bincount(x.reshape(-1)), m.bincount(x.reshape(-1), minlength=9)), (OTHER,)
    yield "searchsorted", lambda m, s, x: (m.searchsorted(s, x), m.bucketize(x, s, right=True)), (SORTED, X)
    yield "trapezoid", lambda m, x: (m.trapezoid(x), m.cumulative_trapezoid(x, dx=2.0), m.diff(x, n=2), m.gradient(x)), (X,)


def _moved() -> Iterator[Case]:
    yield (
        "views",
        lambda m, x: (
            x.view(6, 4),
            x.reshape(-1),
            x.permute(2, 0, 1),
            x.transpose(0, 1),
            x.flatten(1),
            x.unflatten(2, (2, 2)),
            x.movedim(0, 2),
            x.swapaxes(0, 2),
        ),
        (Z,),
    )
    yield (
        "squeezes",
        lambda m, x: (
            x.unsqueeze(1),
            x[None, :, None].squeeze(),
            x.unsqueeze(-1).squeeze(-1),
            x.expand(2, 3, 4),
            m.broadcast_to(x, (1, 3, 4)),
        ),
        (X,),
    )
    yield (
        "joins",
        lambda m, x, y: (
            m.cat([x, y], 1),
            m.stack([x, y], 1),
            m.hstack((x, y)),
            m.vstack((x, y)),
            m.dstack((x, y)),
            m.column_stack((x, y)),
            m.block_diag(x, y),
        ),
        (X, Y),
    )
    yield (
        "splits",
        lambda m, x: (x.split(2, 1), x.chunk(3, 1), x.unbind(0), m.tensor_split(x, 3, 1), m.hsplit(x, [1]), x.split([1, 2])),
        (X,),
    )
    yield (
        "flips",
        lambda m, x: (
            x.flip(0),
            x.roll(1, 0),
            x.roll((1, -1), (0, 1)),
            m.rot90(x),
            m.fliplr(x),
            x.tile(2, 1),
            x.repeat(1, 2),
            x.repeat_interleave(2, 1),
        ),
        (X,),
    )
    yield (
        "triangles",
        lambda m, x: (x.tril(), x.triu(1), x.diagonal(1), x.diag(), m.diag_embed(x), m.trace(x), m.diagflat(x[0]), m.tril_indices(3, 3)),
        (X,),
    )
    yield (
        "brackets",
        lambda m, x: (
            x[0],
            x[:, 1],
            x[..., 1:3],
            x[:, None],
            x[[0, 1]],
            x[:, [2, 0]],
            x[x > 0],
            x[m.tensor([1, 0]), :, m.tensor([0, 3])],
            x[1, ::2],
        ),
        (Z,),
    )
    yield (
        "gather",
        lambda m, x, i: (x.gather(1, i), m.take_along_dim(x, i, 1), x.index_select(0, m.tensor([2, 0])), m.take(x, m.tensor([1, 5]))),
        (X, INDEX),
    )
    yield "scatter", lambda m, x, i, s: (x.scatter(1, i, s), x.scatter_add(1, i, s), x.scatter(1, i, 5.0)), (X, INDEX, Y[:, :2].copy())
    for how in ("sum", "prod", "mean", "amax", "amin"):
        for own in (True, False):
            yield (
                f"scatter_reduce {how} {own}",
                lambda m, x, i, s, h=how, o=own: x.scatter_reduce(1, i, s, h, include_self=o),
                (POSITIVE, INDEX, POSITIVE[:, :2].copy()),
            )
    yield (
        "index writes",
        lambda m, x, y: (
            x.index_add(0, m.tensor([0, 2]), y[:2]),
            x.index_copy(0, m.tensor([2, 0]), y[:2]),
            x.index_fill(1, m.tensor([1]), 3.0),
        ),
        (X, Y),
    )
    yield "masked", lambda m, x, c: (x.masked_select(c), x.masked_scatter(c, x.flip(0)), m.nonzero(c), m.argwhere(c)), (X, FLAGS)
    yield "regions", lambda m, x: (x.select_scatter(x[0] * 2, 0, 1), x.slice_scatter(x[:1] * 2, 0, 1, 2), x.diagonal_scatter(x[:, 0])), (X,)
    yield "as_strided, unfold", lambda m, x: (x.as_strided((3, 3), (1, 1), 2), x.unfold(1, 2, 1), m.narrow(x, 1, 1, 2)), (X,)
    yield (
        "products of sets",
        lambda m, x: (
            m.cartesian_prod(x, x[:2]),
            m.combinations(x),
            m.meshgrid(x, x[:2], indexing="ij"),
            m.meshgrid(x, x[:2], indexing="xy"),
            m.vander(x.detach(), 3),
        ),
        (ROW,),
    )
    yield "padding", lambda m, x: [m.nn.functional.pad(x, (1, 2), mode) for mode in ("constant", "reflect", "replicate", "circular")], (Z,)
    yield "one_hot", lambda m, x: m.nn.functional.one_hot(x, 8), (OTHER,)
    yield "unravel", lambda m, x: m.unravel_index(x, (3, 4)), (OTHER,)


def _products() -> Iterator[Case]:
    for equation, *shapes in (
        ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
        ("ij->ji", (2, 3)),
        ("ii", (3, 3)),
        ("ii->i", (3, 3)),
        ("...ij,...jk->...ik", (2, 1, 3, 4), (5, 4, 2)),
        ("bhid,bhjd->bhij", (2, 3, 4, 5), (2, 3, 6, 5)),
        ("i,j->ij", (3,), (4,)),
        ("ij,ij->", (2, 3), (2, 3)),
        ("ij,jk,kl->il", (2, 3), (3, 4), (4, 5)),
        ("b i d, b j d -> b i j", (2, 3, 4), (2, 5, 4)),
        ("abc,cd", (2, 3, 4), (4, 5)),
        ("ab,ab->ab", (2, 3), (1, 3)),
        ("bn,anm,bm->ba", (2, 3), (4, 3, 5), (2, 5)),
    ):
        yield f"einsum {equation}", lambda m, *xs, e=equation: m.einsum(e, *xs), tuple(R.standard_normal(s) for s in shapes)
    yield (
        "matmul",
        lambda m, x, y, z: (x @ y.T, x @ y[0], y[0] @ x.T, z @ y.T, m.bmm(z, z.mT), m.mv(x, y[0]), m.dot(x[0], y[0]), m.outer(x[0], y[0])),
        (X, Y, Z),
    )
    yield (
        "sums of products",
        lambda m, x, y: (
            m.addmm(x[:, :3], x, y.T, beta=0.5, alpha=2),
            m.addmv(x[:, 0], x, y[0]),
            m.addr(x, x[:, 0], y[0]),
            m.tensordot(x, y, ([1], [1])),
            m.inner(x, y),
            m.kron(x, y[:1]),
        ),
        (X, Y),
    )
    yield (
        "inverse",
        lambda m, a: (m.linalg.inv(a), m.linalg.det(a), m.linalg.slogdet(a), m.linalg.matrix_power(a, 3), m.linalg.matrix_exp(a / 3)),
        (SQUARE,),
    )
    yield (
        "solve",
        lambda m, a, b: (m.linalg.solve(a, b), m.linalg.solve_triangular(a, b, upper=True), m.linalg.lstsq(a, b)[0]),
        (SQUARE, SQUARE[:, :, :2].copy()),
    )
    yield "cholesky", lambda m, a: m.linalg.cholesky(a @ a.mT), (SQUARE,)
    yield "qr", lambda m, a: m.linalg.qr(a), (TALL,)
    yield "eigenvalues", lambda m, a: (m.linalg.eigvalsh(a + a.mT), m.linalg.svdvals(a)), (SQUARE,)
    yield "pinv", lambda m, a: (m.linalg.pinv(a), m.linalg.matrix_rank(a)), (TALL,)
    yield (
        "matrix norms",
        lambda m, a: (
            [m.linalg.matrix_norm(a, o) for o in ("fro", "nuc", 1, -1, 2, -2, float("inf"))]
            + [m.linalg.norm(a), m.linalg.vector_norm(a, 3, dim=-1), m.linalg.cond(a)]
        ),
        (SQUARE,),
    )
    yield "cross", lambda m, a: (m.linalg.cross(a, a.flip(0)), m.linalg.vecdot(a, a), m.linalg.multi_dot([a[0], a[1], a[0]])), (SQUARE,)
    yield "softmax", lambda m, x: (x.softmax(-1), m.log_softmax(x, 0), m.logsumexp(x, (0, 1)), m.nn.functional.softmin(x, 1)), (X,)


def _complex() -> Iterator[Case]:
    for name in ("fft", "ifft", "rfft", "fft2", "rfft2", "fftn"):
        for norm in ("backward", "ortho", "forward"):
            yield (
                f"{name} {norm}",
                lambda m, x, n=name, o=norm: m.view_as_real(
                    getattr(m.fft, n)(m.complex(x, x * 2) if "r" not in n else x, norm=o).resolve_conj()
                ),
                (Z,),
            )
    yield (
        "irfft",
        lambda m, x: (m.fft.irfft(m.complex(x, x * 2)), m.fft.irfft(m.complex(x, x * 2), 7), m.fft.irfft2(m.complex(x, x * 2))),
        (Z,),
    )
    yield "shifts of frequencies", lambda m, x: (m.fft.fftshift(x), m.fft.ifftshift(x, 1), m.fft.fftfreq(7), m.fft.rfftfreq(6, 0.5)), (X,)
    yield "stft", lambda m, x: m.view_as_real(m.stft(x, 8, 4, window=m.hann_window(8, dtype=x.dtype), return_complex=True)), (SIGNAL,)
    yield (
        "istft",
        lambda m, x: m.istft(
            m.stft(x, 8, window=m.hann_window(8, dtype=x.dtype), return_complex=True), 8, window=m.hann_window(8, dtype=x.dtype)
        ),
        (SIGNAL,),
    )
    yield (
        "windows",
        lambda m: [
            getattr(m, f"{n}_window")(9, periodic=p, dtype=m.float64)
            for n in ("hann", "hamming", "blackman", "bartlett", "kaiser")
            for p in (True, False)
        ],
        (),
    )
    yield (
        "complex numbers",
        lambda m, x: [
            m.view_as_real(z)
            for z in (
                m.complex(x, x * x) * (1 + 2j),
                m.complex(x, x) / m.complex(x + 3, x),
                m.polar(x.abs(), x),
                m.complex(x, x).exp(),
                m.complex(x, x) @ m.complex(x, x * 2).mT,
            )
        ],
        (X,),
    )
    yield (
        "parts",
        lambda m, x: (
            m.complex(x, x * x).real,
            m.complex(x, x * x).imag,
            m.complex(x, x * x).abs(),
            m.angle(m.complex(x, x * x)),
            m.view_as_complex(m.stack([x, x * 2], -1)).abs(),
        ),
        (X,),
    )


def _made() -> Iterator[Case]:
    yield (
        "ranges",
        lambda m: (
            m.arange(5),
            m.arange(1, 2, 0.25),
            m.arange(5, 0, -2),
            m.linspace(0, 1, 5),
            m.logspace(0, 2, 3),
            m.eye(2, 3),
            m.full((2,), 7),
            m.zeros(size=(2, 2)),
        ),
        (),
    )
    yield (
        "tensors",
        lambda m: (
            m.tensor([1, 2]),
            m.tensor([1.5]),
            m.tensor([True]),
            m.tensor(3),
            m.as_tensor([[1, 2], [3, 4]]),
            m.tensor([1, 2.5]),
            m.scalar_tensor(2),
        ),
        (),
    )
    yield (
        "like",
        lambda m, x: (
            m.zeros_like(x),
            m.ones_like(x, dtype=m.int32),
            m.full_like(x, 2.5),
            x.new_zeros(2),
            x.new_tensor([1, 2]),
            x.new_full((2,), 3),
        ),
        (X,),
    )
    yield "casts", lambda m, x: (x.int(), x.long(), x.half(), x.bfloat16().float(), x.bool(), x.float(), x.double()), (X,)
    yield (
        "limits",
        lambda m: (
            [
                float(getattr(m.finfo(getattr(m, d)), k))
                for d in ("float16", "bfloat16", "float32", "float64")
                for k in ("eps", "max", "min", "tiny")
            ]
            + [m.iinfo(m.int16).max]
        ),
        (),
    )
    yield (
        "texts",
        lambda m: [
            repr(t).replace("torchlet", "torch")
            for t in (
                m.tensor([1.0, 2.5]),
                m.tensor([[1, 2], [3, 4]]),
                m.arange(2000),
                m.tensor(3.0),
                m.tensor([1e-8, 1.0]),
                m.tensor([float("nan"), float("inf"), 1.0]),
                m.zeros(0),
                m.zeros(2, 0),
                m.tensor([True, False]),
                m.ones(2, dtype=m.float64),
                m.ones(2, 2, dtype=m.bfloat16),
                m.tensor([1.0, 2.0], requires_grad=True),
                m.tensor([1e10, 1.0]),
                m.arange(24.0).view(2, 3, 4),
                m.tensor([1.0 + 2j, 3.5 - 1j]),
                m.linspace(0, 1, 1500).view(30, 50),
                m.tensor([0.1, 100.0]),
                m.tensor([-1.0, 100000.0]),
            )
        ],
        (),
    )
    yield (
        "dtypes",
        lambda m: [
            str(t.dtype).split(".")[-1]
            for t in (
                m.ones(2, dtype=m.int32) * 1.5,
                m.ones(2, dtype=m.int32) / 2,
                m.ones(2, dtype=m.bool) + 1,
                m.ones(2, dtype=m.uint8) + m.ones(2, dtype=m.int8),
                m.ones(2, dtype=m.float16) + m.ones(2, dtype=m.bfloat16),
                m.ones(2, dtype=m.int64).sum(),
                m.ones(2, dtype=m.bool).sum(),
                m.ones(2, dtype=m.int32).float().mean(),
                m.ones(2) + 1j,
                m.ones(2, dtype=m.float64) * 1j,
                m.ones(2, dtype=m.float16) * m.tensor(2.0),
            )
        ],
        (),
    )


def _distributions() -> Iterator[Case]:
    for name in ["Normal", "LogNormal", "Laplace", "Gumbel", "Gamma", "Beta"]:
        yield (
            f"distribution {name}",
            lambda m, a, b, v, n=name: [
                f(getattr(m.distributions, n)(a, b)) for f in (lambda d: d.log_prob(v), lambda d: d.entropy(), lambda d: d.mean)
            ],
            (POSITIVE, POSITIVE[::-1].copy(), POSITIVE / 3),
        )
    yield (
        "distribution Categorical",
        lambda m, x, i: [
            m.distributions.Categorical(logits=x).log_prob(i),
            m.distributions.Categorical(probs=x.exp()).entropy(),
            m.distributions.kl_divergence(m.distributions.Categorical(logits=x), m.distributions.Categorical(logits=x * 2)),
        ],
        (X, OTHER[:, 0] % 4),
    )
    yield (
        "distribution MultivariateNormal",
        lambda m, s, x: m.distributions.MultivariateNormal(x, s @ s.mT).log_prob(x * 2),
        (SQUARE[0], TALL[0]),
    )


def _unusual() -> Iterator[Case]:
    """Arguments out of the ordinary: no dimension, nothing in it, other dtypes, edges."""
    yield (
        "scatter of one number",
        lambda m, x: (
            x[0, 0].scatter(0, m.tensor(0), x[1, 1]),
            x[0, 0].scatter_add(0, m.tensor(0), x[1, 1]),
            x[0, 0].index_add(0, m.tensor([0]), x[1, 1]),
            x[0, 0].index_fill(0, m.tensor([0]), 2.0),
            x[0, 0].scatter_reduce(0, m.tensor(0), x[1, 1], "mean"),
            x[0, 0].unfold(0, 1, 1),
            m.nonzero(x[0, 0], as_tuple=True),
        ),
        (X,),
    )
    yield (
        "products scattered over zeros",
        lambda m, x, i, s: x.scatter_reduce(1, i, s, "prod"),
        (
            np.where(X > 0, X, 0.0),
            INDEX,
            np.where(Y[:, :2] > 0, Y[:, :2], 0.0),
        ),
    )
    yield (
        "ranges of whole numbers",
        lambda m: (
            m.arange(-0.9, 2.1, 2.0, dtype=m.int32),
            m.linspace(4.3, -3, 50, dtype=m.int64),
            m.linspace(0, 9, 4, dtype=m.int32),
            m.logspace(0, 2, 3, dtype=m.int64),
            m.arange(5, 0, -2, dtype=m.float64),
        ),
        (),
    )
    yield (
        "whole numbers",
        lambda m, x, y: (
            m.heaviside(x, y),
            m.cov(x),
            m.bincount(y.reshape(-1), weights=x.reshape(-1)),
            x.nansum(),
            x.logsumexp(1),
            x.sum(dtype=m.int32),
            x.cumsum(0, dtype=m.int32),
            x.prod(1, dtype=m.int32),
            m.nn.functional.hardtanh(x, -2, 2),
            m.nn.functional.threshold(x, 1, 7),
            (x > 0).diff(),
            (x > 0).sign(),
            y.to(m.uint8).all(),
            m.unravel_index(y.int(), (3, 4)),
            m.addmv(x[:, 0], x, y[0], beta=0.6, alpha=2.2),
        ),
        (WHOLE, OTHER),
    )
    yield (
        "gradient with steps",
        lambda m, x, t: (
            m.gradient(x, spacing=0.5, edge_order=2),
            m.gradient(x, dim=1, spacing=[t[:4]]),
            m.gradient(x, dim=1, spacing=[t[:4]], edge_order=2),
        ),
        (X, SORTED),
    )
    yield (
        "searches",
        lambda m, s, x: (
            m.searchsorted(s, x, out_int32=True),
            m.bucketize(x, s, out_int32=True, right=True),
            m.searchsorted(s.flip(0), x, sorter=m.arange(5, -1, -1)),
        ),
        (SORTED, X),
    )
    yield (
        "odd shapes",
        lambda m, x: (
            m.var_mean(x, True),
            m.std_mean(x, False),
            x.flip(dims=(0, 1)),
            m.corrcoef(x[:1]),
            x.diff(n=0, append=x),
            x[0, 0].repeat(2, 2),
            m.quantile(x[0, 0], 0.5, 0, keepdim=True),
            m.normal(x, 0.0),
            x.take_along_dim(m.tensor([[-1], [0], [1]]), 1),
        ),
        (X,),
    )
    yield (
        "nothing",
        lambda m, x: (
            x[:0].sum(),
            m.linalg.pinv(x[:0, :3]),
            m.linalg.matrix_rank(x[:, :0]),
            m.nn.functional.group_norm(x[:0], 2),
            m.linalg.cond(x[:0, :0]),
            m.searchsorted(x[0].sort().values, x[:0]),
        ),
        (X,),
    )
    yield (
        "complex without gradients",
        lambda m, x: [
            m.view_as_real(z) if z.is_complex() else z
            for z in (
                m.complex(x, x * x).norm(),
                m.complex(x, x * 2).var(1),
                m.complex(x, x).float_power(2),
                m.complex(x, x * x).sgn(),
                m.linalg.svdvals(m.complex(x, x * x)),
                m.linalg.pinv(m.complex(x, x * x)),
                m.cov(m.complex(x, x * x)),
            )
        ],
        (X.astype(np.float32),),
    )
    yield "logcumsumexp of large numbers", lambda m, x: m.logcumsumexp(x * 400, 1), (X,)


def _factorised() -> Iterator[Case]:
    yield "lu", lambda m, a, t: (*m.linalg.lu(a), *m.linalg.lu_factor(t), *m.linalg.lu(t.mT)), (SQUARE, TALL)
    yield "lu_solve", lambda m, a: (m.linalg.lu_solve(*m.linalg.lu_factor(a), a), m.lu_unpack(*m.linalg.lu_factor(a))[0]), (SQUARE,)
    yield (
        "householder",
        lambda m, a: (m.linalg.householder_product(a.tril(-1), a[0] / 3), m.geqrf(a.detach()), m.ormqr(a.tril(-1), a[0] / 3, a)),
        (TALL,),
    )
    yield "hermitian", lambda m, a: (m.linalg.pinv(a @ a.mT, hermitian=True), m.linalg.matrix_rank(a @ a.mT, hermitian=True)), (SQUARE,)
    yield "full svd", lambda m, a: (m.linalg.svd(a, full_matrices=True).S, m.svd(a, some=False).S, m.norm(a, "nuc")), (TALL,)
    yield (
        "lstsq",
        lambda m, a, b: (m.linalg.lstsq(a, b, driver="gelsd").solution, m.linalg.lstsq(a, b).residuals),
        (TALL, TALL[:, :2].copy()),
    )
    yield (
        "hfft2",
        lambda m, x: (m.fft.hfft2(m.complex(x, x * 2)), m.fft.hfftn(m.complex(x, x * 2), dim=(0, 1)), m.fft.ihfftn(x).abs()),
        (Z,),
    )


def _special() -> Iterator[Case]:
    for name in [
        "airy_ai",
        "bessel_j0",
        "bessel_j1",
        "bessel_y0",
        "bessel_y1",
        "modified_bessel_i0",
        "modified_bessel_i1",
        "modified_bessel_k0",
        "modified_bessel_k1",
        "scaled_modified_bessel_k0",
        "scaled_modified_bessel_k1",
        "spherical_bessel_j0",
    ]:
        yield f"special {name}", lambda m, x, n=name: getattr(m.special, n)(x).float(), (np.linspace(0.1, 19.0, 24).astype(np.float32),)
    for name in [
        "chebyshev_polynomial_t",
        "chebyshev_polynomial_u",
        "hermite_polynomial_h",
        "hermite_polynomial_he",
        "laguerre_polynomial_l",
        "legendre_polynomial_p",
    ]:
        yield f"special {name}", lambda m, x, n=name: getattr(m.special, n)(x, m.arange(4)), (UNIT.astype(np.float32),)
    yield (
        "gammainc",
        lambda m, a, x: (m.special.gammainc(a.detach(), x), m.igammac(a.detach(), x)),
        (POSITIVE * 3, POSITIVE[::-1].copy() * 4),
    )
    for name in ["bartlett", "blackman", "cosine", "exponential", "gaussian", "hamming", "hann", "kaiser", "nuttall"]:
        yield f"signal {name}", lambda m, n=name: (getattr(m.signal.windows, n)(9), getattr(m.signal.windows, n)(8, sym=False)), ()
    yield (
        "fractional pooling",
        lambda m, x: m.nn.functional.fractional_max_pool2d(
            x[None].repeat_interleave(2, -1), 2, output_size=(2, 5), _random_samples=m.tensor([[[0.2, 0.7], [0.9, 0.4]]], dtype=x.dtype)
        ),
        (Z,),
    )
    yield (
        "max_unpool3d",
        lambda m, x: m.nn.functional.max_unpool3d(
            *m.nn.functional.max_pool3d(x[None, :, None].repeat(1, 1, 2, 1, 1)[..., :2, :], 2, return_indices=True), 2
        ),
        (Z,),
    )
    yield (
        "embedding with limits",
        lambda m, w, i: m.nn.functional.embedding(i, w * 1.0, max_norm=None, scale_grad_by_freq=False),
        (TALL, OTHER % 5),
    )


def _more_distributions() -> Iterator[Case]:
    a, b, v, u = POSITIVE, POSITIVE[::-1].copy(), POSITIVE / 3, (UNIT + 1) / 2
    for text, value in (
        ("Cauchy(a, b)", v),
        ("HalfNormal(a)", v),
        ("HalfCauchy(a)", v),
        ("Weibull(a, b)", v),
        ("Pareto(a / 9, b)", a),
        ("StudentT(a + 2, a, b)", v),
        ("Chi2(a)", v),
        ("InverseGamma(a + 2, b)", v),
        ("FisherSnedecor(a, b + 4)", v),
        ("Kumaraswamy(a, b)", u),
        ("Uniform(-a, b)", v / 9),
        ("Exponential(a)", v),
        ("Poisson(a)", np.floor(a)),
        ("Binomial(5, u)", np.floor(a)),
        ("NegativeBinomial(a, u)", np.floor(a)),
        ("Geometric(u)", np.floor(a)),
        ("Bernoulli(u)", np.minimum(np.floor(a), 1)),
        ("ContinuousBernoulli(u)", u),
        ("Dirichlet(a)", a / a.sum(-1, keepdims=True)),
        ("RelaxedBernoulli(a[0, 0] * 0 + 0.7, u)", u),
        ("Multinomial(4, logits=a)", np.eye(4)[:3] * 4),
        ("OneHotCategorical(logits=a)", np.eye(4)[:3]),
        ("LowRankMultivariateNormal(a, b.unsqueeze(-1), u)", v),
        ("Independent(d.Normal(a, b), 1)", v),
        ("TransformedDistribution(d.Normal(a, b), [d.AffineTransform(0.5, 2.0), d.TanhTransform()])", u / 2),
        ("MixtureSameFamily(d.Categorical(logits=a), d.Normal(a, b))", v[:, 0].copy()),
    ):
        yield (
            f"distribution {text}",
            lambda m, a, b, u, v, t=text: _facts(eval("d." + t, {"d": m.distributions, "a": a, "b": b, "u": u}), v),
            (a, b, u, value),
        )
    for p in ("Normal(a, b)", "Gamma(a, b)", "Beta(a, b)", "Uniform(a * 0, a)", "Exponential(a)", "Laplace(a, b)"):
        for q in ("Normal(b, a)", "Gamma(b, a)", "Gumbel(b, a)", "Exponential(b)", "Laplace(b, a)", "Uniform(a * 0, b)", "Pareto(b, a)"):
            if not (q.startswith("Laplace") and p[0] not in "NL") and not (q.startswith("Gumbel") and p[0] in "BL"):
                yield (
                    f"divergence of {p} from {q}",
                    lambda m, a, b, t=(p, q): m.distributions.kl_divergence(
                        *[eval("d." + s, {"d": m.distributions, "a": a, "b": b}) for s in t]
                    ),
                    (a, b),
                )
    for name, x in (
        ("simplex", X),
        ("positive", X),
        ("unit_interval", X),
        ("lower_cholesky", SQUARE),
        ("corr_cholesky", np.linspace(-1, 1, 6)),
        ("positive_definite", SQUARE),
    ):
        yield (
            f"transform to {name}",
            lambda m, x, n=name: _transformed(m.distributions.transform_to(getattr(m.distributions.constraints, n)), x),
            (x,),
        )


def _facts(d: Any, v: Any) -> list[Any]:
    """The log density of a value and what is known of the moments; the rest as None."""
    out = [d.log_prob(v)]
    for name in ("mean", "variance"):
        try:
            out.append(getattr(d, name))
        except NotImplementedError:
            out.append(0.0)
    try:
        out.append(d.entropy())
    except NotImplementedError:
        out.append(0.0)
    return out + [list(d.batch_shape), list(d.event_shape)]


def _transformed(t: Any, x: Any) -> list[Any]:
    y = t(x)
    return [y, t.inv(y)]


CASES: list[Case] = [
    *_pointwise(),
    *_reduced(),
    *_moved(),
    *_products(),
    *_complex(),
    *_made(),
    *_distributions(),
    *_unusual(),
    *_factorised(),
    *_special(),
    *_more_distributions(),
]
