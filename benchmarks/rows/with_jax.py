"""The rows in JAX: each whole step is one jitted function, with the state donated."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rows import data

VERSIONS = {"jax": jax.__version__}


def wait(result):
    """Calls return before their work is done."""
    jax.block_until_ready(result)


def number(result):
    return data.checksum(np.asarray(result))


def forward(layers, x, activation):
    """The network's output; weights are (out, in) as in the other frameworks."""
    for weight, bias in layers[:-1]:
        x = activation(x @ weight.T + bias)
    weight, bias = layers[-1]
    return x @ weight.T + bias


def mean_squared_error(output, y):
    return jnp.mean((output - y) ** 2)


def cross_entropy(output, y):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(output), y[:, None], axis=1))


def sgd(lr):
    """(initial state, update) of plain SGD."""
    return lambda layers: (), lambda layers, grads, state: (jax.tree.map(lambda p, g: p - lr * g, layers, grads), state)


def adamw(lr, b1=0.9, b2=0.999, eps=1e-8, decay=0.01):
    """(initial state, update) of AdamW with PyTorch's defaults."""

    def start(layers):
        return jax.tree.map(jnp.zeros_like, layers), jax.tree.map(jnp.zeros_like, layers), jnp.zeros((), jnp.int32)

    def update(layers, grads, state):
        first, second, count = state
        count = count + 1
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, first, grads)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, second, grads)
        size, scale = lr / (1 - b1**count), 1 / jnp.sqrt(1 - b2**count)
        layers = jax.tree.map(lambda p, m, v: p * (1 - lr * decay) - size * m / (jnp.sqrt(v) * scale + eps), layers, first, second)
        return layers, (first, second, count)

    return start, update


def training(arrays, activation, loss_function, optimizer):
    """One call is one training step; it returns the loss before the update."""
    x, y, layers = jax.tree.map(jnp.asarray, arrays)
    start, update = optimizer

    @partial(jax.jit, donate_argnums=(0, 1))
    def train(layers, state, x, y):
        loss, grads = jax.value_and_grad(lambda layers: loss_function(forward(layers, x, activation), y))(layers)
        return loss, *update(layers, grads, state)

    current = [layers, start(layers)]

    def step():
        loss, *current[:] = train(*current, x, y)
        return loss

    return step


def linreg():
    return training(data.line(), jax.nn.relu, mean_squared_error, sgd(0.01))


def tiny():
    return training(data.tiny(), jnp.tanh, mean_squared_error, sgd(0.05))


def mlp_sgd():
    return training(data.mlp(), jax.nn.relu, cross_entropy, sgd(0.05))


def mlp_adamw():
    return training(data.mlp(), jax.nn.relu, cross_entropy, adamw(1e-3))


def pointwise(function, *shape):
    """One call computes `function` of an array."""
    x, compiled = jnp.asarray(data.values(*shape)), jax.jit(function)
    return lambda: compiled(x)


def chain(x):
    return jnp.tanh(1.5 * x + 0.5) * jax.nn.sigmoid(x) + x


def chain_1e5():
    return pointwise(chain, 10**5)


def chain_1e7():
    return pointwise(chain, 10**7)


def softmax():
    return pointwise(lambda x: jax.nn.softmax(x, -1), 4096, 1024)
