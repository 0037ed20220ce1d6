"""Outputs of one segment that share no computation are differentiated one after the other, as they are eagerly."""

import numpy as np
import pytest

import torchlet as torch
from torchlet import nn


def two_networks(x: torch.Tensor) -> list[object]:
    first, second = nn.Linear(4, 3), nn.Linear(3, 2)
    with torch.no_grad():
        for k, p in enumerate([*first.parameters(), *second.parameters()]):
            p.copy_((torch.arange(p.numel()).view(p.shape) % 5 - k) * 0.1)

    def step() -> list[object]:
        fake = first(x).tanh()
        judged = second(fake.detach()).tanh()
        float(judged.sum())  # the segment ends here
        judged.sum().backward()
        untouched = first.weight.grad is None
        second(fake).sum().backward()
        return [untouched, first.weight.grad.sum().item(), second.weight.grad.sum().item()]

    return step() if x.requires_grad else torch.compile(step)()


def test_a_backward_pass_frees_only_what_it_went_through() -> None:
    x = torch.arange(8.0).view(2, 4) / 8
    compiled, eager = two_networks(x), two_networks(x.clone().requires_grad_())
    assert compiled[0] is eager[0] is True
    assert compiled[1:] == pytest.approx(eager[1:], rel=1e-5)


def test_outputs_that_share_an_operation_are_freed_together() -> None:
    w = torch.ones(3, requires_grad=True)

    @torch.compile
    def step() -> None:
        shared = w.exp()
        a, b = shared.sin(), shared.cos()
        print(end=f"{a.sum().item():.0f}{b.sum().item():.0f}"[:0])
        a.sum().backward()
        b.sum().backward()

    with pytest.raises(RuntimeError, match="second time"):
        step()


def test_a_leaf_that_no_given_gradient_reaches_gets_none_instead_of_zeros() -> None:
    v, w = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)

    @torch.compile
    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        shared = v.exp()
        return shared * 2, shared * w

    one, _ = outputs()
    one.sum().backward()
    assert v.grad is not None and w.grad is None


def test_positions_of_an_empty_selection_compile(recwarn: pytest.WarningsRecorder) -> None:
    layer = nn.Linear(4, 3)
    f = torch.compile(lambda x, i: layer(x[None, i].reshape(-1, 4)).sum())
    assert f(torch.ones(5, 4), torch.zeros(0, dtype=torch.int64)).item() == 0
    assert not recwarn.list


def test_an_infinite_gradient_of_an_output_that_is_not_differentiated_stays_out() -> None:
    """0 times infinity is no gradient: eager never goes there."""
    w = torch.tensor([0.0, 1.0], requires_grad=True)
    f = torch.compile(lambda: ((w * 3).sum(), w.log().sum(), (w * w).sum()))
    for use in ((0,), (0,), (0, 2), (2,)):
        outputs = f()
        w.grad = None
        sum(outputs[i] for i in use).backward()
        expected = sum((torch.full((2,), 3.0), 0, 2 * w.detach())[i] for i in use)
        assert w.grad is not None and w.grad.tolist() == expected.tolist()
    shared = torch.compile(lambda: (lambda s: (s.sum(), (s.log() * 2).sum()))(w * 1.0))
    for _ in range(2):
        w.grad = None
        shared()[0].backward()
        assert w.grad is not None and w.grad.tolist() == [1.0, 1.0]


def test_an_output_that_keeps_nothing_is_differentiated_after_another_has_freed_the_graph():
    def f(a, b, w):
        x = a + b
        return x * 2, (x * w).tanh()

    def gradients(run):
        a, b, w = [torch.ones(3, requires_grad=True) for _ in range(3)]
        x, y = run(a, b, w)
        y.sum().backward()
        x.sum().backward()
        x.sum().backward()  # nothing is kept for it: it may be asked again
        with pytest.raises(RuntimeError, match="second time"):
            y.sum().backward()
        return [t.grad.tolist() for t in (a, b, w)]

    compiled = torch.compile(f)
    for _ in range(2):
        np.testing.assert_allclose(gradients(compiled), gradients(f), rtol=1e-6)
