"""Complex numbers: gradients by PyTorch's convention, dL/dRe + i dL/dIm, and what trains with them."""

import numpy as np
import pytest

import torchlet as torch

FUNCTIONS = {
    "add": lambda a, b, r: a + 2 * b,
    "sub": lambda a, b, r: 1 - a + b,
    "mul": lambda a, b, r: a * b,
    "mul by real": lambda a, b, r: a * r + b,
    "div": lambda a, b, r: a / b,
    "real by complex": lambda a, b, r: r / a,
    "matmul": lambda a, b, r: a @ b.mH,
    "einsum": lambda a, b, r: torch.einsum("ij,kj->ik", a, b),
    "exp": lambda a, b, r: a.exp(),
    "log": lambda a, b, r: a.log(),
    "sqrt": lambda a, b, r: a.sqrt(),
    "square": lambda a, b, r: a.square(),
    "pow number": lambda a, b, r: a**3,
    "pow": lambda a, b, r: a**b,
    "sin": lambda a, b, r: a.sin(),
    "tanh": lambda a, b, r: a.tanh(),
    "sigmoid": lambda a, b, r: a.sigmoid(),
    "reciprocal": lambda a, b, r: a.reciprocal(),
    "prod": lambda a, b, r: a.prod(1),
    "cumsum": lambda a, b, r: a.cumsum(1),
    "mean": lambda a, b, r: a.mean(),
    "var": lambda a, b, r: a.var(1),
    "norm": lambda a, b, r: torch.linalg.vector_norm(a, dim=1),
    "angle": lambda a, b, r: a.angle(),
    "conj": lambda a, b, r: a.conj() * b,
    "real and imaginary": lambda a, b, r: a.real * r + b.imag,
    "where": lambda a, b, r: torch.where(r > 0, a, b),
    "index": lambda a, b, r: a[[0, 1, 1], 1:],
    "fft": lambda a, b, r: torch.fft.fft(a),
    "irfft": lambda a, b, r: torch.fft.irfft(a),
    "inv": lambda a, b, r: torch.linalg.inv(a[:, :2]),
    "solve": lambda a, b, r: torch.linalg.solve(a[:, :2], b),
    "det": lambda a, b, r: torch.linalg.det(a[:, :2]),
    "cholesky": lambda a, b, r: torch.linalg.cholesky(a @ a.mH + torch.eye(2)),
    "lu": lambda a, b, r: torch.linalg.lu_factor(a[:, :2])[0],
}


def numbers(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape) + 0.5


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_complex_numbers_are_those_of_their_parts(name: str) -> None:
    inputs = [numbers(0, 2, 3), numbers(1, 2, 3), numbers(2, 2, 3).real]

    def loss(arrays: list[np.ndarray], track: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
        tensors = [torch.tensor(x, requires_grad=track) for x in arrays]
        y = FUNCTIONS[name](*tensors)
        weights = numbers(3, *y.shape)
        y = y * torch.tensor(weights if y.is_complex() else weights.real)
        return (y.real * 0.7 + y.imag if y.is_complex() else y).sum(), tensors

    value, tensors = loss(inputs, track=True)
    value.backward()
    for i, (x, t) in enumerate(zip(inputs, tensors, strict=True)):
        expected = np.zeros_like(x)
        for at in np.ndindex(x.shape):
            for unit in (1, 1j) if x.dtype.kind == "c" else (1,):
                sides = []
                for step in (1e-6, -1e-6):
                    moved = [v.copy() for v in inputs]
                    moved[i][at] += step * unit
                    sides.append(loss(moved)[0].item())
                expected[at] += (sides[0] - sides[1]) / 2e-6 * unit
        got = np.zeros_like(x) if t.grad is None else t.grad.numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)  # of differences over 1e-6 in float64


@pytest.mark.parametrize("compiled", [False, True])
def test_optimizers_take_the_parts_of_complex_parameters_for_real_numbers(compiled: bool) -> None:
    start, data = numbers(0, 3), torch.tensor(numbers(1, 3))

    def train(weight: torch.Tensor, whole: object) -> np.ndarray:
        optimizer = torch.optim.AdamW([weight], lr=0.1)

        def step() -> None:
            optimizer.zero_grad()
            (whole(weight) * data - 1).abs().square().sum().backward()  # type: ignore[operator]
            optimizer.step()

        run = torch.compile(step) if compiled else step
        for _ in range(3):
            run()
        return weight.detach().numpy()

    parts = train(torch.nn.Parameter(torch.view_as_real(torch.tensor(start)).contiguous()), torch.view_as_complex)
    whole = train(torch.nn.Parameter(torch.tensor(start)), lambda w: w)
    np.testing.assert_allclose(whole, parts[:, 0] + 1j * parts[:, 1], rtol=1e-12)
    assert not np.allclose(whole, start)
