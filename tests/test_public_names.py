"""The names of a first PyTorch course are where PyTorch has them, and its programs run with only the import changed."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchlet as torch
import torchlet.nn.functional as F
from torchlet import nn

NAMES = """
torch: tensor as_tensor from_numpy randn rand randint randperm zeros ones full empty eye arange linspace zeros_like ones_like
torch: randn_like rand_like matmul mm bmm softmax equal allclose cat stack where exp log sqrt tanh sigmoid relu sum mean max
torch: min argmax manual_seed no_grad enable_grad set_grad_enabled is_grad_enabled save load compile Tensor Size device dtype
torch: float32 float64 float16 bfloat16 int8 int16 int32 int64 uint8 bool float double half long int get_default_dtype
torch: set_default_dtype Generator cuda autograd nn optim utils
torch.Tensor: to cpu numpy item tolist shape dtype device ndim T size dim view reshape transpose permute unsqueeze squeeze
torch.Tensor: flatten expand contiguous clone detach requires_grad_ backward grad is_leaf mean sum max min std var argmax
torch.Tensor: add_ sub_ mul_ div_ zero_ fill_ copy_ normal_ uniform_ float double long bool int numel element_size
torch.Tensor: register_hook retain_grad type_as
torch.cuda: is_available device_count
torch.autograd: Function grad backward
torch.nn: Module Parameter Linear Sequential ModuleList ReLU Tanh GELU Sigmoid Softmax Dropout LayerNorm BatchNorm1d Embedding
torch.nn: Flatten Identity MSELoss CrossEntropyLoss functional init utils
torch.nn.Module: forward parameters named_parameters modules children train eval state_dict load_state_dict zero_grad to
torch.nn.Module: register_buffer apply
torch.nn.functional: relu gelu tanh sigmoid softmax log_softmax linear dropout layer_norm embedding one_hot mse_loss
torch.nn.functional: cross_entropy nll_loss
torch.nn.init: normal_ uniform_ zeros_ ones_ xavier_uniform_ kaiming_uniform_
torch.nn.utils: clip_grad_norm_
torch.optim: SGD Adam AdamW Optimizer lr_scheduler
torch.optim.lr_scheduler: StepLR CosineAnnealingLR LambdaLR
torch.utils.data: Dataset TensorDataset DataLoader Subset random_split default_collate
"""


def names() -> list[tuple[str, str]]:
    """(place, name) of each name above."""
    lines = (line.split(":") for line in NAMES.strip().splitlines())
    return [(place, name) for place, listed in lines for name in listed.split()]


@pytest.mark.parametrize("place", sorted({place for place, _ in names()}))
def test_first_course_names_exist(place: str) -> None:
    import_name = place.replace("torch", "torchlet", 1)
    found: Any = torch
    for part in import_name.split(".")[1:]:
        found = getattr(found, part)
    missing = [name for where, name in names() if where == place and not hasattr(found, name)]
    assert not missing, f"{import_name} lacks {missing}"


def test_modules_can_be_imported_by_their_pytorch_path() -> None:
    import torchlet.nn.functional
    import torchlet.nn.init
    import torchlet.nn.utils
    import torchlet.optim.lr_scheduler
    import torchlet.utils.data

    assert torchlet.utils.data.DataLoader is torch.utils.data.DataLoader
    assert torchlet.optim.lr_scheduler.StepLR is torch.optim.lr_scheduler.StepLR


def test_the_gradient_of_a_polynomial_is_seven() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    y = x**2 + 3 * x
    y.backward()
    assert x.grad is not None and x.grad.item() == 7
    assert x.grad.shape == () and x.grad.dtype is torch.float32


@pytest.mark.parametrize("compiled", [False, True])
def test_a_linear_model_learns_the_line_and_predicts_31_for_15(compiled: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 1)

        def forward(self, x: Any) -> Any:
            return self.linear(x)

    x = torch.arange(0, 10, 0.1).view(-1, 1)
    y = 2 * x + 1 + 0.1 * torch.randn(x.size(0), 1)
    model = Model()
    criterion = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> Any:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    if compiled:
        step = torch.compile(step)
    losses = [step().item() for _ in range(1000)]
    assert losses[-1] < 0.02 < losses[0]
    with torch.no_grad():
        assert abs(model(torch.tensor([[15.0]])).item() - 31) < 0.3


def test_softmax_rows_sum_to_one() -> None:
    x = torch.randn(4, 7)
    p = F.softmax(x, dim=-1)
    assert torch.allclose(p.sum(dim=-1), torch.ones(4))
    assert torch.allclose(p, torch.exp(x) / torch.exp(x).sum(-1, keepdim=True))


@pytest.mark.parametrize("compiled", [False, True])
def test_attention_by_hand_is_causal(compiled: bool) -> None:
    def attention(q: Any, k: Any, v: Any) -> Any:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, T, T)
        mask = torch.tril(torch.ones(q.size(1), q.size(1)))
        return F.softmax(scores.masked_fill(mask == 0, float("-inf")), dim=-1) @ v  # (B, T, D)

    if compiled:
        attention = torch.compile(attention)
    q, k, v = (torch.randn(2, 5, 8, requires_grad=True) for _ in range(3))
    out = attention(q, k, v)
    assert out.shape == (2, 5, 8)
    assert torch.allclose(out[:, 0], v[:, 0], atol=1e-6)  # the first position sees only itself
    out[:, 2].sum().backward()
    assert v.grad is not None
    assert v.grad[:, 3:].abs().max().item() == 0 and v.grad[:, :3].abs().min().item() > 0


def test_dropout_scales_in_train_and_is_nothing_in_eval() -> None:
    layer = nn.Dropout(0.5)
    x = torch.ones(1000)
    layer.train()
    out = layer(x)
    kept = (out != 0).sum().item()
    assert 400 < kept < 600
    assert torch.equal(out[out != 0], torch.full((kept,), 2.0))
    layer.eval()
    assert torch.equal(layer(x), x)


def test_embedding_layer_norm_and_batch_norm_in_a_model() -> None:
    model = nn.Sequential(
        nn.Embedding(10, 6), nn.Flatten(), nn.LayerNorm(18), nn.Linear(18, 4), nn.BatchNorm1d(4), nn.GELU(), nn.Linear(4, 2)
    )
    tokens = torch.randint(0, 10, (8, 3))
    loss = nn.CrossEntropyLoss()(model(tokens), torch.randint(0, 2, (8,)))
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    assert model[4].num_batches_tracked.item() == 1
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(tokens[:1]), model(tokens[:1]))


def test_saving_and_loading_a_state_dict_restores_the_model(tmp_path: Path) -> None:
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    torch.save(a.state_dict(), tmp_path / "model.pt")
    assert not torch.equal(a.weight, b.weight)
    b.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


def test_a_data_loader_gives_every_sample_once_in_shuffled_batches() -> None:
    from torchlet.utils.data import DataLoader, TensorDataset

    dataset = TensorDataset(torch.arange(10).float().view(-1, 1), torch.arange(10))
    loader = DataLoader(dataset, batch_size=4, shuffle=True)
    batches = list(loader)
    assert [tuple(x.shape) for x, _ in batches] == [(4, 1), (4, 1), (2, 1)] and len(loader) == 3
    order = torch.cat([y for _, y in batches]).tolist()
    assert sorted(order) == list(range(10)) and order != list(range(10))
    assert len(DataLoader(dataset, batch_size=4, drop_last=True)) == 2


def test_a_scheduler_lowers_the_learning_rate() -> None:
    optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
    rates = []
    for _ in range(4):
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1])


def test_a_custom_function_gives_its_own_gradient() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            (x,) = ctx.saved_tensors
            return grad * 3 * x**2

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    Cube.apply(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [3.0, 12.0]


def test_the_device_line_of_every_tutorial_works() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x = torch.rand(2, 3).to(device)
    assert x.device.type == device.type and x.shape == torch.Size([2, 3])
    assert np.asarray(x.cpu().numpy()).dtype == np.float32


def test_forgetting_no_grad_raises_as_in_pytorch() -> None:
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        w.add_(1)
    loss = (w * w).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    hidden = torch.exp(w)
    hidden.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        hidden.sum().backward()
