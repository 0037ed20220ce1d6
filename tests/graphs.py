"""Graphs for the tests of the compiler's passes: from a function, at random, and as whole training steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchlet import dtypes
from torchlet.compiler.differentiate import differentiate
from torchlet.compiler.graph import Builder, Graph, Node
from torchlet.op import OPS
from torchlet.spec import Spec
from torchlet.tensor import Tensor

Array = np.ndarray[Any, Any]


def graph_of(
    f: Callable[..., Any], *arrays: Array, scalars: Sequence[float | int | bool] = (), targets: Sequence[int | None] | None = None
) -> Graph:
    """The graph of f(*tensors, *scalars); inputs have the arrays' strides."""
    b = Builder()
    specs = [Spec(x.shape, dtypes.from_numpy(x.dtype)) for x in arrays]
    inputs = [b.input(s, tuple(k // x.itemsize for k in x.strides), f"x{i}") for i, (s, x) in enumerate(zip(specs, arrays, strict=True))]
    numbers = [b.scalar(dtypes.float64 if isinstance(s, float) else dtypes.of_scalar(s), f"s{i}") for i, s in enumerate(scalars)]
    with b:
        out = f(*[b.tensor(n) for n in (*inputs, *numbers)])
    outputs = tuple(b.unwrap(t) for t in (out if isinstance(out, tuple) else (out,)))
    return Graph("f", tuple(inputs), tuple(numbers), outputs, tuple(targets) if targets is not None else (None,) * len(outputs))


def training_step(loss: Callable[..., Any], data: Sequence[Array], params: Sequence[Array]) -> Graph:
    """loss(*data, *params), and the parameters after a step of gradient descent with learning rate `lr`, written in place."""
    forward = graph_of(loss, *data, *params)
    joint, seeds, grads = differentiate(forward, [forward.outputs[0]], forward.inputs[len(data) :])
    b = Builder()
    new: dict[Node, Node] = {}
    for n in joint.inputs:
        if n not in seeds:
            new[n] = b.input(n.spec, n.attrs[1], n.name)
    for n in seeds:
        new[n] = b.node(OPS["full"], (1,), (n.spec.shape, n.spec.dtype))
    for n in joint.nodes():
        if n not in new:
            new[n] = b.node(n.op, tuple([new[x] if isinstance(x, Node) else x for x in n.inputs]), n.attrs)  # type: ignore[arg-type]
    lr = b.scalar(dtypes.float64, "lr")
    inputs = tuple(new[n] for n in joint.inputs if n not in seeds)
    outputs, targets = [new[joint.outputs[0]]], [None]
    for k, g in enumerate(grads, len(data)):
        assert g is not None
        with b:
            outputs.append(b.unwrap(b.tensor(inputs[k]) - b.tensor(new[g]) * b.tensor(lr)))  # type: ignore[arg-type]
        targets.append(k)  # type: ignore[arg-type]
    return Graph("step", inputs, (lr,), tuple(outputs), tuple(targets))


_UNARY = ("neg", "abs", "exp", "tanh", "sigmoid", "relu", "square", "sin", "clone", "detach")
_BINARY = ("add", "sub", "mul", "maximum", "minimum")


def random_graph(seed: int, steps: int = 14) -> tuple[Graph, list[Array]]:
    """A graph of pointwise operators, reductions, views, products and composites on small float32 arrays, and inputs for it."""
    rng = random.Random(seed)
    n, m = rng.choice([(3, 4), (4, 4), (1, 5), (6, 2)])
    arrays = [np.random.default_rng(seed).standard_normal(s).astype(np.float32) for s in ((n, m), (n, m), (m,), (n, 1), (m, n))]

    def body(*inputs: Tensor) -> tuple[Tensor, ...]:
        pool = list(inputs)
        for _ in range(steps):
            pool.append(_step(rng, pool))
        return tuple(rng.sample(pool[len(inputs) :], 3)) + (pool[-1], pool[0])

    return graph_of(body, *arrays), arrays


def _step(rng: random.Random, pool: list[Tensor]) -> Tensor:
    x = rng.choice(pool)
    kind = rng.choice(("unary", "unary", "binary", "binary", "number", "reduce", "view", "permute", "index", "matmul", "softmax", "norm"))
    if kind == "unary" or x.ndim == 0:
        return OPS[rng.choice(_UNARY)](x.clamp(-3, 3))
    if kind == "binary":
        others = [y for y in pool if _broadcasts(x.shape, y.shape)]
        return OPS[rng.choice(_BINARY)](x, rng.choice(others))
    if kind == "number":
        return rng.choice([
            lambda: x * 1, lambda: x + 0.0, lambda: x * 0.5 + 1, lambda: x / 1, lambda: x - 0.0, lambda: OPS["neg"](-x), lambda: x**2,
        ])()
    if kind == "reduce":
        dims = tuple(sorted(rng.sample(range(x.ndim), rng.randint(1, x.ndim))))
        return OPS[rng.choice(("sum", "amax", "amin", "mean"))](x, dims=dims, keepdim=rng.random() < 0.5)
    if kind == "view":
        return x.reshape(rng.choice([(-1,), (1, -1), (-1, 1), tuple(reversed(x.shape))]))
    if kind == "permute":
        return x.permute(*rng.sample(range(x.ndim), x.ndim))
    if kind == "index":
        return rng.choice([lambda: x[..., 0], lambda: x[-1:], lambda: x.unsqueeze(0), lambda: x.expand(2, *x.shape)])()
    if kind == "matmul" and x.ndim == 2:
        return x @ x.transpose(0, 1)
    return x.softmax(-1) if kind == "softmax" else x - x.mean(-1, keepdim=True)


def _broadcasts(a: Sequence[int], b: Sequence[int]) -> bool:
    return all(x == y or 1 in (x, y) for x, y in zip(reversed(a), reversed(b), strict=False))
