"""The inputs and initial weights of every row, as NumPy arrays made from fixed seeds: all competitors get the same."""

from itertools import pairwise

import numpy as np

MLP = (784, 256, 128, 10)
MLP_BATCH = 64
LARGE = (1024, 4096, 4096, 1024)
LARGE_BATCH = 512
EPOCHS = 100
TINY = (8, 16, 1)
TINY_BATCH = 32
LENGTHS = (17, 33, 40, 64, 100, 128, 3, 8, 20, 50, 90, 150, 192, 200, 256, 300, 333, 400, 480, 512)


def line():
    """100 points of y = 2x + 1 with noise, (100, 1) each, and the initial weight and bias of a Linear(1, 1)."""
    x = np.arange(0, 10, 0.1, dtype=np.float32).reshape(-1, 1)
    y = 2 * x + 1 + 0.1 * np.random.default_rng(0).standard_normal(x.shape, np.float32)
    return x, y.astype(np.float32), [(np.full((1, 1), 0.3, np.float32), np.full(1, -0.2, np.float32))]


def layers(sizes, seed=1):
    """(weight (out, in), bias (out,)) of each Linear, in PyTorch's initial range."""
    generator = np.random.default_rng(seed)
    found = []
    for n, m in pairwise(sizes):
        bound = 1 / np.sqrt(n)
        found.append((generator.uniform(-bound, bound, (m, n)).astype(np.float32), generator.uniform(-bound, bound, m).astype(np.float32)))
    return found


def mlp():
    """A batch like normalised MNIST, its labels (int64), and the layers' weights."""
    generator = np.random.default_rng(2)
    x = generator.standard_normal((MLP_BATCH, MLP[0]), np.float32)
    return x, generator.integers(0, MLP[-1], MLP_BATCH), layers(MLP)


def large():
    """The same for the large network; the labels are among its 1,024 outputs."""
    generator = np.random.default_rng(13)
    x = generator.standard_normal((LARGE_BATCH, LARGE[0]), np.float32)
    return x, generator.integers(0, LARGE[-1], LARGE_BATCH), layers(LARGE)


def tiny():
    """A batch for the 8-16-1 network with tanh, its targets, and the layers' weights."""
    generator = np.random.default_rng(3)
    x = generator.standard_normal((TINY_BATCH, TINY[0]), np.float32)
    return x, generator.standard_normal((TINY_BATCH, TINY[-1]), np.float32), layers(TINY)


def values(*shape):
    """Standard normal numbers of a shape."""
    return np.random.default_rng(4).standard_normal(shape, np.float32)


def checksum(array):
    """One number to compare results by; squares, because the rows of a softmax sum to one whatever they hold."""
    array = np.asarray(array, np.float64)
    return float((array + array * array).sum())


def norm(rows, width):
    """Values, a scale and a shift for each column, and the gradient of the result."""
    generator = np.random.default_rng(5)
    x, g = (generator.standard_normal((rows, width), np.float32) for _ in range(2))
    scale, shift = (generator.standard_normal(width, np.float32) for _ in range(2))
    return x, scale, shift, g


def vocabulary(width=384, count=512, words=32000):
    """Hidden states, the output layer's weight (words, width), and labels (int64)."""
    generator = np.random.default_rng(6)
    hidden = generator.standard_normal((count, width), np.float32)
    weight = 0.05 * generator.standard_normal((words, width), np.float32)
    return hidden, weight, generator.integers(0, words, count)


def logits(count=512, words=32000):
    """Logits and labels (int64)."""
    generator = np.random.default_rng(7)
    return generator.standard_normal((count, words), np.float32), generator.integers(0, words, count)


def images(count=64):
    """28 x 28 images of one channel, their labels, and the weights of conv 32, conv 64 and the last linear layer."""
    generator = np.random.default_rng(8)
    weights = []
    for shape in ((32, 1, 3, 3), (64, 32, 3, 3), (10, 64 * 7 * 7)):
        bound = 1 / np.sqrt(np.prod(shape[1:]))
        weights.append(tuple(generator.uniform(-bound, bound, size).astype(np.float32) for size in (shape, shape[0])))
    return generator.standard_normal((count, 1, 28, 28), np.float32), generator.integers(0, 10, count), weights


def language(words=2000, width=256, steps=64, batch=32):
    """Tokens (steps, batch) with the ones that follow; embedding, LSTM and output weights in PyTorch's layout and order."""
    generator = np.random.default_rng(9)
    bound = 1 / np.sqrt(width)
    shapes = {
        "embedding": (words, width), "w_ih": (4 * width, width), "w_hh": (4 * width, width), "b_ih": (4 * width,), "b_hh": (4 * width,),
        "out": (words, width), "out_bias": (words,),
    }  # fmt: skip
    weights = {name: generator.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}
    tokens = generator.integers(0, words, (steps + 1, batch))
    return tokens[:-1], tokens[1:], weights


BLOCK_HEADS, GPT_HEADS = 12, 6


def heads():
    """Query, key, value (2, 8, 1024, 64), and the gradient of the result."""
    return np.random.default_rng(10).standard_normal((4, 2, 8, 1024, 64), np.float32)


def block_weights(width, generator):
    """Norm, attention, norm, MLP of a GPT-2 block; linear weights are (out, in)."""
    found = []
    for pair in (((3 * width, width), (width, width)), ((4 * width, width), (width, 4 * width))):
        found += [1 + 0.1 * generator.standard_normal(width, np.float32), 0.1 * generator.standard_normal(width, np.float32)]
        for shape in pair:
            found += [0.02 * generator.standard_normal(shape, np.float32), 0.02 * generator.standard_normal(shape[0], np.float32)]
    return found


def block(width=768, length=256):
    """One sequence, the weights of a block, and the gradient of the result."""
    generator = np.random.default_rng(11)
    x, g = generator.standard_normal((2, 1, length, width), np.float32)
    return [x, *block_weights(width, generator), g]


def gpt(layers=6, width=384, length=256, batch=4, words=65):
    """Tokens with the ones that follow, and weights: two embeddings, blocks, norm, output."""
    generator = np.random.default_rng(12)
    tokens = generator.integers(0, words, (batch, length + 1))
    weights = [0.02 * generator.standard_normal((n, width), np.float32) for n in (words, length)]
    for _ in range(layers):
        weights += block_weights(width, generator)
    weights += [np.ones(width, np.float32), np.zeros(width, np.float32), 0.02 * generator.standard_normal((words, width), np.float32)]
    return tokens[:, :-1].copy(), tokens[:, 1:].copy(), weights
