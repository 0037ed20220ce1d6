"""The rows in eager PyTorch, with the fastest of its optimizer implementations."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from rows import data
from rows.best import fastest

torch.set_num_threads(2)
VERSIONS = {"torch": torch.__version__}


def wait(result):
    """Nothing is left running after a call on the CPU."""


def number(result):
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
