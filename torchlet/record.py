"""Two kinds of small value with named fields, made without the code that `dataclass` and `NamedTuple` generate.

Generating it costs a millisecond a class, at every import of torchlet; what loads only when something is compiled uses dataclasses.
"""

from __future__ import annotations

from operator import attrgetter, itemgetter
from typing import Any, ClassVar, Self

__all__ = ["Record", "Result"]


class Record:
    """A value that is not changed once it is made: two of one class are equal, and hash alike, when their fields (`__slots__`) do."""

    __slots__: tuple[str, ...] = ()
    _key: ClassVar[attrgetter[Any]]  # called on a record: all its fields

    def __init_subclass__(cls) -> None:
        cls._key = attrgetter(*cls.__slots__)  # type: ignore[call-overload]

    def __eq__(self, other: object) -> bool:
        return self is other or (self.__class__ is other.__class__ and self._key(self) == self._key(other))

    def __hash__(self) -> int:
        return hash(self._key(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"

    def replace(self, **changes: Any) -> Self:
        """The same value with some fields changed. Raises TypeError for a name that is no field."""
        return type(self)(**{name: getattr(self, name) for name in self.__slots__} | changes)


class Result(tuple[Any, ...]):
    """What an operation with several results returns: a tuple whose elements have names, printed as PyTorch's `return_types` are.

    A subclass annotates its fields in order; `name` is what it is called where it prints.
    """

    __slots__ = ()
    _fields: ClassVar[tuple[str, ...]] = ()
    _name: ClassVar[str] = ""

    def __new__(cls, *values: Any) -> Self:
        if len(values) != len(cls._fields):
            raise TypeError(f"{cls.__name__}: got {len(values)} values; expected {len(cls._fields)}: {', '.join(cls._fields)}")
        return super().__new__(cls, values)

    def __init_subclass__(cls, name: str = "") -> None:
        cls._name = name
        if cls.__annotations__ and not cls._fields:
            cls._fields = tuple(cls.__annotations__)
            for position, field in enumerate(cls._fields):
                setattr(cls, field, property(itemgetter(position)))

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        fields = ",\n".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
        return f"torchlet.return_types.{self._name}(\n{fields})"
