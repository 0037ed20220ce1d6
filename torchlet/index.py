"""The integer algebra of addresses: sums of axes, quotients and remainders, simplified by the ranges of the axes.

Grammar
    Index = constant + sum(term * coefficient)
    term  = Axis | FloorDiv(Index, n) | Mod(Index, n) | an integer Expr (a data-dependent position)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import lru_cache

from torchlet.record import Record


class Axis(Record):
    """A loop variable running over `range(extent)`. Two axes are the same when their name and extent are."""

    __slots__ = ("name", "extent")

    def __init__(self, name: str, extent: int):
        self.name, self.extent = name, extent

    def __str__(self) -> str:
        return self.name


class FloorDiv(Record):
    """floor(index / divisor) with index >= 0 and divisor > 0."""

    __slots__ = ("index", "divisor")

    def __init__(self, index: Index, divisor: int):
        self.index, self.divisor = index, divisor

    def __str__(self) -> str:
        return f"(({self.index}) // {self.divisor})"


class Mod(Record):
    """index mod divisor with index >= 0 and divisor > 0."""

    __slots__ = ("index", "divisor")

    def __init__(self, index: Index, divisor: int):
        self.index, self.divisor = index, divisor

    def __str__(self) -> str:
        return f"(({self.index}) % {self.divisor})"


Term = Hashable


class Index(Record):
    """`const + sum(coefficient * term)`; terms are distinct, coefficients are not zero, order is canonical."""

    __slots__ = ("terms", "const")

    def __init__(self, terms: tuple[tuple[Term, int], ...] = (), const: int = 0):
        self.terms, self.const = terms, const

    def __add__(self, other: Index | int) -> Index:
        if isinstance(other, int):
            return Index(self.terms, self.const + other)
        return _sum(self.terms + other.terms, self.const + other.const)

    def __mul__(self, factor: int) -> Index:
        if factor == 0:
            return ZERO
        return self if factor == 1 else Index(tuple((t, c * factor) for t, c in self.terms), self.const * factor)

    def __sub__(self, other: Index | int) -> Index:
        return self + (other * -1)

    def coefficient(self, axis: Term) -> int:
        """The factor of `axis` itself (0 where it occurs only inside a quotient, a remainder, or not at all)."""
        return next((c for t, c in self.terms if t == axis), 0)

    def axes(self) -> Iterator[Axis]:
        """Every axis the index depends on, also inside quotients and remainders (not inside data-dependent terms)."""
        for term, _ in self.terms:
            if isinstance(term, Axis):
                yield term
            elif isinstance(term, FloorDiv | Mod):
                yield from term.index.axes()

    def is_affine(self) -> bool:
        """True when every term is a plain axis."""
        return all(isinstance(t, Axis) for t, _ in self.terms)

    def substitute(self, replace: Callable[[Term], Index | None]) -> Index:
        """The same index with terms replaced (`None` keeps an axis or a data-dependent term)."""
        out = Index((), self.const)
        for term, c in self.terms:
            new = replace(term)
            if new is None:
                if isinstance(term, FloorDiv):
                    new = floordiv(term.index.substitute(replace), term.divisor)
                elif isinstance(term, Mod):
                    new = mod(term.index.substitute(replace), term.divisor)
                else:
                    new = Index(((term, 1),))
            out = out + new * c
        return out

    def bounds(self) -> tuple[int, int] | None:
        """Smallest and largest value, or None when a data-dependent term is in it."""
        low = high = self.const
        for term, c in self.terms:
            r = _term_bounds(term)
            if r is None:
                return None
            a, b = r[0] * c, r[1] * c
            low, high = low + min(a, b), high + max(a, b)
        return low, high

    def __str__(self) -> str:
        parts = [str(t) if c == 1 else f"{c}*{t}" for t, c in self.terms]
        if self.const or not parts:
            parts.append(str(self.const))
        return " + ".join(parts)


ZERO = Index()


def of(term: Term) -> Index:
    """The index that is just this term; an axis of extent 1 is always 0."""
    if isinstance(term, Axis) and term.extent == 1:
        return ZERO
    return Index(((term, 1),))


def _term_bounds(term: Term) -> tuple[int, int] | None:
    if isinstance(term, Axis):
        return 0, max(term.extent - 1, 0)
    if isinstance(term, Mod):
        inner = term.index.bounds()
        return (0, term.divisor - 1) if inner is None else (0, min(term.divisor - 1, max(inner[1], 0)))
    if isinstance(term, FloorDiv):
        inner = term.index.bounds()
        return None if inner is None else (inner[0] // term.divisor, inner[1] // term.divisor)
    return None


def _key(entry: tuple[Term, int]) -> tuple[int, str, str]:
    term, c = entry
    return -abs(c), type(term).__name__, str(term)


def _sum(entries: tuple[tuple[Term, int], ...], const: int) -> Index:
    total: dict[Term, int] = {}
    for term, c in entries:
        total[term] = total.get(term, 0) + c
    # n*(x // n) + x % n is x
    for term in [t for t in total if isinstance(t, Mod)]:
        quotient = FloorDiv(term.index, term.divisor)
        c = total.get(term, 0)
        if c and total.get(quotient, 0) == c * term.divisor:
            del total[term], total[quotient]
            rest = _sum(tuple(total.items()), const)
            return rest + term.index * c
    return Index(tuple(sorted(((t, c) for t, c in total.items() if c), key=_key)), const)


def _split(index: Index, n: int) -> tuple[Index, Index]:
    """`index == n * quotient + rest` with every coefficient divisible by n in the quotient."""
    quotient = Index(tuple((t, c // n) for t, c in index.terms if c % n == 0), index.const // n)
    rest = Index(tuple((t, c) for t, c in index.terms if c % n), index.const % n)
    return quotient, rest


@lru_cache(maxsize=65536)
def floordiv(index: Index, n: int) -> Index:
    """index // n for index >= 0, simplified by what is known of the ranges."""
    if n == 1 or index == ZERO:
        return index
    quotient, rest = _split(index, n)
    r = rest.bounds()
    if r is not None and 0 <= r[0] and r[1] < n:
        return quotient
    if len(rest.terms) == 1 and rest.const == 0 and rest.terms[0][1] == 1 and isinstance(rest.terms[0][0], FloorDiv):
        inner = rest.terms[0][0]
        return quotient + floordiv(inner.index, inner.divisor * n)
    if r is not None and r[0] >= 0:
        # (16 a + b) // 32 with b < 16 is a // 2
        divisors = [c for _, c in rest.terms if n % c == 0 and c > 1]
        for g in sorted(divisors, reverse=True):
            high, low = _split(rest, g)
            b = low.bounds()
            if b is not None and 0 <= b[0] and b[1] < g and high.terms:
                return quotient + floordiv(high, n // g)
        return quotient + Index(((FloorDiv(rest, n), 1),))
    return Index(((FloorDiv(index, n), 1),))


@lru_cache(maxsize=65536)
def mod(index: Index, n: int) -> Index:
    """index % n for index >= 0, simplified by what is known of the ranges."""
    if n == 1 or index == ZERO:
        return ZERO
    _, rest = _split(index, n)
    r = rest.bounds()
    if r is not None and 0 <= r[0] and r[1] < n:
        return rest
    if r is not None and r[0] >= 0:
        divisors = [c for _, c in rest.terms if n % c == 0 and c > 1]
        for g in sorted(divisors, reverse=True):
            high, low = _split(rest, g)
            b = low.bounds()
            if b is not None and 0 <= b[0] and b[1] < g and high.terms:
                return mod(high, n // g) * g + low
        return Index(((Mod(rest, n), 1),))
    return Index(((Mod(index, n), 1),))


def flatten(indices: tuple[Index, ...], shape: tuple[int, ...]) -> Index:
    """The row-major position of a coordinate in `shape`."""
    out, stride = ZERO, 1
    for i, n in zip(reversed(indices), reversed(shape), strict=True):
        if n != 1:
            out = out + i * stride
        stride *= n
    return out


def unflatten(position: Index, shape: tuple[int, ...]) -> tuple[Index, ...]:
    """The coordinate in `shape` of a row-major position. A shape without elements has none to find: any coordinate will do."""
    if 0 in shape:
        return (ZERO,) * len(shape)
    out, stride = [], 1
    for k, n in enumerate(reversed(shape)):
        i = floordiv(position, stride)
        out.append(ZERO if n == 1 else i if k == len(shape) - 1 else mod(i, n))
        stride *= n
    return tuple(reversed(out))
