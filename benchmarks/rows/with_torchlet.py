"""The rows in torchlet: each whole step is one compiled function."""

from functools import partial

import numpy as np

import torchlet
import torchlet.nn.functional as F
from rows import data, transformer
from torchlet import nn

VERSIONS = {"torchlet": torchlet.__version__}


def wait(result):
    """Nothing is left running after a call on the CPU."""


def number(result):
    if isinstance(result, tuple):
        return sum(map(number, result))
    return data.checksum(result.detach().clone().numpy())  # a copy: what NumPy sees of a parameter stays undeferred


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


def training(arrays, activation, loss_function, optimizer, **options):
    """One call is one training step; it returns the loss before the update. `options` are those of `compile`."""
    x, y, layers = arrays
    x, y, model = torchlet.tensor(x), torchlet.tensor(y), build(layers, activation)
    opt = optimizer(model.parameters())

    @torchlet.compile(**options)
    def step(x, y):
        opt.zero_grad()
        loss = loss_function(model(x), y)
        loss.backward()
        opt.step()
        return loss

    return lambda: step(x, y)


def linreg(**options):
    return training(data.line(), nn.ReLU, F.mse_loss, partial(torchlet.optim.SGD, lr=0.01), **options)


def linreg_replayed():
    return linreg(replay=True)


def linreg_epochs():
    """One call is one call of a compiled function with the loop inside it."""
    x, y, layers = data.line()
    x, y, model = torchlet.tensor(x), torchlet.tensor(y), build(layers, nn.ReLU)
    opt = torchlet.optim.SGD(model.parameters(), lr=0.01)

    @torchlet.compile
    def train(x, y):
        for _ in range(data.EPOCHS):
            opt.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            opt.step()
        return loss

    return lambda: train(x, y)


def tiny(**options):
    return training(data.tiny(), nn.Tanh, F.mse_loss, partial(torchlet.optim.SGD, lr=0.05), **options)


def tiny_replayed():
    return tiny(replay=True)


def mlp_large():
    return training(data.large(), nn.ReLU, F.cross_entropy, partial(torchlet.optim.SGD, lr=0.05))


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


def softmax_rows(x):
    return torchlet.softmax(x, -1)


def softmax():
    return pointwise(softmax_rows, 4096, 1024)


def gelu_chain(x, y):
    return F.gelu(x * y + x, approximate="tanh") * y


def differentiated(function, *arrays, wanted=None):
    """One call computes the gradients of `function` of arrays for the first `wanted` of them; the last array is that of the result."""
    *inputs, g = [torchlet.tensor(a) for a in arrays]
    leaves = [x.requires_grad_() for x in inputs[:wanted]]

    @torchlet.compile
    def step(g, *inputs):
        return torchlet.autograd.grad(function(*inputs), leaves, g)

    return lambda: step(g, *inputs)


def layer_norm_rows(x, scale, shift):
    return F.layer_norm(x, x.shape[-1:], scale, shift)


def rms_norm_rows(x, scale):
    return F.rms_norm(x, x.shape[-1:], scale, 1e-5)


def vocabulary_loss(hidden, weight, labels):
    return F.cross_entropy(hidden @ weight.T, labels)


def gelu_1e7():
    x, y = (torchlet.tensor(data.values(2, 10**7)[i]) for i in range(2))
    function = torchlet.compile(gelu_chain)

    def step():
        with torchlet.no_grad():
            return function(x, y)

    return step


def chain_fb_1e7():
    x, g = data.values(2, 10**7)
    return differentiated(chain, x, g)


def gelu_fb_1e7():
    return differentiated(torchlet.compile(gelu_chain), *data.values(3, 10**7))


def softmax_fb():
    x, _, _, g = data.norm(4096, 1024)
    return differentiated(softmax_rows, x, g)


def layer_norm_fb():
    return differentiated(layer_norm_rows, *data.norm(4096, 1024))


def rms_norm_fb():
    x, scale, _, g = data.norm(4096, 1024)
    return differentiated(rms_norm_rows, x, scale, g)


def cross_entropy_fb():
    return differentiated(F.cross_entropy, *data.logits(), np.float32(1), wanted=1)


def linear_cross_entropy():
    return differentiated(vocabulary_loss, *data.vocabulary(), np.float32(1), wanted=2)


def adamw_1e7():
    weight = torchlet.tensor(data.values(10**7), requires_grad=True)
    weight.grad = torchlet.tensor(data.values(10**7)[::-1].copy())
    opt = torchlet.optim.AdamW([weight])

    @torchlet.compile
    def update():
        opt.step()

    def step():
        update()
        return weight

    return step


class Convolutions(nn.Module):
    """Two convolutions with pooling, one linear layer."""

    def __init__(self, weights):
        super().__init__()
        self.conv1, self.conv2, self.out = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1), nn.Linear(64 * 7 * 7, 10)
        with torchlet.no_grad():
            for part, (weight, bias) in zip((self.conv1, self.conv2, self.out), weights, strict=True):
                part.weight.copy_(torchlet.tensor(weight))
                part.bias.copy_(torchlet.tensor(bias))

    def forward(self, x):
        x = F.max_pool2d(torchlet.relu(self.conv1(x)), 2)
        return self.out(F.max_pool2d(torchlet.relu(self.conv2(x)), 2).flatten(1))


class Language(nn.Module):
    """An LSTM between an embedding and an output layer; returns the logits of all steps."""

    def __init__(self, weights):
        super().__init__()
        words, width = weights["embedding"].shape
        self.embedding, self.lstm, self.out = nn.Embedding(words, width), nn.LSTM(width, width), nn.Linear(width, words)
        places = [self.embedding.weight, *self.lstm.parameters(), self.out.weight, self.out.bias]
        with torchlet.no_grad():
            for place, weight in zip(places, weights.values(), strict=True):
                place.copy_(torchlet.tensor(weight))

    def forward(self, tokens):
        return self.out(self.lstm(self.embedding(tokens))[0])


def language_loss(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def train_module(model, x, y, loss_function):
    """One call is one SGD step of a module; it returns the loss before the update."""
    x, y = torchlet.tensor(x), torchlet.tensor(y)
    opt = torchlet.optim.SGD(model.parameters(), lr=0.05)

    @torchlet.compile
    def step(x, y):
        opt.zero_grad()
        loss = loss_function(model(x), y)
        loss.backward()
        opt.step()
        return loss

    return lambda: step(x, y)


def cnn():
    x, y, weights = data.images()
    return train_module(Convolutions(weights), x, y, F.cross_entropy)


def lstm():
    x, y, weights = data.language()
    return train_module(Language(weights), x, y, language_loss)


def inference(function, x):
    """One call is one call of the compiled function without gradients."""
    x, compiled = torchlet.tensor(x), torchlet.compile(function)

    def step():
        with torchlet.no_grad():
            return compiled(x)

    return step


def batch_1():
    x, _, layers = data.mlp()
    model = build(layers, nn.ReLU)
    return inference(lambda x: model(x), x[:1])


def many_ops(count, x):
    for _ in range(count):
        x = x * 0.9 + 0.1 if count > 1 else x + 0.1
    return x


def ops_1():
    return inference(partial(many_ops, 1), data.values(8))


def ops_10():
    return inference(partial(many_ops, 5), data.values(8))


def ops_100():
    return inference(partial(many_ops, 50), data.values(8))


def lengths_20():
    model = build(data.layers((256, 512, 256)), nn.GELU)
    function = torchlet.compile(lambda x: torchlet.softmax(model(F.layer_norm(x, (256,))) + x, -1).mean(0))
    inputs = [torchlet.tensor(data.values(n, 256)) for n in data.LENGTHS]

    def step():
        with torchlet.no_grad():
            return torchlet.stack([function(x) for x in inputs])

    return step


TRANSFORMER = transformer.parts(torchlet)


def attention(name):
    """One call is a forward pass without gradients."""
    q, k, v = map(torchlet.tensor, data.heads()[:3])
    function = torchlet.compile(getattr(TRANSFORMER, name))

    def step():
        with torchlet.no_grad():
            return function(q, k, v)

    return step


def sdpa_causal():
    return attention("sdpa_causal")


def sdpa_full():
    return attention("sdpa_full")


def naive_causal():
    return attention("naive_causal")


def naive_full():
    return attention("naive_full")


def with_result(function, *arrays):
    """One call computes `function` of arrays and the gradients for them; the last array is the gradient of the result."""
    *inputs, g = [torchlet.tensor(a) for a in arrays]
    leaves = [x.requires_grad_() for x in inputs]

    @torchlet.compile
    def step(g, *inputs):
        out = function(*inputs)
        return out.detach(), *torchlet.autograd.grad(out, leaves, g)

    return lambda: step(g, *inputs)


def sdpa_causal_fb():
    return with_result(TRANSFORMER.sdpa_causal, *data.heads())


def sdpa_full_fb():
    return with_result(TRANSFORMER.sdpa_full, *data.heads())


def naive_causal_fb():
    return with_result(TRANSFORMER.naive_causal, *data.heads())


def naive_full_fb():
    return with_result(TRANSFORMER.naive_full, *data.heads())


def gpt_block():
    return with_result(TRANSFORMER.block, *data.block())


def gpt():
    tokens, labels, weights = data.gpt()
    tokens, labels, model = torchlet.tensor(tokens), torchlet.tensor(labels), TRANSFORMER.GPT(weights)
    opt = torchlet.optim.AdamW(model.parameters(), lr=1e-3)

    @torchlet.compile
    def step(tokens, labels):
        opt.zero_grad()
        loss = TRANSFORMER.gpt_loss(model, tokens, labels)
        loss.backward()
        opt.step()
        return loss

    return lambda: step(tokens, labels)
