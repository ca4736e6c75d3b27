"""`Drafter`: the lightest stage. It has no upstream, so its loop only drafts, within its window."""

from __future__ import annotations

from actors.stage import LanguageStage
from cascade_runtime.config import Recipe
from cascade_runtime.errors import ConfigError


class Drafter(LanguageStage):
    """Level 0 of a recipe with at least two levels."""

    def __init__(self, recipe: Recipe, replica: int = 0) -> None:
        if len(recipe.stages) < 2:
            raise ConfigError("cascade.levels", recipe.cascade.levels, "two levels or more: one alone is the target")
        super().__init__(recipe, 0, replica)
