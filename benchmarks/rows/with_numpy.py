"""The rows that an ordinary NumPy program can do, written by hand without allocating where that is easy."""

import numpy as np

from rows import data

VERSIONS = {"numpy": np.__version__}


def wait(result):
    """Nothing is left running after a call."""


def number(result):
    return data.checksum(result)


def linreg():
    x, y, [(weight, bias)] = data.line()

    def step():
        error = x @ weight.T + bias - y
        slope = error * np.float32(2 / len(x))
        weight[...] -= np.float32(0.01) * (slope.T @ x)
        bias[...] -= np.float32(0.01) * slope.sum(0)
        return (error * error).mean()

    return step


def linreg_epochs():
    step = linreg()
    return lambda: [step() for _ in range(data.EPOCHS)][-1]


def tiny():
    x, y, [(w1, b1), (w2, b2)] = data.tiny()

    def step():
        hidden = np.tanh(x @ w1.T + b1)
        error = hidden @ w2.T + b2 - y
        slope = error * np.float32(2 / len(x))
        hidden_slope = (slope @ w2) * (1 - hidden * hidden)
        w2[...] -= np.float32(0.05) * (slope.T @ hidden)
        b2[...] -= np.float32(0.05) * slope.sum(0)
        w1[...] -= np.float32(0.05) * (hidden_slope.T @ x)
        b1[...] -= np.float32(0.05) * hidden_slope.sum(0)
        return (error * error).mean()

    return step


def mlp_sgd():
    return classifier(*data.mlp())


def mlp_large():
    return classifier(*data.large())


def classifier(x, y, layers):
    """SGD steps of an MLP with ReLU and cross-entropy."""
    rate, rows = np.float32(0.05), np.arange(len(x))

    def step():
        inputs = [x]
        for weight, bias in layers[:-1]:
            inputs.append(np.maximum(inputs[-1] @ weight.T + bias, 0))
        weight, bias = layers[-1]
        logits = inputs[-1] @ weight.T + bias
        logits -= logits.max(1, keepdims=True)
        slope = np.exp(logits)
        total = slope.sum(1, keepdims=True)
        loss = (np.log(total[:, 0]) - logits[rows, y]).mean()
        slope /= total
        slope[rows, y] -= 1
        slope *= np.float32(1 / len(x))
        for (weight, bias), value in zip(reversed(layers), reversed(inputs)):
            below = (slope @ weight) * (value > 0) if value is not x else None
            weight[...] -= rate * (slope.T @ value)
            bias[...] -= rate * slope.sum(0)
            slope = below
        return loss

    return step


def chain(size):
    x = data.values(size)
    out, gate = np.empty_like(x), np.empty_like(x)

    def step():
        np.multiply(x, 1.5, out=out)
        np.add(out, 0.5, out=out)
        np.tanh(out, out=out)
        np.negative(x, out=gate)
        np.exp(gate, out=gate)
        np.add(gate, 1, out=gate)
        np.divide(out, gate, out=out)
        return np.add(out, x, out=out)

    return step


def chain_1e5():
    return chain(10**5)


def chain_1e7():
    return chain(10**7)


def softmax():
    x = data.values(4096, 1024)
    out = np.empty_like(x)

    def step():
        np.subtract(x, x.max(1, keepdims=True), out=out)
        np.exp(out, out=out)
        return np.divide(out, out.sum(1, keepdims=True), out=out)

    return step


def batch_1():
    x, _, layers = data.mlp()
    x = x[:1]

    def step():
        hidden = x
        for weight, bias in layers[:-1]:
            hidden = hidden @ weight.T
            hidden += bias
            np.maximum(hidden, 0, out=hidden)
        weight, bias = layers[-1]
        return hidden @ weight.T + bias

    return step


def tiny_ops(count):
    x = data.values(8)

    def step():
        out = x
        for _ in range(count):
            out = out * 0.9 + 0.1 if count > 1 else out + 0.1
        return out

    return step


def ops_1():
    return tiny_ops(1)


def ops_10():
    return tiny_ops(5)


def ops_100():
    return tiny_ops(50)
