"""torchlet.func: functions of functions. Gradients, Jacobians and products with them, calls with other parameters, vmap."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torchlet import autograd
from torchlet.nn import Module
from torchlet.ops.arrange import stack
from torchlet.ops.public import FUNCTIONS
from torchlet.ops.view import movedim, reshape
from torchlet.tensor import Tensor
from torchlet.utils._pytree import tree_flatten, tree_map, tree_unflatten

__all__ = ["functional_call", "grad", "grad_and_value", "hessian", "jacfwd", "jacrev", "jvp", "stack_module_state", "vjp", "vmap"]


def _fresh(x: Any) -> Any:
    """A tensor to differentiate by, still connected to what it came from: gradients of gradients work."""
    if not isinstance(x, Tensor):
        return x
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_(x.dtype.has_gradient)


def _chosen(args: tuple[Any, ...], argnums: int | Sequence[int]) -> tuple[list[Any], list[Tensor], Any]:
    """The arguments with fresh tensors at `argnums`, those tensors, and how to give their gradients back."""
    with autograd.enable_grad():
        values = list(args)
        single = isinstance(argnums, int)
        picked = [argnums] if isinstance(argnums, int) else list(argnums)
        for k in picked:
            values[k] = tree_map(_fresh, values[k])
        leaves, spec = tree_flatten(values[picked[0]] if single else tuple(values[k] for k in picked))
    return values, leaves, spec


def grad_and_value(func: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """A function that returns (gradient of `func` by the arguments `argnums`, its value); with `has_aux`, (…, (value, aux))."""

    @functools.wraps(func)
    def run(*args: Any, **kwargs: Any) -> Any:
        values, leaves, spec = _chosen(args, argnums)
        with autograd.enable_grad():
            out = func(*values, **kwargs)
            out, aux = out if has_aux else (out, None)
            if not isinstance(out, Tensor) or out.numel() != 1:
                raise RuntimeError(
                    "grad_and_value(f)(*args): Expected f(*args) to return a scalar tensor, got "
                    f"{tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__}"
                )
            found = autograd.grad(out, leaves, create_graph=autograd.is_grad_enabled(), allow_unused=True, materialize_grads=True)
        outer = any(isinstance(x, Tensor) and x.requires_grad for x in tree_flatten((args, kwargs))[0])
        done = [g if outer else g.detach() for g in found]  # type: ignore[union-attr]
        value = out if outer else out.detach()
        grads = tree_unflatten(done, spec)
        return (grads, (value, aux)) if has_aux else (grads, value)

    return run


def grad(func: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """A function that returns the gradient of `func`, which gives one number, by the arguments `argnums`."""
    both = grad_and_value(func, argnums, has_aux)

    @functools.wraps(func)
    def run(*args: Any, **kwargs: Any) -> Any:
        grads, value = both(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return run


def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> tuple[Any, ...]:
    """(value, function from a cotangent to the gradients of the arguments)."""
    values, leaves, spec = _chosen(primals, tuple(range(len(primals))))
    with autograd.enable_grad():
        out = func(*values)
    out, aux = out if has_aux else (out, None)
    outs, _ = tree_flatten(out)

    def pull(cotangent: Any, retain_graph: bool = True, create_graph: bool | None = None) -> tuple[Any, ...]:
        found = autograd.grad(
            outs,
            leaves,
            tree_flatten(cotangent)[0],
            retain_graph=True,
            create_graph=bool(create_graph),
            allow_unused=True,
            materialize_grads=True,
        )
        return tree_unflatten(list(found), spec)  # type: ignore[no-any-return]

    value = tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, out)
    return (value, pull, aux) if has_aux else (value, pull)


def jvp(func: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...], *, has_aux: bool = False) -> tuple[Any, ...]:
    """(value, derivative along the tangents): two backward passes, the second through the first."""
    values, leaves, _ = _chosen(tuple(primals), tuple(range(len(primals))))
    with autograd.enable_grad():
        out = func(*values)
        out, aux = out if has_aux else (out, None)
        outs, spec = tree_flatten(out)
        weights = [FUNCTIONS["zeros_like"](o).requires_grad_() for o in outs]
        first = autograd.grad(outs, leaves, weights, create_graph=True, allow_unused=True, materialize_grads=True)
        used = [(g, t) for g, t in zip(first, tree_flatten(tuple(tangents))[0], strict=True) if g.requires_grad]  # type: ignore[union-attr]
        if used:
            second: Sequence[Any] = autograd.grad(
                [g for g, _ in used],  # type: ignore[misc]
                weights,
                [t for _, t in used],
                allow_unused=True,
                materialize_grads=True,
            )
        else:
            second = [FUNCTIONS["zeros_like"](o) for o in outs]
    value = tree_map(lambda t: t.detach(), out)
    tangent = tree_unflatten([t.detach() for t in second], spec)
    return (value, tangent, aux) if has_aux else (value, tangent)


def jacrev(
    func: Callable[..., Any], argnums: int | Sequence[int] = 0, *, has_aux: bool = False, chunk_size: int | None = None
) -> Callable[..., Any]:
    """A function that returns the Jacobian: for each output of shape S and input of shape T, a tensor of shape S + T."""

    @functools.wraps(func)
    def run(*args: Any, **kwargs: Any) -> Any:
        values, leaves, spec = _chosen(args, argnums)
        outer = any(isinstance(x, Tensor) and x.requires_grad for x in tree_flatten(args)[0])
        with autograd.enable_grad():
            out = func(*values, **kwargs)
            out, aux = out if has_aux else (out, None)

            def of(o: Tensor) -> Any:
                flat = reshape(o, (-1,))
                rows = [
                    autograd.grad(flat[k], leaves, create_graph=outer, retain_graph=True, allow_unused=True, materialize_grads=True)
                    if o.requires_grad
                    else tuple(FUNCTIONS["zeros_like"](x) for x in leaves)
                    for k in range(o.numel())
                ]
                blocks = [reshape(stack([r[i] for r in rows]), (*o.shape, *x.shape)) for i, x in enumerate(leaves)]  # type: ignore[misc]
                return tree_unflatten(blocks, spec)

            result = tree_map(of, out)
        return (result, aux) if has_aux else result

    return run


def jacfwd(
    func: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False, *, randomness: str = "error"
) -> Callable[..., Any]:
    """`jacrev`: the same Jacobian, found backwards."""
    return jacrev(func, argnums, has_aux=has_aux)


def hessian(func: Callable[..., Any], argnums: int = 0) -> Callable[..., Any]:
    """A function that returns the second derivatives of a function that gives one number."""
    return jacrev(lambda *args, **kwargs: jacrev(func, argnums)(*args, **kwargs), argnums)


@contextmanager
def _swapped(module: Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Parameters and buffers of a module exchanged for a while."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for name, value in tensors.items():
            path, _, last = name.rpartition(".")
            owner = module.get_submodule(path)
            table = next((t for t in (owner._parameters, owner._buffers) if last in t), None)
            if table is None:
                raise KeyError(f"functional_call: {name} is no parameter or buffer of {type(module).__name__}")
            before.append((table, last, table[last]))
            table[last] = value  # type: ignore[assignment]
        yield
    finally:
        for table, last, value in reversed(before):
            table[last] = value


def functional_call(
    module: Module,
    parameter_and_buffer_dicts: Any,
    args: Any = None,
    kwargs: dict[str, Any] | None = None,
    *,
    tie_weights: bool = True,
    strict: bool = False,
) -> Any:
    """`module(*args, **kwargs)` with the given tensors in place of parameters and buffers of these names. Raises KeyError for others."""
    listed = [parameter_and_buffer_dicts] if isinstance(parameter_and_buffer_dicts, Mapping) else list(parameter_and_buffer_dicts)
    tensors = {name: t for d in listed for name, t in d.items()}
    own = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    if strict and own.keys() != tensors.keys():
        raise RuntimeError(
            f"functional_call: missing keys {sorted(own.keys() - tensors.keys())}, unexpected keys {sorted(tensors.keys() - own.keys())}"
        )
    if tie_weights:
        tied = {id(own[n]): t for n, t in tensors.items() if n in own}
        tensors = {n: tied[id(t)] for n, t in own.items() if id(t) in tied} | tensors
    arguments = () if args is None else args if isinstance(args, tuple) else (args,)
    with _swapped(module, tensors):
        return module(*arguments, **(kwargs or {}))


def stack_module_state(models: Sequence[Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers of modules of one kind, each stacked along a new first dimension."""
    out: list[dict[str, Tensor]] = []
    for kind in ("named_parameters", "named_buffers"):
        tables = [dict(getattr(m, kind)()) for m in models]
        out.append({name: stack([t[name] for t in tables]).detach().requires_grad_(tables[0][name].requires_grad) for name in tables[0]})
    return out[0], out[1]


def vmap(
    func: Callable[..., Any], in_dims: Any = 0, out_dims: Any = 0, randomness: str = "error", *, chunk_size: int | None = None
) -> Callable[..., Any]:
    """`func` for every element of a batch: called once an element, the results stacked at `out_dims`.

    It gives what a vectorised function would; the calls cost what a Python loop costs, unless all of it is compiled.
    """

    @functools.wraps(func)
    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten(args)
        dims = _spread(in_dims, args)
        sizes = {x.shape[d] for x, d in zip(leaves, dims, strict=True) if d is not None}
        if not sizes:
            raise ValueError("vmap: Expected at least one Tensor argument with an in_dim that is not None")
        if len(sizes) > 1:
            raise ValueError(
                f"vmap: Expected all tensors to have the same size in the mapped dimension, got sizes {sorted(sizes)} "
                "for the mapped dimension"
            )
        results = []
        for k in range(sizes.pop()):
            chosen = [x if d is None else x.select(d, k) for x, d in zip(leaves, dims, strict=True)]
            results.append(tree_flatten(func(*tree_unflatten(chosen, spec), **kwargs)))
        columns = [stack([FUNCTIONS["as_tensor"](r[0][i]) for r in results]) for i in range(len(results[0][0]))]
        result = tree_unflatten(columns, results[0][1])
        where = _spread(
            out_dims if not isinstance(out_dims, tuple | list) else tuple(out_dims),
            result if isinstance(out_dims, tuple | list) else (result,),
        )
        return tree_unflatten([movedim(c, 0, d) if d else c for c, d in zip(columns, where, strict=True)], results[0][1])

    return run


def _spread(dims: Any, values: Any) -> list[Any]:
    """One dimension (or None) for every leaf: `dims` is a number for all, or follows the structure of `values` as far as it goes."""
    if dims is None or isinstance(dims, int):
        return [dims if isinstance(x, Tensor) else None for x in tree_flatten(values)[0]]
    if isinstance(values, Mapping):
        return [d for k, v in values.items() for d in _spread(dims[k], v)]
    return [d for k, v in zip(dims, values, strict=True) for d in _spread(k, v)]
