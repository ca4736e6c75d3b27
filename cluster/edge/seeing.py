"""`seeing_of`: how a recipe looks at a window, and where the work on one may be cut."""

from __future__ import annotations

from typing import Any

from cascade_runtime.config import Recipe, Sees
from cascade_runtime.edge.cut import CUTS, Seeing
from cascade_runtime.edge.drafter import DrafterFacts
from cascade_runtime.errors import FeatureSpaceError


def seeing_of(recipe: Recipe) -> Seeing:
    """From the recipe's checkpoints. Emulated stages look at nothing: they are sent events. Raises `ConfigError`."""
    if recipe.emulation is not None:
        return Seeing(recipe=recipe.name, cuts=("raw",), rule="", options={})
    from cascade_runtime.models.event_encoder import load_adapter
    from cascade_runtime.models.stage_source import checkpoint_path, load_front

    rule, options = load_front(recipe.target).pixels.event_representation
    source_space = target_space = ""
    if recipe.encoder is not None and recipe.adapter is not None:
        adapter = load_adapter(checkpoint_path(recipe.adapter), "cpu")
        source_space, target_space = adapter.source_space, adapter.target_space
    drafts = recipe.stages[0].drafter == "edge"
    cuts = CUTS if drafts else CUTS[:3]
    return Seeing(
        recipe=recipe.name,
        cuts=cuts if source_space else CUTS[:2],
        rule=rule,
        options=options,
        counts=any(Sees.parse(stage.sees).counts_events for stage in recipe.stages),
        source_space=source_space,
        target_space=target_space,
        drafter=_drafter(load_front(recipe.stages[0]), target_space) if drafts else None,
    )


def _drafter(front: Any, target_space: str) -> DrafterFacts:
    """What may draft on the edge: a model that reads what the edge's adapter makes. Raises `FeatureSpaceError`."""
    from cascade_runtime.decoding.level import tokenizer_tag

    if front.space != target_space:
        raise FeatureSpaceError("drafter.space", front.space, f"the target's, {target_space}: no other is on the edge")
    tokenizer = front.tokenizer
    return DrafterFacts(
        tokenizer=tokenizer_tag(tokenizer), vocab_size=len(tokenizer), ends=front.ends, space=front.space
    )
