"""einsum: an equation of letters as permutations, reshapes and matrix products, two operands at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torchlet.ops.contract import matmul
from torchlet.ops.public import public
from torchlet.ops.reduce import sum as sum_over
from torchlet.ops.view import permute, reshape
from torchlet.tensor import Tensor

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of PyTorch's positions 0 to 51


def _refuse(text: str) -> RuntimeError:
    return RuntimeError(f"einsum(): {text}")


def _letters(term: str, t: Tensor, number: int, spare: str) -> str:
    """The operand's dimensions as letters; those of an ellipsis get spare letters, counted from the right."""
    term = term.replace(" ", "")
    if "..." in term:
        before, _, after = term.partition("...")
        covered = t.ndim - len(before) - len(after)
        if covered < 0:
            raise _refuse(
                f"the number of subscripts in the equation ({len(before + after)}) is more than the number of dimensions ({t.ndim}) for operand {number}"
            )
        term = before + spare[len(spare) - covered :] + after
    if not all(c.isalpha() or c in spare for c in term):
        raise _refuse(f"invalid subscript given at index {number} in '{term}'; subscripts must be in [a-zA-Z]")
    if len(term) != t.ndim:
        raise _refuse(
            f"the number of subscripts in the equation ({len(term)}) does not match the number of dimensions ({t.ndim}) for operand {number} and no ellipsis was given"
        )
    return term


def _diagonals(t: Tensor, term: str) -> tuple[Tensor, str]:
    """A letter that stands twice in one operand means its diagonal."""
    for c in dict.fromkeys(term):
        while term.count(c) > 1:
            i = term.index(c)
            j = term.index(c, i + 1)
            if t.shape[i] != t.shape[j]:
                raise _refuse(f"subscript {c} is repeated but the sizes don't match, {t.shape[j]} != {t.shape[i]}")
            t = t.diagonal(0, i, j)  # the diagonal becomes the last dimension
            term = term[:i] + term[i + 1 : j] + term[j + 1 :] + c
    return t, term


def _drop(t: Tensor, term: str, keep: str) -> tuple[Tensor, str]:
    """Sum over letters that nobody needs."""
    gone = [i for i, c in enumerate(term) if c not in keep]
    return (sum_over(t, gone) if gone else t), "".join(c for c in term if c in keep)


def _one(t: Tensor, term: str, sizes: dict[str, int]) -> tuple[Tensor, str]:
    """Dimensions of size 1 that are broadcast against a larger size are taken away."""
    gone = [i for i, c in enumerate(term) if t.shape[i] == 1 and sizes[c] != 1]
    if not gone:
        return t, term
    return reshape(t, tuple(n for i, n in enumerate(t.shape) if i not in gone)), "".join(c for i, c in enumerate(term) if i not in gone)


def _pair(a: Tensor, la: str, b: Tensor, lb: str, keep: str, sizes: dict[str, int]) -> tuple[Tensor, str]:
    """The product of two operands, summed over the letters not in `keep`."""
    a, la = _drop(a, la, keep + lb)
    b, lb = _drop(b, lb, keep + la)
    batch = "".join(c for c in la if c in lb and c in keep)
    inner = "".join(c for c in la if c in lb and c not in keep)
    rows = "".join(c for c in la if c not in lb)
    columns = "".join(c for c in lb if c not in la)
    out = batch + rows + columns
    if not inner:  # nothing is summed: a broadcast product
        left = _spread(a, la, batch + rows, len(columns))
        right = permute(b, [lb.index(c) for c in batch + columns])
        right = reshape(right, (*right.shape[: len(batch)], *(1,) * len(rows), *right.shape[len(batch) :]))
        return left * right, out

    def count(letters: str) -> int:
        return math.prod(sizes[c] for c in letters)

    left = reshape(permute(a, [la.index(c) for c in batch + rows + inner]), (*[sizes[c] for c in batch], count(rows), count(inner)))
    right = reshape(permute(b, [lb.index(c) for c in batch + inner + columns]), (*[sizes[c] for c in batch], count(inner), count(columns)))
    return reshape(matmul(left, right), tuple(sizes[c] for c in out)), out


def _spread(t: Tensor, term: str, order: str, trailing: int) -> Tensor:
    t = permute(t, [term.index(c) for c in order])
    return reshape(t, (*t.shape, *(1,) * trailing))


def _from_lists(args: Sequence[Any]) -> tuple[str, list[Tensor]]:
    """(tensor, [0, 1], tensor, [1, 2], …, [0, 2]) as an equation."""

    def term(listed: Sequence[Any]) -> str:
        return "".join("..." if i is Ellipsis else _LETTERS[i] for i in listed)

    pairs = len(args) // 2
    equation = ",".join(term(args[2 * k + 1]) for k in range(pairs))
    return equation + ("->" + term(args[-1]) if len(args) % 2 else ""), [args[2 * k] for k in range(pairs)]


@public(method=False)
def einsum(*args: Any) -> Tensor:
    """Sums of products by an equation: `einsum("bij,bjk->bik", a, b)`; letters that the result lacks are summed over.

    Without "->" the result has the letters that occur once, in alphabetical order. "..." stands for any dimensions, which are
    broadcast. Raises RuntimeError for equations that do not fit the operands.
    """
    if isinstance(args[0], str):
        equation, operands = args[0], list(args[1]) if len(args) == 2 and isinstance(args[1], list | tuple) else list(args[1:])
    else:
        equation, operands = _from_lists(args)
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not operands:
        raise _refuse("must provide at least one operand")
    if len(terms) != len(operands):
        which = "fewer" if len(terms) > len(operands) else "more"
        raise _refuse(f"{which} operands were provided than specified in the equation")
    spare = "".join(chr(0x100 + k) for k in range(max(t.ndim for t in operands)))  # letters nobody types, for the ellipsis
    parts = [_diagonals(t, _letters(term, t, k, spare)) for k, (term, t) in enumerate(zip(terms, operands, strict=True))]
    sizes: dict[str, int] = {}
    for k, (t, term) in enumerate(parts):
        for c, n in zip(term, t.shape, strict=True):
            known = sizes.setdefault(c, n)
            if n != known and 1 not in (n, known):
                raise _refuse(f"subscript {c} has size {n} for operand {k} which does not broadcast with previously seen size {known}")
            sizes[c] = n if known == 1 else known
    covered = "".join(c for c in spare if c in sizes)
    if arrow:
        out = right.replace("...", covered)
    else:
        every = "".join(terms).replace("...", "")
        out = covered + "".join(sorted(c for c in set(every) if every.count(c) == 1))
    for c in out:
        if c not in sizes:
            raise _refuse(f"output subscript {c} does not appear in the equation for any input operand")
        if out.count(c) > 1:
            raise _refuse(f"output subscript {c} appears more than once in the output")
    parts = [_one(t, term, sizes) for t, term in parts]
    t, term = parts[0]
    for k, (other, letters) in enumerate(parts[1:], 1):
        later = out + "".join(p[1] for p in parts[k + 1 :])
        t, term = _pair(t, term, other, letters, later, sizes)
    t, term = _drop(t, term, out)
    return permute(t, [term.index(c) for c in out]) if term != out else t
