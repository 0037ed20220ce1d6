"""nn.utils.prune: which elements go, what the module holds meanwhile, and that training keeps them at zero."""

import pytest

import torchlet as torch
from torchlet import nn
from torchlet.nn.utils import prune


def linear() -> nn.Linear:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]]))
        layer.bias.fill_(1.0)
    return layer


def test_the_smallest_weights_are_masked_and_the_originals_kept() -> None:
    layer = prune.l1_unstructured(linear(), "weight", amount=0.5)
    assert layer.weight_mask.tolist() == [[0, 0, 0], [1, 1, 1]] and prune.is_pruned(layer)
    assert sorted(layer.state_dict()) == ["bias", "weight_mask", "weight_orig"]
    assert layer(torch.ones(3)).tolist() == [1.0, -4.0]


def test_pruning_again_prunes_of_what_is_left() -> None:
    layer = prune.l1_unstructured(linear(), "weight", amount=2)
    prune.ln_structured(layer, "weight", amount=1, n=2, dim=1)
    assert layer.weight_mask.tolist() == [[0, 0, 1], [0, 1, 1]] and len(layer._forward_pre_hooks) == 1
    prune.l1_unstructured(layer, "weight", amount=1)
    assert layer.weight_mask.tolist() == [[0, 0, 0], [0, 1, 1]]


def test_pruned_weights_stay_zero_while_the_rest_trains_compiled_too() -> None:
    layer = prune.l1_unstructured(linear(), "weight", amount=3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    @torch.compile
    def step(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = layer(x).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    first = [step(torch.ones(3)).item() for _ in range(3)]
    assert first[2] < first[1] < first[0]
    assert layer.weight_orig.grad[0].tolist() == [0, 0, 0]
    prune.remove(layer, "weight")
    assert isinstance(layer.weight, nn.Parameter) and sorted(layer.state_dict()) == ["bias", "weight"]
    assert layer.weight[0].tolist() == [0, 0, 0] and not prune.is_pruned(layer) and not layer._forward_pre_hooks


def test_global_pruning_ranks_all_parameters_together() -> None:
    a, b = linear(), nn.Linear(2, 1)
    with torch.no_grad():
        b.weight.copy_(torch.tensor([[0.5, 10.0]]))
    prune.global_unstructured([(a, "weight"), (b, "weight")], pruning_method=prune.L1Unstructured, amount=3)
    assert a.weight_mask.tolist() == [[0, 0, 1], [1, 1, 1]] and b.weight_mask.tolist() == [[0, 1]]


def test_structured_and_random_pruning_take_as_many_as_was_asked() -> None:
    a = prune.random_structured(linear(), "weight", amount=1, dim=1)
    assert (a.weight_mask.sum(0) == 0).sum().item() == 1
    b = prune.random_unstructured(linear(), "weight", amount=4)
    assert b.weight_mask.sum().item() == 2
    c = prune.custom_from_mask(linear(), "bias", mask=torch.tensor([0, 1]))
    assert c.bias.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "error, match, f",
    [
        (ValueError, "amount=-1", lambda: prune.l1_unstructured(linear(), "weight", -1)),
        (ValueError, "amount=1.5", lambda: prune.l1_unstructured(linear(), "weight", 1.5)),
        (ValueError, "amount=9", lambda: prune.l1_unstructured(linear(), "weight", 9)),
        (TypeError, "Invalid type for amount", lambda: prune.l1_unstructured(linear(), "weight", "all")),
        (ValueError, "has to be pruned before", lambda: prune.remove(linear(), "weight")),
        (ValueError, "multidimensional", lambda: prune.ln_structured(linear(), "bias", 1, 2, 0)),
        (IndexError, "Invalid index 5", lambda: prune.ln_structured(linear(), "weight", 1, 2, 5)),
        (TypeError, "unstructured", lambda: prune.global_unstructured([(linear(), "weight")], prune.LnStructured, amount=1, n=2)),
    ],
)
def test_what_cannot_be_pruned_is_refused(error: type[Exception], match: str, f: object) -> None:
    with pytest.raises(error, match=match):
        f()  # type: ignore[operator]


def test_a_refused_pruning_leaves_the_module_as_it_was() -> None:
    layer = prune.l1_unstructured(linear(), "weight", amount=1)
    before = layer.weight_mask.tolist()
    with pytest.raises(ValueError, match="amount=99"):
        prune.l1_unstructured(layer, "weight", amount=99)
    assert layer.weight_mask.tolist() == before and len(layer._forward_pre_hooks) == 1
    assert layer(torch.ones(3)).tolist() == [2.0, -4.0]
