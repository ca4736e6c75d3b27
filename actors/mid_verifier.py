"""`MidVerifier`: a stage with neighbours on both sides. It verifies what the lighter one drafts and drafts for the
heavier.
"""

from __future__ import annotations

from actors.stage import LanguageStage
from cascade_runtime.config import Recipe
from cascade_runtime.errors import ConfigError


class MidVerifier(LanguageStage):
    """A level between the first and the last."""

    def __init__(self, recipe: Recipe, index: int, replica: int = 0) -> None:
        if not 0 < index < len(recipe.stages) - 1:
            raise ConfigError("index", index, f"1..{len(recipe.stages) - 2}, a level between the first and the last")
        super().__init__(recipe, index, replica)
