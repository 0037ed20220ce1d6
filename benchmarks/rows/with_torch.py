"""The rows in eager PyTorch, with the fastest of its optimizer implementations."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rows import data, transformer
from rows.best import fastest

torch.set_num_threads(2)
VERSIONS = {"torch": torch.__version__}


def wait(result):
    """Nothing is left running after a call on the CPU."""


def number(result):
    if isinstance(result, tuple):
        return sum(map(number, result))
    return data.checksum(result.detach().numpy())


def build(layers, activation):
    """The model with the given weights."""
    parts = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(weight))
            linear.bias.copy_(torch.tensor(bias))
        parts += [linear, activation()]
    return nn.Sequential(*parts[:-1])


def training(arrays, activation, loss_function, optimizer, forward=lambda f: f, update=lambda f: f):
    """One call is one training step; it returns the loss before the update. `forward` and `update` compile their parts."""
    x, y, layers = arrays
    x, y, model = torch.tensor(x), torch.tensor(y), build(layers, activation)
    opt = optimizer(model.parameters())
    loss_of = forward(lambda x, y: loss_function(model(x), y))
    opt_step = update(opt.step)

    def step():
        opt.zero_grad()
        loss = loss_of(x, y)
        loss.backward()
        opt_step()
        return loss.detach()

    return step


def candidates(arrays, activation, loss_function, optimizer):
    """The fastest of PyTorch's optimizer implementations."""
    make = partial(training, arrays, activation, loss_function)
    return fastest({
        "fused": lambda: make(partial(optimizer, fused=True)),
        "foreach": lambda: make(partial(optimizer, foreach=True)),
        "default": lambda: make(optimizer),
    })


def linreg(train=candidates):
    return train(data.line(), nn.ReLU, F.mse_loss, partial(torch.optim.SGD, lr=0.01))


def tiny(train=candidates):
    return train(data.tiny(), nn.Tanh, F.mse_loss, partial(torch.optim.SGD, lr=0.05))


def mlp_large(train=candidates):
    return train(data.large(), nn.ReLU, F.cross_entropy, partial(torch.optim.SGD, lr=0.05))


def mlp_sgd(train=candidates):
    return train(data.mlp(), nn.ReLU, F.cross_entropy, partial(torch.optim.SGD, lr=0.05))


def mlp_adamw(train=candidates):
    return train(data.mlp(), nn.ReLU, F.cross_entropy, partial(torch.optim.AdamW, lr=1e-3))


def pointwise(function, *shape):
    """One call computes `function` of an array."""
    x = torch.tensor(data.values(*shape))

    def step():
        with torch.no_grad():
            return function(x)

    return step


def chain(x):
    return torch.tanh(1.5 * x + 0.5) * torch.sigmoid(x) + x


def softmax_rows(x):
    return torch.softmax(x, -1)


def chain_1e5():
    return pointwise(chain, 10**5)


def chain_1e7():
    return pointwise(chain, 10**7)


def softmax():
    return pointwise(softmax_rows, 4096, 1024)


def gelu_chain(x, y):
    return F.gelu(x * y + x, approximate="tanh") * y


def differentiated(function, *arrays, wanted=None):
    """One call computes the gradients of `function` of arrays for the first `wanted` of them; the last array is that of the result."""
    *inputs, g = [torch.tensor(a) for a in arrays]
    leaves = [x.requires_grad_() for x in inputs[:wanted]]

    def step():
        return torch.autograd.grad(function(*inputs), leaves, g)

    return step


def layer_norm_rows(x, scale, shift):
    return F.layer_norm(x, x.shape[-1:], scale, shift)


def rms_norm_rows(x, scale):
    return F.rms_norm(x, x.shape[-1:], scale, 1e-5)


def vocabulary_loss(hidden, weight, labels):
    return F.cross_entropy(hidden @ weight.T, labels)


def gelu_1e7(prepare=lambda f: f):
    x, y = (torch.tensor(data.values(2, 10**7)[i]) for i in range(2))
    function = prepare(gelu_chain)

    def step():
        with torch.no_grad():
            return function(x, y)

    return step


def chain_fb_1e7(prepare=lambda f: f):
    x, g = data.values(2, 10**7)
    return differentiated(prepare(chain), x, g)


def gelu_fb_1e7(prepare=lambda f: f):
    return differentiated(prepare(gelu_chain), *data.values(3, 10**7))


def softmax_fb(prepare=lambda f: f):
    x, _, _, g = data.norm(4096, 1024)
    return differentiated(prepare(softmax_rows), x, g)


def layer_norm_fb(prepare=lambda f: f):
    return differentiated(prepare(layer_norm_rows), *data.norm(4096, 1024))


def rms_norm_fb(prepare=lambda f: f):
    x, scale, _, g = data.norm(4096, 1024)
    return differentiated(prepare(rms_norm_rows), x, scale, g)


def cross_entropy_fb(prepare=lambda f: f):
    return differentiated(prepare(F.cross_entropy), *data.logits(), np.float32(1), wanted=1)


def linear_cross_entropy(prepare=lambda f: f):
    return differentiated(prepare(vocabulary_loss), *data.vocabulary(), np.float32(1), wanted=2)


def adamw_1e7(make=None):
    def alone(update=lambda f: f, **options):
        weight = torch.tensor(data.values(10**7), requires_grad=True)
        weight.grad = torch.tensor(data.values(10**7)[::-1].copy())
        opt = torch.optim.AdamW([weight], **options)
        run = update(opt.step)

        def step():
            run()
            return weight

        return step

    make = make or (lambda alone: {"fused": partial(alone, fused=True), "foreach": partial(alone, foreach=True)})
    return fastest(make(alone))


class Convolutions(nn.Module):
    """Two convolutions with pooling, one linear layer."""

    def __init__(self, weights):
        super().__init__()
        self.conv1, self.conv2, self.out = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1), nn.Linear(64 * 7 * 7, 10)
        with torch.no_grad():
            for part, (weight, bias) in zip((self.conv1, self.conv2, self.out), weights, strict=True):
                part.weight.copy_(torch.tensor(weight))
                part.bias.copy_(torch.tensor(bias))

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        return self.out(F.max_pool2d(torch.relu(self.conv2(x)), 2).flatten(1))


class Language(nn.Module):
    """An LSTM between an embedding and an output layer; returns the logits of all steps."""

    def __init__(self, weights):
        super().__init__()
        words, width = weights["embedding"].shape
        self.embedding, self.lstm, self.out = nn.Embedding(words, width), nn.LSTM(width, width), nn.Linear(width, words)
        places = [self.embedding.weight, *self.lstm.parameters(), self.out.weight, self.out.bias]
        with torch.no_grad():
            for place, weight in zip(places, weights.values(), strict=True):
                place.copy_(torch.tensor(weight))

    def forward(self, tokens):
        return self.out(self.lstm(self.embedding(tokens))[0])


def language_loss(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def train_module(model, x, y, loss_function, forward=lambda f: f, **options):
    """One call is one SGD step of a module; it returns the loss before the update."""
    x, y = torch.tensor(x), torch.tensor(y)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, **options)
    loss_of = forward(lambda x, y: loss_function(model(x), y))

    def step():
        opt.zero_grad()
        loss = loss_of(x, y)
        loss.backward()
        opt.step()
        return loss.detach()

    return step


def cnn(forward=lambda f: f):
    x, y, weights = data.images()
    return train_module(Convolutions(weights), x, y, F.cross_entropy, forward, foreach=True)


def lstm(forward=lambda f: f):
    x, y, weights = data.language()
    return train_module(Language(weights), x, y, language_loss, forward, foreach=True)


def batch_1(prepare=lambda f: f):
    x, _, layers = data.mlp()
    x, model = torch.tensor(x[:1]), build(layers, nn.ReLU)
    function = prepare(lambda x: model(x))

    def step():
        with torch.no_grad():
            return function(x)

    return step


def many_ops(count, x):
    for _ in range(count):
        x = x * 0.9 + 0.1 if count > 1 else x + 0.1
    return x


def tiny_ops(count, prepare=lambda f: f):
    x, function = torch.tensor(data.values(8)), prepare(partial(many_ops, (count + 1) // 2))

    def step():
        with torch.no_grad():
            return function(x)

    return step


def ops_1(prepare=lambda f: f):
    return tiny_ops(1, prepare)


def ops_10(prepare=lambda f: f):
    return tiny_ops(10, prepare)


def ops_100(prepare=lambda f: f):
    return tiny_ops(100, prepare)


def lengths_20(prepare=lambda f: f):
    model = build(data.layers((256, 512, 256)), nn.GELU)
    function = prepare(lambda x: torch.softmax(model(F.layer_norm(x, (256,))) + x, -1).mean(0))
    inputs = [torch.tensor(data.values(n, 256)) for n in data.LENGTHS]

    def step():
        with torch.no_grad():
            return torch.stack([function(x) for x in inputs])

    return step


TRANSFORMER = transformer.parts(torch)


def attention(name, prepare):
    """One call is a forward pass without gradients."""
    q, k, v = map(torch.tensor, data.heads()[:3])
    function = prepare(getattr(TRANSFORMER, name))

    def step():
        with torch.no_grad():
            return function(q, k, v)

    return step


def sdpa_causal(prepare=lambda f: f):
    return attention("sdpa_causal", prepare)


def sdpa_full(prepare=lambda f: f):
    return attention("sdpa_full", prepare)


def naive_causal(prepare=lambda f: f):
    return attention("naive_causal", prepare)


def naive_full(prepare=lambda f: f):
    return attention("naive_full", prepare)


def with_result(function, *arrays):
    """One call computes `function` of arrays and the gradients for them; the last array is the gradient of the result."""
    *inputs, g = [torch.tensor(a) for a in arrays]
    leaves = [x.requires_grad_() for x in inputs]

    def step():
        out = function(*leaves)
        return out.detach(), *torch.autograd.grad(out, leaves, g)

    return step


def sdpa_causal_fb(prepare=lambda f: f):
    return with_result(prepare(TRANSFORMER.sdpa_causal), *data.heads())


def sdpa_full_fb(prepare=lambda f: f):
    return with_result(prepare(TRANSFORMER.sdpa_full), *data.heads())


def naive_causal_fb(prepare=lambda f: f):
    return with_result(prepare(TRANSFORMER.naive_causal), *data.heads())


def naive_full_fb(prepare=lambda f: f):
    return with_result(prepare(TRANSFORMER.naive_full), *data.heads())


def gpt_block(prepare=lambda f: f):
    return with_result(prepare(TRANSFORMER.block), *data.block())


def train_gpt(optimizer, forward=lambda f: f, update=lambda f: f):
    """One call is one training step; it returns the loss before the update."""
    tokens, labels, weights = data.gpt()
    tokens, labels, model = torch.tensor(tokens), torch.tensor(labels), TRANSFORMER.GPT(weights)
    opt = optimizer(model.parameters(), lr=1e-3)
    loss_of, opt_step = forward(lambda x, y: TRANSFORMER.gpt_loss(model, x, y)), update(opt.step)

    def step():
        opt.zero_grad()
        loss = loss_of(tokens, labels)
        loss.backward()
        opt_step()
        return loss.detach()

    return step


def gpt():
    return fastest({
        "fused": lambda: train_gpt(partial(torch.optim.AdamW, fused=True)),
        "foreach": lambda: train_gpt(partial(torch.optim.AdamW, foreach=True)),
    })
