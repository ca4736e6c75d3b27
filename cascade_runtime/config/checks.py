"""Checks that a configured value is of the right kind and within its bounds; each error names the field."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cascade_runtime.errors import ConfigError, InputError

NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")

FieldErrorType = type[ConfigError] | type[InputError]


def integer(error: FieldErrorType, name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise error(name, printable(value), f"an integer from {low} to {high}")


def number(error: FieldErrorType, name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN is not within
        raise error(name, printable(value), f"a number from {low:g} to {high:g}")


def printable(value: object) -> object:
    """Python refuses to print integers of more than 4300 digits, which hexadecimal TOML can hold."""
    return f"an integer of {value.bit_length()} bits" if isinstance(value, int) and abs(value) >> 256 else value


def choice(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(name, value, ", ".join(allowed))
