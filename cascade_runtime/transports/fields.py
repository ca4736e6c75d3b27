"""`Fields`: the fields of JSON that somebody else wrote, each of the kind and size asked for, or `InputError`.

What is too much is refused by its length before it is looked at; unknown fields are left alone, since the other side
may be newer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cascade_runtime.config.checks import integer, number, printable
from cascade_runtime.errors import InputError

T = TypeVar("T")


class Fields:
    """One JSON object; `where` names it in errors."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, Mapping):
            raise InputError(where, type(data).__name__, "an object")
        self._data: Mapping[str, Any] = data
        self._where = where

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._data.get(name) is not None

    def text(self, name: str, most: int = 65_536) -> str:
        """A string of at most `most` characters."""
        return _text(self._name(name), self._data.get(name), most)

    def integer(self, name: str, low: int, high: int) -> int:
        """An integer within bounds."""
        integer(InputError, self._name(name), self._data.get(name), low, high)
        return self._data[name]

    def number(self, name: str, low: float, high: float) -> float:
        """A number within bounds; never NaN."""
        number(InputError, self._name(name), self._data.get(name), low, high)
        return float(self._data[name])

    def texts(self, name: str, count: int, most: int = 65_536) -> tuple[str, ...]:
        """At most `count` strings of at most `most` characters."""
        return tuple(_text(self._name(name), value, most) for value in self._list(name, count))

    def integers(self, name: str, count: int, low: int, high: int) -> tuple[int, ...]:
        """At most `count` integers within bounds."""
        values = self._list(name, count)
        for value in values:
            integer(InputError, self._name(name), value, low, high)
        return tuple(values)

    def each(self, name: str, count: int, read: Callable[[object, str], T]) -> tuple[T, ...]:
        """At most `count` things, each read by `read(value, its name in errors)`; none where the field is missing."""
        if not self.has(name):
            return ()
        return tuple(read(value, f"{self._name(name)}[{i}]") for i, value in enumerate(self._list(name, count)))

    def mapping(self, name: str, count: int) -> dict[str, object] | None:
        """An object of at most `count` fields, whatever they hold; None where it is missing or null."""
        value = self._data.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping) or len(value) > count:
            raise InputError(self._name(name), type(value).__name__, f"an object of at most {count} fields, or null")
        return {str(key): inner for key, inner in value.items()}

    def inner(self, name: str) -> Fields:
        """An object in here."""
        return Fields(self._data.get(name), self._name(name))

    def only(self, name: str) -> Fields:
        """The one object of a list."""
        values = self._list(name, 1)
        if not values:
            raise InputError(self._name(name), "nothing", "one object")
        return Fields(values[0], self._name(name))

    def count(self, name: str, most: int) -> int:
        """How many things a list holds, at most `most`."""
        return len(self._list(name, most))

    def _list(self, name: str, count: int) -> list[Any]:
        value = self._data.get(name)
        if not isinstance(value, list):
            raise InputError(self._name(name), type(value).__name__, "a list")
        if len(value) > count:
            raise InputError(self._name(name), f"{len(value)} values", f"at most {count}")
        return value

    def _name(self, name: str) -> str:
        return f"{self._where}.{name}"


def _text(name: str, value: object, most: int) -> str:
    if not isinstance(value, str):
        raise InputError(name, printable(value), "a text")
    if len(value) > most:
        raise InputError(name, f"{len(value)} characters", f"at most {most}")
    return value
