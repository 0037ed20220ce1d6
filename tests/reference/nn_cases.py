"""What is recorded from PyTorch and compared: modules, functions and optimizers as expressions over `nn`, `F` and `torch`."""

import json
from pathlib import Path
from typing import Any

import numpy as np

# Each case: how to make the module, the inputs, and how to call it (`m(*x)` by default).
MODULES = """
nn.Conv1d(4, 6, 3, padding="same", padding_mode="replicate") | n(2,4,9)
nn.Conv1d(4, 6, 3, 2, 1, 2, 2) | n(4,9)
nn.Conv2d(4, 6, 3, padding=1) | n(2,4,6,7)
nn.Conv2d(4, 6, (3, 2), 2, 1, bias=False, padding_mode="circular") | n(2,4,6,7)
nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect", groups=4) | n(2,4,6,7)
nn.Conv3d(4, 6, 2, groups=2) | n(2,4,4,5,3)
nn.ConvTranspose1d(4, 6, 3) | n(2,4,9)
nn.ConvTranspose2d(4, 6, 3, 2, 1, 1) | n(2,4,6,7)
nn.ConvTranspose2d(4, 6, 3, 2, 1) | n(2,4,6,7) | m(x[0], output_size=(12, 14))
nn.ConvTranspose2d(4, 6, (2, 3), groups=2, dilation=2) | n(2,4,6,7)
nn.ConvTranspose3d(4, 2, 2, 2) | n(2,4,4,5,3)
nn.MaxPool1d(2) | n(2,4,9)
nn.MaxPool2d(3, 2, 1, ceil_mode=True) | n(2,4,6,7)
nn.MaxPool2d(2) | n(2,4,6,7) | m(x[0].relu())
nn.MaxPool2d(2, return_indices=True) | n(2,4,6,7)
nn.MaxPool3d(2) | n(2,4,4,5,3)
nn.AvgPool1d(2) | n(2,4,9)
nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False) | n(2,4,6,7)
nn.AvgPool3d(2) | n(2,4,4,5,3)
nn.AdaptiveAvgPool1d(4) | n(2,4,9)
nn.AdaptiveAvgPool2d(1) | n(2,4,6,7)
nn.AdaptiveAvgPool2d((4, None)) | n(2,4,6,7)
nn.AdaptiveAvgPool3d(2) | n(2,4,4,5,3)
nn.AdaptiveMaxPool2d((3, 2)) | n(2,4,6,7)
nn.AdaptiveMaxPool2d((4, 5), return_indices=True) | n(2,4,6,7)
nn.LPPool2d(2, 2) | n(2,4,6,7)
nn.MaxUnpool2d(2) | n(2,4,2,2), np.array([[[[0, 3], [9, 10]]] * 4] * 2)
nn.BatchNorm1d(4) | n(2,4,9)
nn.BatchNorm2d(4, momentum=None) | n(2,4,6,7)
nn.BatchNorm2d(4).eval() | n(2,4,6,7)
nn.BatchNorm3d(4, affine=False) | n(2,4,4,5,3)
nn.InstanceNorm1d(4, affine=True) | n(2,4,9)
nn.InstanceNorm2d(4, track_running_stats=True) | n(2,4,6,7)
nn.GroupNorm(2, 4) | n(2,4,6,7)
nn.LayerNorm([6, 7]) | n(2,4,6,7)
nn.RMSNorm(7) | n(2,4,6,7)
nn.LocalResponseNorm(3) | n(2,4,6,7)
nn.ZeroPad2d((1, -1, 0, 2)) | n(2,4,6,7)
nn.ConstantPad1d((1, 2), 3.5) | n(2,4,9)
nn.ReflectionPad2d((1, 2, 2, 1)) | n(2,4,6,7)
nn.ReplicationPad3d(1) | n(2,4,4,5,3)
nn.CircularPad2d(2) | n(2,4,6,7)
nn.PixelShuffle(2) | n(2,4,6,7)
nn.PixelUnshuffle(2) | n(2,4,6,8)
nn.ChannelShuffle(2) | n(2,4,6,7)
nn.Upsample(scale_factor=2) | n(2,4,6,7)
nn.Upsample(scale_factor=1.5) | n(2,4,6,7)
nn.Upsample(size=(5, 11), mode="bilinear") | n(2,4,6,7)
nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True) | n(2,4,6,7)
nn.Upsample(scale_factor=(1.7, 0.6), mode="bicubic") | n(2,4,6,7)
nn.Upsample(size=13, mode="linear") | n(2,4,9)
nn.Upsample(scale_factor=2, mode="trilinear") | n(1,2,3,4,2)
nn.Upsample(size=(4, 9), mode="area") | n(2,4,6,7)
nn.Upsample(size=(4, 9), mode="nearest-exact") | n(2,4,6,7)
nn.Unfold(3, padding=1, stride=2) | n(2,4,6,7)
nn.Fold((6, 7), 3, padding=1) | n(2,36,42)
nn.Softmax2d() | n(2,4,3,3)
nn.RReLU().eval() | n(5,4)
nn.Bilinear(3, 5, 4) | n(7,3), n(7,5)
nn.CosineSimilarity() | n(7,3), n(7,3)
nn.PairwiseDistance() | n(7,3), n(7,3)
nn.EmbeddingBag(10, 4) | np.array([[1, 2, 3], [4, 4, 9]])
nn.EmbeddingBag(10, 4, mode="sum") | np.array([1, 2, 3, 4, 4, 9]), np.array([0, 2, 2, 5])
nn.EmbeddingBag(10, 4, mode="mean", padding_idx=4) | np.array([1, 2, 3, 4, 4, 9]), np.array([0, 2, 2, 5])
nn.EmbeddingBag(10, 4, mode="max") | np.array([1, 2, 3, 4, 4, 9]), np.array([0, 2, 2, 5])
nn.SoftMarginLoss() | n(5,3), np.sign(n(5,3)).astype(int)
nn.MultiMarginLoss(p=2, margin=0.5) | n(5,3), np.array([0, 1, 2, 1, 0])
nn.MultiLabelMarginLoss() | n(2,4), np.array([[3, 0, -1, 1], [1, -1, 0, 2]])
nn.MultiLabelSoftMarginLoss(reduction="none") | n(5,3), (n(5,3) > 0).astype("f4")
nn.CTCLoss() | n(6,2,5), np.array([[1, 2, 2], [3, 1, 4]]) | m(x[0].log_softmax(2), x[1], (6, 5), (3, 2))
nn.LSTM(4, 6) | n(5,3,4)
nn.LSTM(4, 6, 2, bidirectional=True, batch_first=True) | n(5,3,4)
nn.LSTM(4, 6, 2, bias=False) | n(5,3,4), n(2,3,6), n(2,3,6) | m(x[0], (x[1], x[2]))
nn.LSTM(4, 6, proj_size=3, bidirectional=True) | n(4,3,4)
nn.GRU(4, 6, 2, bidirectional=True) | n(5,3,4), n(4,3,6)
nn.GRU(4, 6) | n(5,4)
nn.RNN(4, 6, 2, nonlinearity="relu") | n(5,3,4)
nn.LSTM(4, 6, bidirectional=True) | n(5,3,4) | packed(nn, m, x[0])
nn.GRU(4, 6, 2) | n(5,3,4) | packed(nn, m, x[0])
nn.LSTMCell(4, 6) | n(3,4)
nn.GRUCell(4, 6) | n(3,4), n(3,6)
nn.RNNCell(4, 6) | n(3,4)
nn.MultiheadAttention(8, 2) | n(5,3,8), n(7,3,8), n(7,3,8)
nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True) | n(5,3,8) | m(x[0], x[0], x[0])
nn.MultiheadAttention(8, 2, kdim=4, vdim=5, bias=False) | n(5,3,8), n(7,3,4), n(7,3,5) | m(*x, need_weights=False)
nn.TransformerEncoderLayer(8, 2, 16, 0.0) | n(5,3,8), hidden | m(x[0], src_key_padding_mask=x[1])
nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True) | n(3,5,8)
nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0), 2, nn.LayerNorm(8)) | n(5,3,8), later | m(x[0], mask=x[1], is_causal=True)
nn.TransformerDecoderLayer(8, 2, 16, 0.0) | n(5,3,8), n(4,3,8)
nn.Transformer(8, 2, 1, 1, 16, 0.0) | n(5,3,8), n(4,3,8) | m(*x, tgt_mask=nn.Transformer.generate_square_subsequent_mask(4))
nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)) | n(5,4)
nn.utils.weight_norm(nn.Conv1d(4, 3, 2)) | n(2,4,5)
nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)) | n(5,4)
nn.utils.spectral_norm(nn.Linear(4, 3)) | n(5,4)
nn.LazyLinear(3) | n(5,4)
nn.LazyConv2d(3, 2) | n(2,4,5,5)
nn.LazyBatchNorm1d() | n(5,4)
nn.Identity() | n(2,3,5,4), n(2,3,6,4), n(2,3,6,2) | F.scaled_dot_product_attention(*x)
nn.Identity() | n(2,3,5,4), n(2,3,5,4), n(2,3,5,2) | F.scaled_dot_product_attention(*x, is_causal=True)
nn.Identity() | n(2,4,5,4), n(2,2,5,4), n(2,2,5,4) | F.scaled_dot_product_attention(*x, scale=0.3, enable_gqa=True)
nn.Identity() | n(2,3,5,4), n(2,3,5,4), n(2,3,5,4), n(1,5,5) | F.scaled_dot_product_attention(*x)
nn.Identity() | n(2,3,5,4), n(2,3,5,4), n(2,3,5,4), ~later | F.scaled_dot_product_attention(*x)
nn.Identity() | n(2,3,5,6), n(2,4,4,2) | F.grid_sample(*x, align_corners=False)
nn.Identity() | n(2,3,5,6), n(2,4,4,2) | F.grid_sample(*x, padding_mode="reflection", align_corners=True)
nn.Identity() | n(2,3,5,6), n(2,4,4,2) | F.grid_sample(x[0], x[1].detach(), "nearest", "border", align_corners=False)
nn.Identity() | n(2,3,5,6), n(2,4,4,2) | F.grid_sample(*x, "bicubic", align_corners=False)
nn.Identity() | n(2,2,3) | F.affine_grid(x[0], (2, 3, 4, 5), align_corners=False)
nn.Identity() | n(2,3,8,9) | F.interpolate(x[0], (5, 4), mode="bilinear", antialias=True)
nn.Identity() | n(2,3,8,9) | F.interpolate(x[0], (5, 4), mode="bicubic", antialias=True)
"""

OPTIMIZERS = """
RMSprop(p)
RMSprop(p, centered=True, momentum=0.9, weight_decay=0.1)
Adagrad(p, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.5)
Adadelta(p, weight_decay=0.1, lr=0.5)
Adamax(p, weight_decay=0.1)
NAdam(p)
NAdam(p, decoupled_weight_decay=True, weight_decay=0.1)
RAdam(p, lr=0.1)
Rprop(p)
ASGD(p, t0=3, weight_decay=0.1)
Muon(p, lr=0.1)
LBFGS(p, max_iter=4)
LBFGS(p, line_search_fn="strong_wolfe", max_iter=4)
"""


def lines(table: str) -> list[tuple[str, ...]]:
    """The cases of a table, each as its parts."""
    return [tuple(part.strip() for part in line.split(" | ")) for line in table.strip().splitlines()]


def inputs(text: str) -> list[Any]:
    """The input arrays that an expression describes; normal numbers are the same for the same expression."""
    rng = np.random.default_rng(len(text))

    def n(*shape: int) -> Any:
        return rng.standard_normal(shape).astype("f4")

    later = np.triu(np.ones((5, 5), bool), 1)
    hidden = np.arange(5) >= np.array([[3], [5], [4]])
    return list(eval(f"[{text}]", {"n": n, "np": np, "later": later, "hidden": hidden}))


def fill(state: dict[str, Any]) -> dict[str, Any]:
    """Values for a state dict that both sides make alike."""
    rng = np.random.default_rng(0)
    out = {}
    for name, value in state.items():
        a = value if isinstance(value, np.ndarray) else value.detach().numpy()
        drawn = rng.uniform(0.5, 2, a.shape) if "var" in name else rng.uniform(0.2, 1, a.shape) * np.sign(rng.uniform(-1, 2, a.shape))
        out[name] = drawn.astype(a.dtype) if a.dtype.kind == "f" else np.zeros(a.shape, a.dtype)
    return out


def packed(nn: Any, m: Any, x: Any) -> Any:
    """A recurrent layer over sequences of lengths 3, 5 and 2."""
    out, states = m(nn.utils.rnn.pack_padded_sequence(x, [3, 5, 2], enforce_sorted=False))
    return nn.utils.rnn.pad_packed_sequence(out, padding_value=1.5), states


def flat(value: Any) -> list[Any]:
    """The tensors in nested tuples."""
    return [t for v in value if v is not None for t in flat(v)] if isinstance(value, tuple | list) else [value]


def weights(shape: tuple[int, ...]) -> Any:
    """What an output is multiplied by before it is summed, so that each element has a gradient of its own."""
    return np.cos(np.arange(np.prod(shape, dtype=int))).astype("f4").reshape(shape)


def make(torch: Any, case: tuple[str, ...]) -> tuple[Any, list[Any]]:
    """The module with known values, and the inputs as tensors that want gradients where they can."""
    module = eval(case[0], {"nn": torch.nn, "torch": torch})
    arrays = inputs(case[1])
    if "Lazy" in case[0]:
        module(*[torch.tensor(a) for a in arrays])
    state = fill({k: v.detach().numpy() for k, v in module.state_dict().items()})
    module.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    return module, [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]


def run(torch: Any, case: tuple[str, ...], module: Any, x: list[Any]) -> list[Any]:
    """One forward and backward pass: the outputs."""
    call = case[2] if len(case) > 2 else "m(*x)"
    outs = flat(eval(call, {"m": module, "x": x, "nn": torch.nn, "F": torch.nn.functional, "packed": packed}))
    total = None
    for o in outs:
        if o.dtype.is_floating_point:
            part = (o * torch.tensor(weights(tuple(o.shape)))).sum()
            total = part if total is None else total + part
    total.backward()
    return outs


def results(outs: list[Any], module: Any, x: list[Any]) -> dict[str, Any]:
    """Everything that is compared, by name."""
    found = {f"out{i}": o.detach().numpy() for i, o in enumerate(outs)}
    found |= {f"x{i}": t.grad.numpy() for i, t in enumerate(x) if t.requires_grad and t.grad is not None}
    found |= {f"grad {k}": p.grad.numpy() for k, p in module.named_parameters() if p.grad is not None}
    return found | {k: b.numpy() for k, b in module.named_buffers()}


def train(torch: Any, expression: str, steps: int = 6, compiled: Any = None) -> list[Any]:
    """The parameters of a small network after some steps of an optimizer."""
    rng = np.random.default_rng(5)
    x, y, first, second = (torch.tensor(rng.standard_normal(s).astype("f4")) for s in ((16, 4), (16, 3), (4, 5), (5, 3)))
    p = [torch.nn.Parameter(first), torch.nn.Parameter(second)]
    optimizer = eval("optim." + expression, {"optim": torch.optim, "p": p})

    def closure() -> Any:
        optimizer.zero_grad()
        loss = ((torch.tanh(x @ p[0]) @ p[1] - y) ** 2).mean()
        loss.backward()
        return loss

    def step() -> None:
        if "LBFGS" in expression:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()

    step = step if compiled is None else compiled(step)
    for _ in range(steps):
        step()
    return [t.detach().numpy() for t in p]


def save(path: Path, found: dict[str, Any]) -> None:
    """Write named arrays and texts as one index and one run of bytes: a zip entry for each would be mostly names."""
    index, data = {}, b""
    for name, value in found.items():
        if isinstance(value, str):
            index[name] = value
        else:
            index[name] = [value.dtype.str, value.shape, len(data)]
            data += value.tobytes()
    np.savez_compressed(path, index=np.frombuffer(json.dumps(index).encode(), np.uint8), data=np.frombuffer(data, np.uint8))


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote."""
    with np.load(path) as archive:
        index, data = json.loads(archive["index"].tobytes()), archive["data"].tobytes()
    out: dict[str, Any] = {}
    for name, entry in index.items():
        if isinstance(entry, str):
            out[name] = entry
        else:
            kind, shape, start = entry
            out[name] = np.frombuffer(data, kind, int(np.prod(shape)), start).reshape(shape)
    return out
