"""A TOML file that a user wrote, as tables, and a table as the arguments of a dataclass. Errors name the key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from cascade_runtime.errors import ConfigError

_MOST_BYTES = 65_536


def read_toml(what: str, source: str | Path, path: Path) -> dict[str, Any]:
    """The tables of a file of at most 64 KiB. what, source: as errors name it. Raises `ConfigError`."""
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except (OSError, RuntimeError, ValueError) as error:  # no such file, no such home, a name no file can have
        raise ConfigError(what, str(source), f"a readable file ({error})") from error
    if len(text) > _MOST_BYTES:
        raise ConfigError(what, str(source), f"a file of at most {_MOST_BYTES} bytes")
    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # bad TOML, bad UTF-8, nested without end
        raise ConfigError(what, str(source), f"well-formed TOML ({error})") from error


def known_keys(where: str, table: object, allowed: Sequence[str]) -> None:
    """Raise `ConfigError` unless this is a table with no other keys."""
    if not isinstance(table, Mapping):
        raise ConfigError(where, table, "a table")
    for key in table:
        if key not in allowed:
            raise ConfigError(f"{where}.{key}"[:100], table[key], f"only the keys {', '.join(allowed)}")


def arguments(kind: type, where: str, table: Any, *given: str) -> dict[str, Any]:
    """The table as keyword arguments of the dataclass `kind`, none unknown and none missing (`given` come apart)."""
    items = [item for item in fields(kind) if item.name not in given]
    known_keys(where, table, [item.name for item in items])
    needed = (item.name for item in items if item.default is MISSING and item.default_factory is MISSING)
    missing = [name for name in needed if name not in table]
    if missing:
        raise ConfigError(where, list(table), f"also {', '.join(missing)}")
    return dict(table)
