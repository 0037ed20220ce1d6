"""Nested containers as lists of leaves and back: tuples, named tuples, lists and dicts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["TreeSpec", "tree_flatten", "tree_leaves", "tree_map", "tree_map_only", "tree_unflatten"]


@dataclass(frozen=True, slots=True)
class TreeSpec:
    """The structure without its leaves: the container's type, its keys, its children; type None is a leaf."""

    type: Any
    context: Any
    children_specs: tuple[TreeSpec, ...]

    @property
    def num_leaves(self) -> int:
        """How many leaves belong in it."""
        return 1 if self.type is None else sum(c.num_leaves for c in self.children_specs)


_LEAF = TreeSpec(None, None, ())


def _children(tree: Any) -> tuple[list[Any], Any] | None:
    if type(tree) in (dict, OrderedDict):
        return list(tree.values()), tuple(tree)
    if type(tree) in (list, tuple) or (isinstance(tree, tuple) and hasattr(tree, "_fields")):
        return list(tree), None
    return None


def tree_flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], TreeSpec]:
    """(leaves from left to right, the structure)."""
    found = None if is_leaf is not None and is_leaf(tree) else _children(tree)
    if found is None:
        return [tree], _LEAF
    leaves: list[Any] = []
    specs = []
    for child in found[0]:
        part, spec = tree_flatten(child, is_leaf)
        leaves += part
        specs.append(spec)
    return leaves, TreeSpec(type(tree), found[1], tuple(specs))


def tree_unflatten(leaves: Any, treespec: TreeSpec) -> Any:
    """The structure with these leaves. Raises ValueError for a wrong number of them."""
    listed = list(leaves)
    if len(listed) != treespec.num_leaves:
        raise ValueError(f"tree_unflatten: {len(listed)} leaves; expected {treespec.num_leaves}")
    return _build(iter(listed), treespec)


def _build(leaves: Any, spec: TreeSpec) -> Any:
    if spec.type is None:
        return next(leaves)
    children = [_build(leaves, c) for c in spec.children_specs]
    if spec.context is not None:
        return spec.type(zip(spec.context, children, strict=True))
    return spec.type(*children) if hasattr(spec.type, "_fields") else spec.type(children)


def tree_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[Any]:
    """The leaves from left to right."""
    return tree_flatten(tree, is_leaf)[0]


def tree_map(func: Callable[..., Any], tree: Any, *rests: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """The structure with `func` of every leaf (and of the leaves at its place in the other trees)."""
    leaves, spec = tree_flatten(tree, is_leaf)
    others = [tree_flatten(r, is_leaf)[0] for r in rests]
    return tree_unflatten([func(*group) for group in zip(leaves, *others, strict=True)], spec)


def tree_map_only(kind: Any, func: Callable[[Any], Any], tree: Any) -> Any:
    """`tree_map` that leaves alone what is not of this type."""
    return tree_map(lambda x: func(x) if isinstance(x, kind) else x, tree)
