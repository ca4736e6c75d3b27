"""`stage_kind`: which class a stage of a recipe is, and what it is made of."""

from __future__ import annotations

from typing import Any

from actors.adapter import AdapterVerifierStage
from actors.drafter import Drafter
from actors.edge_relay import EdgeRelay
from actors.encoder import EventEncoderStage
from actors.mid_verifier import MidVerifier
from actors.target import Target
from cascade_runtime.config import Recipe, stage_of


def stage_kind(recipe: Recipe, name: str) -> tuple[type, tuple[Any, ...]]:
    """Class and arguments of a stage, or of a replica of one, by its name (`Recipe.members`)."""
    stage = stage_of(name)
    replica = recipe.members[stage].index(name)
    if stage in ("encoder", "adapter"):
        return EventEncoderStage if stage == "encoder" else AdapterVerifierStage, (recipe, replica)
    level = recipe.cascade.levels.index(stage)
    if level == len(recipe.stages) - 1:
        return Target, (recipe, replica)
    if level:
        return MidVerifier, (recipe, level, replica)
    return (EdgeRelay, (recipe,)) if recipe.stages[0].drafter == "edge" else (Drafter, (recipe, replica))
