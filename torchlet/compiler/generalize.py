"""Kernels' texts that differ only in their numbers become one text whose differing numbers are parameters.

A text is cut at its number literals. Two texts with the same words between the numbers are *unified*: numbers that are equal stay, the
others become parameters, one for each distinct pair of values. A further text *matches* when its words and remaining numbers are those
of the general text, and all places of one parameter hold one value: with these values the general text means what the text says, so
that nothing has to be known of where the numbers come from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["ROOM", "SIZES", "Hole", "Room", "Text", "differences", "match", "of", "render", "unify"]

Number = int | float

SIZES = "TL_SIZES;"  # stands in a text where the parameters are declared: once in each function
ROOM = "TL_ROOM("  # TL_ROOM(n, most): the length of an array that depends on n, and is never more than `most`
_LITERAL = re.compile(r"(?<![\w.])(\d+\.?\d*(?:[eE][+-]?\d+)?(?:[uUlL]+|f)?)(?![\w.])")


@dataclass(frozen=True, slots=True)
class Hole:
    """A number that is parameter `parameter`. `kind`: "" an integer, "u" of 32 bits, "f" a float, "d" a double."""

    parameter: int
    kind: str


@dataclass(frozen=True, slots=True)
class Room:
    """The length of an array: it has room for `most` elements, whatever the size is."""

    most: int


@dataclass(frozen=True, slots=True)
class Text:
    """`words[0] numbers[0] words[1] …`; `reals[k]` is true when parameter k is a floating-point number."""

    words: tuple[str, ...]
    numbers: tuple[str | Hole | Room, ...]
    reals: tuple[bool, ...] = ()


def of(text: str) -> Text:
    """A text without parameters."""
    parts = _LITERAL.split(text)
    return Text(tuple(parts[::2]), tuple(parts[1::2]))


def match(general: Text, text: Text) -> tuple[Number, ...] | None:
    """The values of the parameters with which `general` means what `text` (which has none) says; None where there are none."""
    if general.words != text.words:
        return None
    values: list[Number | None] = [None] * len(general.reals)
    for i, (mine, other) in enumerate(zip(general.numbers, text.numbers, strict=True)):
        if mine == other:
            continue
        assert isinstance(other, str)
        if isinstance(mine, str):
            return None
        kind, value = _read(other)
        if isinstance(mine, Room):
            if kind or text.numbers[i + 1] != str(mine.most):
                return None
            continue
        known = values[mine.parameter]
        if kind != mine.kind or (known is not None and not _same(known, value)):
            return None
        values[mine.parameter] = value
    return tuple([v for v in values if v is not None])


def unify(general: Text, text: Text) -> Text | None:
    """The most special text that both are cases of; None where they differ in more than numbers."""
    if general.words != text.words:
        return None
    parameters: dict[Hashable, int] = {}
    reals: list[bool] = []
    numbers: list[str | Hole | Room] = []
    for i, (mine, other) in enumerate(zip(general.numbers, text.numbers, strict=True)):
        if mine == other:
            numbers.append(mine)
            continue
        assert isinstance(other, str)
        kind, value = _read(other)
        if isinstance(mine, Room) or general.words[i].endswith(ROOM):
            most = text.numbers[i + 1]
            if kind or not isinstance(most, str) or general.numbers[i + 1] != most:
                return None
            numbers.append(Room(int(most)))
            continue
        old: Hashable
        if isinstance(mine, Hole):
            before, old = mine.kind, ("parameter", mine.parameter)
        else:
            before, old_value = _read(mine)
            old = _exact(old_value)
        if before != kind:
            return None
        key = old, _exact(value)
        if key not in parameters:
            parameters[key] = len(reals)
            reals.append(isinstance(value, float))
        numbers.append(Hole(parameters[key], kind))
    return Text(general.words, tuple(numbers), tuple(reals))


def render(text: Text, first: int) -> str:
    """The text as C; parameter k comes in s[first + k], a floating-point one as the bits of a double."""
    declared = " ".join(
        f"const double size{k} = tl_double(s[{first + k}]);" if real else f"const int64_t size{k} = s[{first + k}];"
        for k, real in enumerate(text.reals)
    )
    spelled = {"": "size{}", "u": "((uint32_t)size{})", "f": "((float)size{})", "d": "size{}"}
    parts = [text.words[0]]
    for number, words in zip(text.numbers, text.words[1:], strict=True):
        if isinstance(number, Hole):
            parts.append(spelled[number.kind].format(number.parameter))
        else:
            parts.append(number if isinstance(number, str) else str(number.most))
        parts.append(words)
    return "".join(parts).replace(SIZES, declared)


def differences(general: Text, text: Text) -> Mapping[tuple[str, str], int]:
    """(number, other number) -> in how many places the two differ so; a parameter is written `size0`."""
    found: Counter[tuple[str, str]] = Counter()
    for mine, other in zip(general.numbers, text.numbers, strict=True):
        if mine != other and not isinstance(mine, Room):
            found[f"size{mine.parameter}" if isinstance(mine, Hole) else mine, str(other)] += 1
    return found


def _read(literal: str) -> tuple[str, Number]:
    """(kind, value) of a C literal. An unsigned one that 32 bits do not hold is of a kind of its own, which no parameter has."""
    if literal.endswith("f"):
        return "f", float(np.float32(literal[:-1]))
    digits = literal.rstrip("uUlL")
    if not digits.isdigit():
        return "d", float(literal)
    value = int(digits)
    unsigned = "u" in literal.lower()
    return ("u" if value < 2**32 else "U") if unsigned else "", value


def _same(x: Number, y: Number) -> bool:
    return _exact(x) == _exact(y)


def _exact(x: Number) -> Hashable:
    return type(x), x
