"""The rows in torchlet: each whole step is one compiled function."""

from functools import partial

import torchlet
import torchlet.nn.functional as F
from rows import data
from torchlet import nn

VERSIONS = {"torchlet": torchlet.__version__}


def wait(result):
    """Nothing is left running after a call on the CPU."""


def number(result):
    return data.checksum(result.detach().numpy())


def build(layers, activation):
    """The model with the given weights."""
    parts = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        with torchlet.no_grad():
            linear.weight.copy_(torchlet.tensor(weight))
            linear.bias.copy_(torchlet.tensor(bias))
        parts += [linear, activation()]
    return nn.Sequential(*parts[:-1])


def training(arrays, activation, loss_function, optimizer):
    """One call is one training step; it returns the loss before the update."""
    x, y, layers = arrays
    x, y, model = torchlet.tensor(x), torchlet.tensor(y), build(layers, activation)
    opt = optimizer(model.parameters())

    @torchlet.compile
    def step(x, y):
        opt.zero_grad()
        loss = loss_function(model(x), y)
        loss.backward()
        opt.step()
        return loss

    return lambda: step(x, y)


def linreg():
    return training(data.line(), nn.ReLU, F.mse_loss, partial(torchlet.optim.SGD, lr=0.01))


def tiny():
    return training(data.tiny(), nn.Tanh, F.mse_loss, partial(torchlet.optim.SGD, lr=0.05))


def mlp_sgd():
    return training(data.mlp(), nn.ReLU, F.cross_entropy, partial(torchlet.optim.SGD, lr=0.05))


def mlp_adamw():
    return training(data.mlp(), nn.ReLU, F.cross_entropy, partial(torchlet.optim.AdamW, lr=1e-3))


def pointwise(function, *shape):
    """One call computes `function` of an array."""
    x, compiled = torchlet.tensor(data.values(*shape)), torchlet.compile(function)

    def step():
        with torchlet.no_grad():
            return compiled(x)

    return step


def chain(x):
    return torchlet.tanh(1.5 * x + 0.5) * torchlet.sigmoid(x) + x


def chain_1e5():
    return pointwise(chain, 10**5)


def chain_1e7():
    return pointwise(chain, 10**7)


def softmax():
    return pointwise(lambda x: torchlet.softmax(x, -1), 4096, 1024)
