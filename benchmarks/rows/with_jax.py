"""The rows in JAX: each whole step is one jitted function, with the state donated."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rows import data
from rows.best import fastest

VERSIONS = {"jax": jax.__version__}


def wait(result):
    """Calls return before their work is done."""
    jax.block_until_ready(result)


def number(result):
    if isinstance(result, tuple):
        return sum(map(number, result))
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


def linreg_epochs():
    """One call is one `lax.scan` over the epochs."""
    x, y, layers = jax.tree.map(jnp.asarray, data.line())
    _, update = sgd(0.01)

    @partial(jax.jit, donate_argnums=0)
    def train(layers, x, y):
        def epoch(layers, _):
            loss, grads = jax.value_and_grad(lambda layers: mean_squared_error(forward(layers, x, jax.nn.relu), y))(layers)
            return update(layers, grads, ())[0], loss

        layers, losses = jax.lax.scan(epoch, layers, length=data.EPOCHS)
        return losses[-1], layers

    current = [layers]

    def step():
        loss, *current[:] = train(*current, x, y)
        return loss

    return step


def mlp_large():
    return training(data.large(), jax.nn.relu, cross_entropy, sgd(0.05))


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


def gelu_chain(x, y):
    return jax.nn.gelu(x * y + x, approximate=True) * y


def gelu_1e7():
    x, y = jnp.asarray(data.values(2, 10**7))
    compiled = jax.jit(gelu_chain)
    return lambda: compiled(x, y)


def differentiated(function, *arrays, wanted=None):
    """One call computes the gradients of `function` of arrays for the first `wanted` of them; the last array is that of the result."""
    *inputs, g = map(jnp.asarray, arrays)
    count = len(inputs) if wanted is None else wanted

    @jax.jit
    def step(inputs, g):
        return jax.vjp(lambda *leaves: function(*leaves, *inputs[count:]), *inputs[:count])[1](g)

    return lambda: step(inputs, g)


def chain_fb_1e7():
    x, g = data.values(2, 10**7)
    return differentiated(chain, x, g)


def gelu_fb_1e7():
    return differentiated(gelu_chain, *data.values(3, 10**7))


def softmax_fb():
    x, _, _, g = data.norm(4096, 1024)
    return differentiated(lambda x: jax.nn.softmax(x, -1), x, g)


def layer_norm_fb():
    def rows(x, scale, shift):
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5) * scale + shift

    return differentiated(rows, *data.norm(4096, 1024))


def rms_norm_fb():
    x, scale, _, g = data.norm(4096, 1024)
    return differentiated(lambda x, scale: x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale, x, scale, g)


def cross_entropy_fb():
    return differentiated(cross_entropy, *data.logits(), np.float32(1), wanted=1)


def linear_cross_entropy():
    return differentiated(lambda hidden, weight, y: cross_entropy(hidden @ weight.T, y), *data.vocabulary(), np.float32(1), wanted=2)


def adamw_1e7():
    start, update = adamw(1e-3)
    weight, grad = data.values(10**7), jnp.asarray(data.values(10**7)[::-1].copy())
    weight = jnp.asarray(weight)
    current = [weight, start(weight)]
    compiled = jax.jit(update, donate_argnums=(0, 2))

    def step():
        current[:] = compiled(current[0], grad, current[1])
        return current[0]

    return step


def train_weights(weights, loss_of):
    """One call is one SGD step; it returns the loss before the update."""
    current = jax.tree.map(jnp.asarray, weights)

    @partial(jax.jit, donate_argnums=0)
    def train(weights):
        loss, grads = jax.value_and_grad(loss_of)(weights)
        return loss, jax.tree.map(lambda p, g: p - 0.05 * g, weights, grads)

    def step():
        nonlocal current
        loss, current = train(current)
        return loss

    return step


def cnn():
    x, y, weights = data.images()
    x, y = jnp.asarray(x), jnp.asarray(y)

    def loss_of(weights):
        hidden = x
        for weight, bias in weights[:-1]:
            hidden = jax.lax.conv_general_dilated(hidden, weight, (1, 1), "SAME") + bias[:, None, None]
            hidden = jax.lax.reduce_window(jax.nn.relu(hidden), -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        weight, bias = weights[-1]
        return cross_entropy(hidden.reshape(len(hidden), -1) @ weight.T + bias, y)

    return train_weights(weights, loss_of)


def lstm():
    tokens, labels, weights = data.language()
    tokens, labels = jnp.asarray(tokens), jnp.asarray(labels)

    def loss_of(p):
        gates = p["embedding"][tokens] @ p["w_ih"].T + (p["b_ih"] + p["b_hh"])
        width = p["w_hh"].shape[1]

        def advance(state, x):
            hidden, cell = state
            i, f, g, o = jnp.split(x + hidden @ p["w_hh"].T, 4, -1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        zeros = jnp.zeros((tokens.shape[1], width), jnp.float32)
        _, hidden = jax.lax.scan(advance, (zeros, zeros), gates)
        logits = hidden @ p["out"].T + p["out_bias"]
        return cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))

    return train_weights(weights, loss_of)


def batch_1():
    x, _, layers = data.mlp()
    x, layers = jax.tree.map(jnp.asarray, (x[:1], layers))
    compiled = jax.jit(lambda layers, x: forward(layers, x, jax.nn.relu))
    return lambda: compiled(layers, x)


def many_ops(count, x):
    for _ in range(count):
        x = x * 0.9 + 0.1 if count > 1 else x + 0.1
    return x


def ops_1():
    return pointwise(partial(many_ops, 1), 8)


def ops_10():
    return pointwise(partial(many_ops, 5), 8)


def ops_100():
    return pointwise(partial(many_ops, 50), 8)


def lengths_20():
    layers = jax.tree.map(jnp.asarray, data.layers((256, 512, 256)))

    def rows(layers, x):
        normal = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
        return jax.nn.softmax(forward(layers, normal, partial(jax.nn.gelu, approximate=False)) + x, -1).mean(0)

    compiled = jax.jit(rows)
    inputs = [jnp.asarray(data.values(n, 256)) for n in data.LENGTHS]
    return lambda: jnp.stack([compiled(layers, x) for x in inputs])


def sdpa(q, k, v, causal):
    """JAX's own attention, which wants the heads behind the positions."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal).swapaxes(1, 2)


def naive(q, k, v, causal):
    scores = q @ k.swapaxes(-2, -1) / np.sqrt(q.shape[-1])
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    return jax.nn.softmax(scores, -1) @ v


def attention(function, causal):
    q, k, v = map(jnp.asarray, data.heads()[:3])
    compiled = jax.jit(partial(function, causal=causal))
    return lambda: compiled(q, k, v)


def with_result(function, *arrays):
    """One call computes `function` of arrays and the gradients for them; the last array is the gradient of the result."""
    *inputs, g = map(jnp.asarray, arrays)

    @jax.jit
    def step(inputs, g):
        out, pull = jax.vjp(function, *inputs)
        return out, *pull(g)

    return lambda: step(inputs, g)


def attention_fb(causal):
    """By whichever form is faster: JAX's own attention, or the product of all weights."""
    return fastest({f.__name__: lambda f=f: with_result(partial(f, causal=causal), *data.heads()) for f in (sdpa, naive)})


def sdpa_causal():
    return attention(sdpa, True)


def sdpa_full():
    return attention(sdpa, False)


def naive_causal():
    return attention(naive, True)


def naive_full():
    return attention(naive, False)


def sdpa_causal_fb():
    return attention_fb(True)


def sdpa_full_fb():
    return attention_fb(False)


def naive_causal_fb():
    return with_result(partial(naive, causal=True), *data.heads())


def naive_full_fb():
    return with_result(partial(naive, causal=False), *data.heads())


def layer_norm(x, scale, shift):
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * scale + shift


def block(x, norm1, shift1, qkv, qkv_bias, out, out_bias, norm2, shift2, up, up_bias, down, down_bias, heads=data.BLOCK_HEADS):
    n, t, width = x.shape
    q, k, v = jnp.split(layer_norm(x, norm1, shift1) @ qkv.T + qkv_bias, 3, -1)
    q, k, v = (y.reshape(n, t, heads, width // heads).swapaxes(1, 2) for y in (q, k, v))
    x = x + naive(q, k, v, True).swapaxes(1, 2).reshape(n, t, width) @ out.T + out_bias
    hidden = jax.nn.gelu(layer_norm(x, norm2, shift2) @ up.T + up_bias, approximate=True)
    return x + hidden @ down.T + down_bias


def gpt_block():
    return with_result(block, *data.block())


def gpt():
    tokens, labels, weights = jax.tree.map(jnp.asarray, data.gpt())
    start, update = adamw(1e-3)

    def loss_of(weights):
        words, places, *rest, norm, shift, out = weights
        x = words[tokens] + places
        for i in range(0, len(rest), 12):
            x = block(x, *rest[i : i + 12], heads=data.GPT_HEADS)
        logits = layer_norm(x, norm, shift) @ out.T
        return cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))

    @partial(jax.jit, donate_argnums=(0, 1))
    def train(weights, state):
        loss, grads = jax.value_and_grad(loss_of)(weights)
        return loss, *update(weights, grads, state)

    current = [weights, start(weights)]

    def step():
        loss, *current[:] = train(*current)
        return loss

    return step
