"""Rarer parts of PyTorch's surface: profiler, pruning, distributions' checks, operators of one's own, and what a missing name says."""

from typing import Any

import numpy as np
import pytest

import torchlet as torch
from torchlet import distributions as D
from torchlet import nn
from torchlet.nn.utils import parametrizations, prune


def test_a_profile_counts_operators_and_regions_and_leaves_the_dispatch_as_it_was() -> None:
    from torchlet.profiler import ProfilerActivity, profile, record_function

    before = torch.op._execute  # type: ignore[attr-defined]
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as prof, record_function("mine"):
        layer(x).relu()
        layer(x)
    counts = {e.key: e.count for e in prof.key_averages()}
    assert counts["aten::linear"] == 2 and counts["aten::relu"] == 1 and counts["mine"] == 1
    assert "aten::linear" in prof.key_averages(group_by_input_shape=True).table(sort_by="cpu_time_total", row_limit=5)
    assert torch.op._execute is before  # type: ignore[attr-defined]


def test_a_schedule_records_the_active_steps_only() -> None:
    from torchlet.profiler import profile, schedule

    seen: list[int] = []
    steps = schedule(wait=1, warmup=1, active=2, repeat=1)
    with profile(schedule=steps, on_trace_ready=lambda p: seen.append(len(p.events()))) as prof:
        for _ in range(6):
            torch.ones(2) + 1
            prof.step()
    assert len(seen) == 1 and seen[0] in (2, 4)  # two additions, and the ones they add to


@pytest.mark.parametrize(
    "name, text",
    [
        ("matmull", "the nearest name is 'matmul'"),
        ("Relu", "the nearest name is 'relu'"),
        ("sparse_coo_tensor", "left out, sparse layouts"),
    ],
)
def test_a_missing_name_says_what_is_near_or_why_it_is_left_out(name: str, text: str) -> None:
    with pytest.raises(AttributeError, match=text) as error:
        getattr(torch, name)
    assert "torchlet/absent.py" in str(error.value)


def test_pruning_masks_the_smallest_and_keeps_the_parameter_object() -> None:
    layer = nn.Linear(5, 4)
    original = layer.weight
    prune.l1_unstructured(layer, "weight", 6)
    prune.ln_structured(layer, "weight", 1, 2, 0)
    assert sorted(layer.state_dict()) == ["bias", "weight_mask", "weight_orig"] and prune.is_pruned(layer)
    assert int(layer.weight.eq(0).sum()) >= 9 and bool((layer.weight == layer.weight_orig * layer.weight_mask).all())
    prune.remove(layer, "weight")
    assert layer.weight is original and sorted(layer.state_dict()) == ["bias", "weight"] and not prune.is_pruned(layer)


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6)])
@pytest.mark.parametrize("how", ["matrix_exp", "cayley", "householder"])
def test_an_orthogonal_weight_stays_orthogonal_while_it_is_trained(shape: tuple[int, int], how: str) -> None:
    layer = parametrizations.orthogonal(nn.Linear(shape[1], shape[0]), orthogonal_map=how)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(2, shape[1])).sum().backward()
        optimizer.step()
    w: Any = layer.weight.detach()
    gram = w @ w.mT if shape[0] <= shape[1] else w.mT @ w
    np.testing.assert_allclose(gram.numpy(), np.eye(min(shape)), atol=1e-4)


def test_the_adaptive_softmax_is_a_distribution_over_all_classes() -> None:
    layer = nn.AdaptiveLogSoftmaxWithLoss(8, 12, [3, 7], 2.0)
    x, y = torch.randn(5, 8), torch.tensor([0, 4, 11, 2, 7])
    every, found = layer.log_prob(x), layer(x, y)
    np.testing.assert_allclose(every.exp().sum(1).detach().numpy(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(found.output.detach().numpy(), every[torch.arange(5), y].detach().numpy(), rtol=1e-5)
    assert layer.predict(x).tolist() == every.argmax(1).tolist()


@pytest.mark.parametrize("make", [lambda p: torch.optim.Adafactor(p, lr=0.3), lambda p: torch.optim.SparseAdam(p, lr=0.3)])
def test_optimizers_for_large_matrices_learn_and_sparse_adam_leaves_unused_rows(make: Any) -> None:
    table = nn.Embedding(6, 3, sparse=True, max_norm=None)
    unused = table.weight[4].tolist()
    optimizer = make(table.parameters())
    for _ in range(60):
        optimizer.zero_grad()
        loss = (table(torch.tensor([0, 2, 5])) - 1).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert isinstance(optimizer, torch.optim.Adafactor) or table.weight[4].tolist() == unused


def test_rows_of_an_embedding_are_limited_in_norm_when_they_are_used() -> None:
    table = nn.Embedding(4, 3, max_norm=0.5)
    with torch.no_grad():
        table.weight.fill_(2.0)
    table(torch.tensor([1, 3]))
    np.testing.assert_allclose(table.weight.detach().norm(dim=1).numpy(), [12**0.5, 0.5, 12**0.5, 0.5], rtol=1e-5)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: D.Normal(0.0, -1.0), "parameter scale"),
        (lambda: D.Bernoulli(torch.tensor([0.5])).log_prob(torch.tensor([0.3])), "within the support"),
        (lambda: D.Normal(torch.zeros(3), 1.0).log_prob(torch.zeros(2)), "not broadcastable"),
        (lambda: D.Categorical(), "Either `probs` or `logits`"),
    ],
)
def test_distributions_refuse_what_pytorch_refuses(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_samples_of_gamma_variables_carry_the_gradient_of_their_quantile() -> None:
    torch.manual_seed(0)
    a = torch.tensor([0.7, 2.5], requires_grad=True)
    x = D.Gamma(a, torch.ones(2)).rsample((4000,))
    x.mean(0).sum().backward()
    assert a.grad is not None
    np.testing.assert_allclose(a.grad.numpy(), 1.0, atol=0.1)  # the mean of a gamma variable is its concentration
    np.testing.assert_allclose(x.detach().mean(0).numpy(), a.detach().numpy(), atol=0.1)


def test_an_expanded_distribution_has_the_batch_it_was_given() -> None:
    d = D.Independent(D.Normal(torch.zeros(3), torch.ones(3)), 1).expand((5,))
    assert d.batch_shape == (5,) and d.event_shape == (3,) and d.sample((2,)).shape == (2, 5, 3)
    assert repr(D.Normal(0.0, 1.0)) == "Normal(loc: 0.0, scale: 1.0)"


def test_an_operator_of_ones_own_has_the_gradient_it_is_given() -> None:
    @torch.library.custom_op("test::triple", mutates_args=())
    def triple(x: Any) -> Any:
        return x * 3

    def keep(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.factor = 7.0

    triple.register_autograd(lambda ctx, g: g * ctx.factor, setup_context=keep)
    x = torch.ones(2, requires_grad=True)
    out = triple(x)
    out.sum().backward()
    assert out.tolist() == [3.0, 3.0] and x.grad is not None and x.grad.tolist() == [7.0, 7.0]


def test_a_future_gives_its_value_to_those_who_wait() -> None:
    future = torch.jit.fork(lambda x: x + 1, torch.ones(2))
    assert torch.jit.wait(future.then(lambda f: f.value() * 2)).tolist() == [4.0, 4.0]
    failed = torch.jit.fork(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed.wait()


def test_a_fused_convolution_does_what_the_two_layers_did() -> None:
    conv, norm = nn.Conv2d(2, 3, 3).eval(), nn.BatchNorm2d(3).eval()
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(1.0, 2.0)
    x = torch.randn(1, 2, 5, 5)
    np.testing.assert_allclose(nn.utils.fuse_conv_bn_eval(conv, norm)(x).detach().numpy(), norm(conv(x)).detach().numpy(), atol=1e-5)
