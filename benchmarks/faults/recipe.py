"""The cascade that all parts hurt."""

from __future__ import annotations

from pathlib import Path

from cascade_runtime.config import Recipe, load_recipe

PATH = Path(__file__).parents[1] / "recipes" / "emulated_5_25_100.toml"


def recipe(*changes: str) -> Recipe:
    """It, with `TABLE.KEY=VALUE` changes."""
    return load_recipe(PATH, changes)


def rows(told: dict[str, object]) -> str:
    """A table of one column."""
    return "\n".join(f"  {name:<32}{value}" for name, value in told.items())
