"""`recipe_to_dict`: a recipe as the nested tables of its TOML form, without what goes without saying."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from cascade_runtime.config.recipe import Recipe


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """What `recipe_from_dict` makes the same recipe of. Fields at their defaults are left out."""
    table = _table(recipe)
    table["stages"] = {stage.name: _table(stage, "name") for stage in recipe.stages}
    for key in ("encoder", "adapter"):
        table.get(key, {}).pop("name", None)
    return table


def _table(value: Any, *left_out: str) -> dict[str, Any]:
    items = [item for item in fields(value) if item.name not in left_out]
    return {item.name: _plain(getattr(value, item.name)) for item in items if getattr(value, item.name) != _usual(item)}


def _usual(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return _table(value)
    if isinstance(value, Mapping):
        return dict(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
