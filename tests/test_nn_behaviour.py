"""What layers, wrappers and optimizers do besides their numbers: errors, hooks, packing, parametrizations, lazy shapes, averages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import torchlet as torch
import torchlet.nn.functional as F
from torchlet import nn
from torchlet.nn.utils import parametrizations, parametrize
from torchlet.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence, unpack_sequence
from torchlet.optim.swa_utils import SWALR, AveragedModel, get_ema_avg_fn, update_bn

# ------------------------------------------------------------------------------------------------ training steps


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, 2, 1, groups=2),
        nn.GroupNorm(2, 6), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 5, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.rnn(x.squeeze(1))[0][:, -1])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True), 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.encoder(x.squeeze(1)).mean(1))


@pytest.mark.parametrize("make", [cnn, Reader, Attending], ids=["cnn", "lstm", "transformer"])
def test_compiled_training_follows_eager_training(make: Callable[[], nn.Module]) -> None:
    x, y = torch.randn(3, 4, 1, 8, 8), torch.randint(3, (3, 4))
    start = make()

    def train(compiled: bool) -> tuple[list[float], dict[str, Any]]:
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step(x: Any, y: Any) -> Any:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        run = torch.compile(step) if compiled else step
        return [run(a, b).item() for a, b in zip(x, y)], model.state_dict()

    eager, state = train(False)
    compiled, compiled_state = train(True)
    np.testing.assert_allclose(compiled, eager, rtol=1e-4)
    assert list(compiled_state) == list(state)
    for name, value in state.items():
        np.testing.assert_allclose(compiled_state[name].numpy(), value.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_convolution_by_products_gathers_its_windows_once_and_adds_bias_and_relu_to_the_product() -> None:
    conv = nn.Conv2d(8, 16, 3, padding=1, dtype=torch.bfloat16).requires_grad_(False)  # float32 has a function of the C runtime
    x = torch.randn(2, 8, 12, 12).to(torch.bfloat16)
    names = [k.name for k in torch.compiler.kernels(lambda x: conv(x).relu(), x, target="cpu")]
    assert len([n for n in names if n.startswith("matmul_add_relu")]) == 1
    assert len([n for n in names if n.startswith("pad")]) <= 1 and len(names) <= 3  # padding and windows are one kernel, or none


# ------------------------------------------------------------------------------------------------ errors


def attend(*shapes: tuple[int, ...], **options: Any) -> Any:
    return F.scaled_dot_product_attention(*[torch.ones(*s) for s in shapes], **options)


BAD = [
    (RuntimeError, r"input\[1, 2, 8, 8\] to have 3 channels, but got 2 channels", lambda: nn.Conv2d(3, 4, 3)(torch.ones(1, 2, 8, 8))),
    (RuntimeError, r"size per channel: \(2 x 2\). Kernel size: \(3 x 3\)", lambda: nn.Conv2d(3, 4, 3)(torch.ones(1, 3, 2, 2))),
    (RuntimeError, r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv2d", lambda: nn.Conv2d(3, 4, 3)(torch.ones(3, 4))),
    (RuntimeError, r"should be the same", lambda: nn.Conv1d(3, 4, 3)(torch.ones(1, 3, 5, dtype=torch.float64))),
    (ValueError, "in_channels must be divisible by groups", lambda: nn.Conv2d(3, 4, 3, groups=2)),
    (ValueError, "padding='same' is not supported for strided convolutions", lambda: nn.Conv2d(3, 4, 3, stride=2, padding="same")),
    (ValueError, "requested an output size of", lambda: nn.ConvTranspose2d(1, 1, 2, 2)(torch.ones(1, 1, 3, 3), output_size=(9, 9))),
    (RuntimeError, "pad should be at most half of effective kernel size", lambda: F.max_pool2d(torch.ones(1, 1, 4, 4), 2, padding=2)),
    (RuntimeError, "Output size is too small", lambda: F.avg_pool2d(torch.ones(1, 1, 2, 2), 3)),
    (ValueError, "only one of size or scale_factor", lambda: F.interpolate(torch.ones(1, 1, 2, 2), 4, 2)),
    (NotImplementedError, "Only 3D, 4D and 5D input", lambda: F.interpolate(torch.ones(1, 1, 2), 4, mode="bilinear")),
    (ValueError, "align_corners option can only be set", lambda: F.interpolate(torch.ones(1, 1, 2), 4, align_corners=True)),
    (RuntimeError, "square of upscale_factor", lambda: F.pixel_shuffle(torch.ones(1, 3, 2, 2), 2)),
    (RuntimeError, "divisible by the product of kernel_size", lambda: F.fold(torch.ones(1, 5, 4), 3, 2)),
    (RuntimeError, "Expected 10, got 5", lambda: nn.LSTM(10, 4)(torch.ones(2, 1, 5))),
    (RuntimeError, r"Expected hidden size \(1, 3, 4\), got \[1, 2, 4\]", lambda: nn.GRU(5, 4)(torch.ones(2, 3, 5), torch.ones(1, 2, 4))),
    (ValueError, "LSTM: Expected input to be 2D or 3D, got 4D", lambda: nn.LSTM(5, 4)(torch.ones(2, 1, 1, 5))),
    (ValueError, "hidden_size must be greater than zero", lambda: nn.RNN(5, 0)),
    (AssertionError, "embed_dim must be divisible by num_heads", lambda: nn.MultiheadAttention(5, 2)),
    (AssertionError, "expecting embedding dimension of 4, but got 6", lambda: nn.MultiheadAttention(4, 2)(*[torch.ones(2, 1, 6)] * 3)),
    (RuntimeError, "attn_mask is torchlet.Size", lambda: nn.MultiheadAttention(4, 2)(*[torch.ones(2, 4)] * 3, attn_mask=torch.ones(3, 3))),
    (RuntimeError, "attn_mask should not be set when is_causal", lambda: attend((2, 4), (2, 4), (2, 4), (2, 2), is_causal=True)),
    (RuntimeError, "must divide the number of heads", lambda: attend((1, 4, 2, 3), (1, 3, 2, 3), (1, 3, 2, 3), enable_gqa=True)),
    (RuntimeError, "src and tgt must be equal", lambda: nn.Transformer(4, 2, 1, 1)(torch.ones(2, 1, 4), torch.ones(2, 2, 4))),
    (ValueError, "offsets has to be a 1D Tensor but got None", lambda: nn.EmbeddingBag(3, 2)(torch.tensor([0, 1]))),
    (ValueError, "Muon only supports 2D parameters", lambda: torch.optim.Muon([nn.Parameter(torch.ones(3))])),
    (ValueError, "Invalid rho value: 2", lambda: torch.optim.Adadelta([nn.Parameter(torch.ones(3))], rho=2)),
    (RuntimeError, "must be sorted in decreasing order", lambda: pack_padded_sequence(torch.ones(3, 2, 1), [1, 3])),
    (RuntimeError, "greater than 0", lambda: pack_padded_sequence(torch.ones(3, 2, 1), [3, 0])),
    (ValueError, "expected 4D input", lambda: nn.BatchNorm2d(3)(torch.ones(2, 3))),
]


@pytest.mark.parametrize("kind, words, make", BAD, ids=[words[:40] for _, words, _ in BAD])
def test_bad_input_gets_the_exception_and_the_reason(kind: Any, words: str, make: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=words):
        make()


def test_a_query_that_may_attend_to_nothing_gives_zeros_and_no_nan() -> None:
    q = torch.randn(1, 2, 4, requires_grad=True)
    out = F.scaled_dot_product_attention(q, q, q, torch.tensor([[True, False], [False, False]]))
    out.sum().backward()
    assert out[0, 1].tolist() == [0] * 4
    assert q.grad is not None and bool(torch.isfinite(q.grad).all())


# ------------------------------------------------------------------------------------------------ sequences


def test_sequences_go_through_packing_unchanged() -> None:
    parts = [torch.randn(n, 2) for n in (2, 4, 1)]
    packed = pack_sequence(parts, enforce_sorted=False)
    assert packed.batch_sizes.tolist() == [3, 2, 1, 1]
    assert packed.sorted_indices is not None and packed.sorted_indices.tolist() == [1, 0, 2]
    for got, part in zip(unpack_sequence(packed), parts):
        assert torch.equal(got, part)
    padded, lengths = pad_packed_sequence(packed, batch_first=True, padding_value=-1.0, total_length=5)
    assert padded.shape == (3, 5, 2) and lengths.tolist() == [2, 4, 1] and padded[2, 1:].eq(-1).all()
    assert pad_sequence(parts, True, 7.0, "left")[2, :3].eq(7).all()


def test_a_packed_lstm_gives_what_each_sequence_alone_gives() -> None:
    lstm = nn.LSTM(2, 3, bidirectional=True)
    parts = [torch.randn(n, 2) for n in (2, 4, 1)]
    out, (h, _) = lstm(pack_sequence(parts, enforce_sorted=False))
    for k, (got, part) in enumerate(zip(unpack_sequence(out), parts)):
        alone, (last, _) = lstm(part)
        assert torch.allclose(got, alone, atol=1e-6) and torch.allclose(h[:, k], last, atol=1e-6)


# ------------------------------------------------------------------------------------------------ modules


def test_weight_norm_trains_norm_and_direction_and_can_be_removed() -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    parametrizations.weight_norm(layer)
    assert type(layer).__name__ == "ParametrizedLinear" and parametrize.is_parametrized(layer, "weight")
    assert [n for n, _ in layer.named_parameters()] == ["bias", "parametrizations.weight.original0", "parametrizations.weight.original1"]
    assert torch.allclose(layer.weight, before)
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.parametrizations.weight.original0.grad.shape == (2, 1)
    layer.weight = before * 2
    assert torch.allclose(copy.deepcopy(layer).weight, before * 2)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Linear and torch.allclose(layer.weight, before * 2) and isinstance(layer.weight, nn.Parameter)


def test_old_weight_norm_has_its_names_and_can_be_removed() -> None:
    layer = nn.utils.weight_norm(nn.Linear(3, 2))
    assert list(layer.state_dict()) == ["bias", "weight_g", "weight_v"]
    with torch.no_grad():
        layer.weight_g.mul_(2)
    assert torch.allclose(layer(torch.eye(3)) - layer.bias, 2 * layer.weight_v.T)
    assert list(nn.utils.remove_weight_norm(layer).state_dict()) == ["bias", "weight"]


def test_spectral_norm_brings_the_largest_singular_value_to_one() -> None:
    layer = parametrizations.spectral_norm(nn.Linear(6, 4), n_power_iterations=20)
    layer(torch.ones(1, 6))
    assert np.linalg.svd(layer.weight.detach().numpy())[1][0] == pytest.approx(1, abs=1e-3)


def test_a_lazy_layer_keeps_its_parameter_objects() -> None:
    layer = nn.LazyLinear(3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with pytest.raises(RuntimeError, match="uninitialized parameter"):
        layer.weight.shape
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert type(layer) is nn.Linear and layer.weight.shape == (3, 4) and layer.in_features == 4
    other = nn.LazyLinear(3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)


def test_a_hook_of_all_modules_sees_each_call_until_it_is_removed() -> None:
    seen: list[str] = []
    handle = nn.module.register_module_forward_hook(lambda m, args, out: seen.append(type(m).__name__))
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model(torch.ones(1, 2))
    handle.remove()
    model(torch.ones(1, 2))
    assert seen == ["Linear", "ReLU", "Sequential"]


def test_a_module_compiles_in_place_and_can_still_be_copied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    x = torch.ones(3, 2)
    expected = model(x)
    model.compile()
    assert torch.allclose(model(x), expected) and torch.allclose(copy.deepcopy(model)(x), expected)


def test_data_parallel_wrappers_pass_through_and_prefix_names() -> None:
    model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    assert list(model.state_dict()) == ["module.weight", "module.bias"]
    with model.no_sync():
        model(torch.ones(1, 2)).sum().backward()
    assert model.module.weight.grad is not None


# ------------------------------------------------------------------------------------------------ optimizers


def test_optimizer_hooks_run_around_step_and_state_dict() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append("pre"))
    handle = optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append("post"))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "more": 1})
    p.grad = torch.ones(2)
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert seen == ["pre", "post", "pre"]
    assert optimizer.state_dict()["more"] == 1
    assert p.tolist() == pytest.approx([0.8, 0.8])


def test_optimizer_state_survives_a_round_trip() -> None:
    for make in (torch.optim.RMSprop, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.Rprop, torch.optim.Adagrad):
        values = []
        for reload in (False, True):
            p = nn.Parameter(torch.tensor([1.0, -2.0]))
            optimizer = make([p])
            for _ in range(4):
                p.grad = p.detach() * 2
                optimizer.step()
                if reload:
                    state = optimizer.state_dict()
                    optimizer = make([p])
                    optimizer.load_state_dict(state)
            values.append(p.tolist())
        assert values[0] == values[1], make.__name__


def test_averaged_model_and_its_schedule_and_statistics() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    mean, moving = AveragedModel(model), AveragedModel(model, avg_fn=get_ema_avg_fn(0.5))
    for value in (1.0, 2.0, 3.0):
        with torch.no_grad():
            model[0].weight.fill_(value)
        mean.update_parameters(model)
        moving.update_parameters(model)
    assert mean.module[0].weight.tolist() == [[2, 2]] * 2 and moving.module[0].weight.tolist() == [[2.25, 2.25]] * 2
    update_bn([torch.randn(8, 2) + 5], mean)
    assert int(mean.module[1].num_batches_tracked) == 1 and mean.module[1].momentum == 0.1
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = SWALR(optimizer, 0.5, anneal_epochs=2, anneal_strategy="linear")
    rates = []
    for _ in range(3):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert rates == pytest.approx([0.75, 0.5, 0.5])
