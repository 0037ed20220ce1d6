"""Some of the rows in tinygrad, each step under TinyJit. Its CPU backend calls clang, which must be on the PATH."""

import importlib.metadata
import os

import numpy as np

from rows import data

os.environ |= {"DEV": "CPU", "NUM_CPU_THREADS": "2"}  # read when it is imported

from tinygrad import Context, Device, Tensor, TinyJit, nn

VERSIONS = {"tinygrad": importlib.metadata.version("tinygrad")}


def wait(result):
    """Calls return before their work is done."""
    Device[Device.DEFAULT].synchronize()


def number(result):
    if isinstance(result, tuple):
        return sum(map(number, result))
    return data.checksum(result.numpy())


def pointwise(function, *arrays):
    """One call computes `function` of arrays."""
    inputs, compiled = [Tensor(a).realize() for a in arrays], TinyJit(lambda *inputs: function(*inputs).realize())
    return lambda: compiled(*inputs)


def differentiated(function, *arrays):
    """One call computes the gradients of `function` of arrays; the last array is that of the result."""
    inputs = [Tensor(a).realize() for a in arrays]

    @TinyJit
    def step(*inputs):
        *inputs, g = inputs
        grads = function(*inputs).gradient(*inputs, gradient=g)
        return tuple(grad.realize() for grad in grads)

    return lambda: step(*inputs)


def chain(x):
    return (1.5 * x + 0.5).tanh() * x.sigmoid() + x


def gelu_chain(x, y):
    return (x * y + x).gelu() * y


def softmax_rows(x):
    return x.softmax(-1)


def chain_1e5():
    return pointwise(chain, data.values(10**5))


def chain_1e7():
    return pointwise(chain, data.values(10**7))


def gelu_1e7():
    return pointwise(gelu_chain, *data.values(2, 10**7))


def softmax():
    return pointwise(softmax_rows, data.values(4096, 1024))


def chain_fb_1e7():
    return differentiated(chain, *data.values(2, 10**7))


def gelu_fb_1e7():
    return differentiated(gelu_chain, *data.values(3, 10**7))


def softmax_fb():
    x, _, _, g = data.norm(4096, 1024)
    return differentiated(softmax_rows, x, g)


def mlp_sgd():
    """One call is one training step; it returns the loss before the update."""
    x, y, layers = data.mlp()
    x, y = Tensor(x).realize(), Tensor(y.astype(np.int32)).realize()
    layers = [(Tensor(weight).realize(), Tensor(bias).realize()) for weight, bias in layers]
    opt = nn.optim.SGD([p for layer in layers for p in layer], lr=0.05)

    @TinyJit
    def step(x, y):
        with Context(TRAINING=1):
            opt.zero_grad()
            out = x
            for weight, bias in layers:
                out = (out if out is x else out.relu()) @ weight.T + bias
            loss = out.sparse_categorical_crossentropy(y).backward()
            return loss.realize(*opt.schedule_step())

    return lambda: step(x, y)
