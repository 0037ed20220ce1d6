"""Fourier transforms through NumPy, windows, and the short-time transform. Results are complex, so they run eagerly under capture too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.op import Op, apply, define
from torchlet.ops.arrange import pad, roll
from torchlet.ops.create import finish
from torchlet.ops.pointwise import cast
from torchlet.ops.public import FUNCTIONS, METHODS, Draws, public
from torchlet.ops.view import ALL, basic, reshape, unsqueeze
from torchlet.spec import Spec, normalize_dim
from torchlet.tensor import Tensor, wrap

_rng = Draws(13)
FFT: dict[str, Callable[..., Any]] = {}  # torchlet.fft.NAME
Dims = tuple[int, ...]


def _float_of(x: Spec) -> Spec:
    return Spec(x.shape, dtypes.complex_of(x.dtype if x.dtype.has_gradient else dtypes.get_default_dtype()), x.device)


def _fft_np(x: Any, dims: Dims, inverse: bool, scale: float) -> Any:
    kind = _float_of(Spec(x.shape, dtypes.from_numpy(x.dtype))).dtype.np
    out = np.fft.ifftn(x, axes=dims, norm="forward") if inverse else np.fft.fftn(x, axes=dims)
    return (out if scale == 1 else out * scale).astype(kind)


fft_: Op = define(
    "fft",
    ("x",),
    _fft_np,
    lambda x, dims, inverse, scale: _float_of(x),
    None,
    ("dims", "inverse", "scale"),
    {"x": lambda g, dims, inverse, scale: apply(fft_, (g,), (dims, not inverse, scale))},
    lambda: [((_rng.standard_normal((3, 4)) + 1j * _rng.standard_normal((3, 4)),), a) for a in (((1,), False, 1.0), ((0, 1), True, 0.5))],
    barrier=True,
    hermitian=True,
    doc="The sum of x times exp(∓2πi …) over `dims`, times `scale`.",
)


def _half_np(x: Any, dim: int, scale: float) -> Any:
    kind = _float_of(Spec(x.shape, dtypes.from_numpy(x.dtype))).dtype.np
    return (np.fft.rfft(x, axis=dim) * scale).astype(kind)


def _half_spec(x: Spec, dim: int, scale: float) -> Spec:
    return Spec((*x.shape[:dim], x.shape[dim] // 2 + 1, *x.shape[dim + 1 :]), _float_of(x).dtype, x.device)


def _half_grad(g: Tensor, x_spec: Spec, dim: int, scale: float) -> Tensor:
    full = _resized(g, dim, x_spec.shape[dim])
    return cast(apply(fft_, (full,), ((dim,), True, scale)), dtypes.real_of(full.dtype))


rfft_: Op = define(
    "rfft",
    ("x",),
    _half_np,
    _half_spec,
    None,
    ("dim", "scale"),
    {"x": _half_grad},
    lambda: [((_rng.standard_normal((3, n)),), (1, 1.0)) for n in (4, 5)],
    barrier=True,
    hermitian=True,
    doc="The first half of the transform of real numbers; the other half is its mirror image.",
)


def _back_np(x: Any, n: int, dim: int, scale: float) -> Any:
    kind = dtypes.real_of(_float_of(Spec(x.shape, dtypes.from_numpy(x.dtype))).dtype).np
    return (np.fft.irfft(x, n, axis=dim, norm="forward") * scale).astype(kind)


def _back_spec(x: Spec, n: int, dim: int, scale: float) -> Spec:
    return Spec((*x.shape[:dim], n, *x.shape[dim + 1 :]), dtypes.real_of(_float_of(x).dtype), x.device)


def _back_grad(g: Tensor, x_spec: Spec, n: int, dim: int, scale: float) -> Tensor:
    """Frequencies that stand for their mirror image too count twice."""
    out = apply(rfft_, (g,), (dim, scale))
    weight = np.full(out.shape[dim], 2.0)
    weight[0] = 1
    if n % 2 == 0:
        weight[-1] = 1
    shaped = wrap(weight.astype(g.dtype.np).reshape((-1,) + (1,) * (g.ndim - 1 - dim)))
    return _resized(out * shaped, dim, x_spec.shape[dim])


irfft_: Op = define(
    "irfft",
    ("x",),
    _back_np,
    _back_spec,
    None,
    ("n", "dim", "scale"),
    {"x": _back_grad},
    lambda: [((_rng.standard_normal((3, 3)) + 1j * _rng.standard_normal((3, 3)),), (n, 1, 0.25)) for n in (4, 5)],
    barrier=True,
    hermitian=True,
)


def _resized(x: Tensor, dim: int, n: int | None) -> Tensor:
    """`dim` cut or filled with zeros to n elements."""
    if n is None or n == x.shape[dim]:
        return x
    if n < 1:
        raise RuntimeError(f"Invalid number of data points ({n}) specified")
    if n < x.shape[dim]:
        return basic(x, (ALL,) * dim + (("s", 0, n, 1),))
    return pad(x, (0, 0) * (x.ndim - 1 - dim) + (0, n - x.shape[dim]))


def _scale(norm: str | None, count: int, inverse: bool) -> float:
    if norm not in (None, "backward", "forward", "ortho"):
        raise RuntimeError(f'Invalid normalization mode: "{norm}"')
    if norm == "ortho":
        return 1 / math.sqrt(count)
    return 1 / count if inverse == (norm in (None, "backward")) else 1.0


def _axes(input: Tensor, s: Sequence[int] | None, dim: Any) -> tuple[Dims, list[int | None]]:
    listed = tuple(range(input.ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    if dim is None and s is not None:
        listed = listed[-len(s) :]
    dims = tuple(normalize_dim("fft", d, input.ndim) for d in listed)
    return dims, list(s) if s is not None else [None] * len(dims)


def _full(input: Tensor, s: Any, dim: Any, norm: str | None, inverse: bool) -> Tensor:
    dims, sizes = _axes(input, s, dim)
    for d, n in zip(dims, sizes, strict=True):
        input = _resized(input, d, None if n == -1 else n)
    return apply(fft_, (input,), (dims, inverse, _scale(norm, math.prod(input.shape[d] for d in dims), inverse)))


def _one_sided(input: Tensor, s: Any, dim: Any, norm: str | None) -> Tensor:
    if input.dtype.is_complex:
        raise RuntimeError(f"rfft expects a real input tensor, but got {input.dtype.name}")
    dims, sizes = _axes(input, s, dim)
    for d, n in zip(dims, sizes, strict=True):
        input = _resized(input, d, n)
    scale = _scale(norm, math.prod(input.shape[d] for d in dims), False)
    out = apply(rfft_, (input,), (dims[-1], scale))
    return apply(fft_, (out,), (dims[:-1], False, 1.0)) if len(dims) > 1 else out


def _to_real(input: Tensor, s: Any, dim: Any, norm: str | None) -> Tensor:
    dims, sizes = _axes(input, s, dim)
    last = sizes[-1] if sizes[-1] is not None else 2 * (input.shape[dims[-1]] - 1)
    for d, n in zip(dims[:-1], sizes[:-1], strict=True):
        input = _resized(input, d, n)
    scale = _scale(norm, math.prod(input.shape[d] for d in dims[:-1]) * last, True)
    if len(dims) > 1:
        input = apply(fft_, (input,), (dims[:-1], True, 1.0))
    return apply(irfft_, (_resized(input, dims[-1], last // 2 + 1),), (last, dims[-1], scale))


def _enter() -> None:
    kinds: dict[str, Callable[..., Tensor]] = {
        "fft": lambda x, s, d, n: _full(x, s, d, n, False),
        "ifft": lambda x, s, d, n: _full(x, s, d, n, True),
        "rfft": _one_sided,
        "irfft": _to_real,
    }
    for name, f in kinds.items():
        FFT[name] = lambda input, n=None, dim=-1, norm=None, f=f: f(input, None if n is None else (n,), dim, norm)
        FFT[name + "2"] = lambda input, s=None, dim=(-2, -1), norm=None, f=f: f(input, s, dim, norm)
        FFT[name + "n"] = lambda input, s=None, dim=None, norm=None, f=f: f(input, s, dim, norm)


_enter()
_OPPOSITE = {None: "forward", "backward": "forward", "forward": "backward", "ortho": "ortho"}
FFT["hfft"] = lambda input, n=None, dim=-1, norm=None: FFT["irfft"](input.conj(), n, dim, _OPPOSITE[norm])
FFT["ihfft"] = lambda input, n=None, dim=-1, norm=None: FFT["rfft"](input, n, dim, _OPPOSITE[norm]).conj()


def _with_hermitian(names: tuple[str, str, str, str]) -> None:
    """hfft2, hfftn and their inverses: the transform of a signal whose own transform is real, over the other dimensions first."""
    forward, back, full, full_back = names

    def hfft(input: Tensor, s: Any = None, dim: Any = (-2, -1) if "2" in forward else None, norm: str | None = None) -> Tensor:
        dims, sizes = _hermitian_axes(input, s, dim)
        x = FFT[full](input, None if s is None else sizes[:-1], dims[:-1], norm) if len(dims) > 1 else input
        return FFT["hfft"](x, None if s is None else sizes[-1], dims[-1], norm)  # type: ignore[no-any-return]

    def ihfft(input: Tensor, s: Any = None, dim: Any = (-2, -1) if "2" in forward else None, norm: str | None = None) -> Tensor:
        dims, sizes = _hermitian_axes(input, s, dim)
        x = FFT["ihfft"](input, None if s is None else sizes[-1], dims[-1], norm)
        return FFT[full_back](x, None if s is None else sizes[:-1], dims[:-1], norm) if len(dims) > 1 else x  # type: ignore[no-any-return]

    for name, f in ((forward, hfft), (back, ihfft)):
        f.__name__ = f.__qualname__ = name
        f.__doc__ = f"The {name} of a signal with Hermitian symmetry."
        FFT[name] = f


def _hermitian_axes(input: Tensor, s: Any, dim: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sizes = () if s is None else (s,) if isinstance(s, int) else tuple(s)
    if dim is None:
        dims = tuple(range(input.ndim - len(sizes) if s is not None else 0, input.ndim))
    else:
        dims = (dim,) if isinstance(dim, int) else tuple(dim)
    return dims, sizes


_with_hermitian(("hfft2", "ihfft2", "fftn", "ifftn"))
_with_hermitian(("hfftn", "ihfftn", "fftn", "ifftn"))


def _shift(input: Tensor, dim: Any, back: bool) -> Tensor:
    dims, _ = _axes(input, None, dim)
    return roll(input, tuple(-(input.shape[d] // 2) if back else input.shape[d] // 2 for d in dims), dims)


FFT["fftshift"] = lambda input, dim=None: _shift(input, dim, False)
FFT["ifftshift"] = lambda input, dim=None: _shift(input, dim, True)


def _frequencies(name: str) -> Callable[..., Tensor]:
    def f(n: int, d: float = 1.0, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
        values = getattr(np.fft, name)(n, d)  # asked for here, because NumPy imports its transforms when they are first used
        return finish(wrap(values.astype((dtype or dtypes.get_default_dtype()).np)), device, requires_grad)

    return f


FFT["fftfreq"], FFT["rfftfreq"] = _frequencies("fftfreq"), _frequencies("rfftfreq")

# ------------------------------------------------------------------------------------------------ windows


def _cosines(*weights: float) -> Callable[[Any], Any]:
    return lambda t: sum((-1) ** k * w * np.cos(2 * np.pi * k * t) for k, w in enumerate(weights))


def _window(name: str, shape: Callable[..., Any], *extra: tuple[str, Any]) -> None:
    def f(
        window_length: int,
        periodic: bool = True,
        *args: Any,
        dtype: Any = None,
        device: Any = None,
        requires_grad: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        n = window_length
        values = [kwargs.get(key, args[k] if k < len(args) else default) for k, (key, default) in enumerate(extra)]
        if n < 2:
            a = np.ones(n)
        else:
            a = shape(np.arange(n) / (n if periodic else n - 1), *values)
        return finish(wrap(np.asarray(a).astype((dtype or dtypes.get_default_dtype()).np)), device, requires_grad)

    f.__name__, f.__qualname__, f.__doc__ = name, name, f"The {name.replace('_', ' ')}, periodic by default."
    public(name, method=False)(f)


_window("hann_window", _cosines(0.5, 0.5))
_window("hamming_window", lambda t, alpha, beta: alpha - beta * np.cos(2 * np.pi * t), ("alpha", 0.54), ("beta", 0.46))
_window("blackman_window", _cosines(0.42, 0.5, 0.08))
_window("bartlett_window", lambda t: 1 - np.abs(2 * t - 1))
_window("kaiser_window", lambda t, beta: np.i0(beta * np.sqrt(np.maximum(1 - (2 * t - 1) ** 2, 0))) / np.i0(beta), ("beta", 12.0))

# ------------------------------------------------------------------------------------------------ short-time transform


def _framing(name: str, n_fft: int, hop_length: int | None, win_length: int | None, window: Tensor | None, like: Any) -> tuple[int, Tensor]:
    hop, width = n_fft // 4 if hop_length is None else hop_length, n_fft if win_length is None else win_length
    if not 0 < width <= n_fft or hop <= 0 or (window is not None and tuple(window.shape) != (width,)):
        raise RuntimeError(
            f"{name}: n_fft={n_fft}, hop_length={hop}, win_length={width}; expected 0 < win_length <= n_fft, hop_length > 0 and a window of that length"
        )
    shape = FUNCTIONS["ones"](width, dtype=like) if window is None else window
    left = (n_fft - width) // 2
    return hop, pad(shape, (left, n_fft - width - left))


@public()
def stft(
    input: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    pad_mode: str = "reflect",
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: Any = None,
) -> Tensor:
    """(batch, time) -> (batch, frequency, frame): the transform of overlapping windows of a signal, complex."""
    hop, shape = _framing("stft", n_fft, hop_length, win_length, window, dtypes.real_of(input.dtype))
    x = unsqueeze(input, 0) if input.ndim == 1 else input
    if center:
        x = pad(x, (n_fft // 2, n_fft // 2), pad_mode)
    frames = METHODS["unfold"](x, 1, n_fft, hop) * shape  # (batch, frames, n_fft)
    half = not input.dtype.is_complex if onesided is None else onesided
    out = FFT["rfft" if half else "fft"](frames, norm="ortho" if normalized else None)
    out = METHODS["transpose"](out, 1, 2)
    out = reshape(out, tuple(out.shape[1:])) if input.ndim == 1 else out
    return out if return_complex or (return_complex is None and input.dtype.is_complex) else FUNCTIONS["view_as_real"](out)


@public()
def istft(
    input: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Tensor:
    """The signal of a short-time transform: windows added where they overlap, divided by the sum of the squared windows."""
    hop, shape = _framing("istft", n_fft, hop_length, win_length, window, dtypes.real_of(input.dtype))
    x = unsqueeze(input, 0) if input.ndim == 2 else input
    half = x.shape[1] != n_fft if onesided is None else onesided
    spectra = METHODS["transpose"](x, 1, 2)
    mode = "ortho" if normalized else None
    frames = FFT["irfft"](spectra, n_fft, norm=mode) if half else FFT["ifft"](spectra, norm=mode)
    frames = (frames if frames.dtype.is_complex == return_complex else cast(frames, shape.dtype)) * shape  # (batch, frames, n_fft)
    count = frames.shape[1]
    total = n_fft + hop * (count - 1)
    places = wrap((np.arange(count)[:, None] * hop + np.arange(n_fft)).reshape(-1))
    empty = FUNCTIONS["zeros"]((frames.shape[0], total), dtype=frames.dtype)
    signal = METHODS["index_add"](empty, 1, places, reshape(frames, (frames.shape[0], -1)))
    weight = METHODS["index_add"](FUNCTIONS["zeros"](total, dtype=shape.dtype), 0, places, (shape * shape).repeat(count))
    start = n_fft // 2 if center else 0
    end = total - start if length is None else min(start + length, total)
    weight = basic(weight, (("s", start, end, 1),))
    if bool((weight.detach().abs() < 1e-11).any()):
        raise RuntimeError("istft: window overlap add min: 0; expected windows that overlap everywhere")
    out = basic(signal, (ALL, ("s", start, end, 1))) / weight
    if length is not None and length > out.shape[1]:
        out = pad(out, (0, length - out.shape[1]))
    return reshape(out, (-1,)) if input.ndim == 2 else out
