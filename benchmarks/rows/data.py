"""The inputs and initial weights of every row, as NumPy arrays made from fixed seeds: all competitors get the same."""

from itertools import pairwise

import numpy as np

MLP = (784, 256, 128, 10)
MLP_BATCH = 64
TINY = (8, 16, 1)
TINY_BATCH = 32


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
