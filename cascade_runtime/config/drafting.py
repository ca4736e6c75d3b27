"""What of a recipe's drafting fits together: lookup, trees, heads beside the target, rules of acceptance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascade_runtime.config.acceptance import RULES, SHARED_NOISE, FuzzyConfig
from cascade_runtime.errors import ConfigError

if TYPE_CHECKING:
    from cascade_runtime.config.recipe import Recipe


def check_drafting(recipe: Recipe) -> None:
    """Raise `ConfigError` naming the field that does not fit."""
    light, rule, tree = recipe.stages[0], recipe.cascade.acceptance, recipe.tree
    several = len(recipe.stages) > 1
    if recipe.cascade.loading == "in_turns" and (rule != SHARED_NOISE or tree is not None or light.heads):
        raise ConfigError("cascade.loading", "in_turns", "resident, with trees, heads or another rule of acceptance")
    if recipe.cascade.loading == "in_turns" and (light.drafter == "lookup" or recipe.emulation is not None):
        raise ConfigError("cascade.loading", "in_turns", "resident, where a stage has no weights")
    for stage in recipe.stages if several else ():
        if stage.heads:
            raise ConfigError(f"stages.{stage.name}.heads", stage.heads, "none, unless the target is the only level")
    if tree is not None and light.heads and tree.kind != "eagle2":
        raise ConfigError("tree.kind", tree.kind, "eagle2, where heads draft")
    models_draft = several and light.drafter == "model" and not light.emulated
    if tree is not None and not light.heads and not models_draft:
        raise ConfigError("tree", tree.kind, "no [tree], unless the lightest of several levels is a model")
    if rule != SHARED_NOISE and (tree is not None or light.heads):
        raise ConfigError("cascade.acceptance", rule, f"{SHARED_NOISE}, where trees are drafted")
    if rule != SHARED_NOISE and recipe.emulation is not None:
        raise ConfigError("cascade.acceptance", rule, f"{SHARED_NOISE}: emulated devices say tokens and no laws")
    kind = RULES[rule]
    if recipe.acceptance is not None and not isinstance(recipe.acceptance, kind):
        raise ConfigError("acceptance", recipe.acceptance, f"what {rule} takes: {kind.__name__}")
    if isinstance(recipe.acceptance, FuzzyConfig):
        recipe.acceptance.per_edge(len(recipe.stages) - 1)


def check_runs_apart(recipe: Recipe) -> None:
    """Raise `ConfigError` where the stages cannot run apart from each other, as pipelines run them."""
    rule, heads = recipe.cascade.acceptance, recipe.target.heads
    if recipe.cascade.loading != "resident":
        raise ConfigError("cascade.loading", recipe.cascade.loading, "resident: stages take turns in one process only")
    if rule != SHARED_NOISE:
        allowed = f"{SHARED_NOISE}: the drafts of a pipeline are hints without laws; other rules run in one process"
        raise ConfigError("cascade.acceptance", rule, allowed)
    if recipe.tree is not None:
        raise ConfigError("tree", recipe.tree.kind, "none: drafts of a pipeline are chains; trees run in one process")
    if heads:
        raise ConfigError(f"stages.{recipe.target.name}.heads", heads, "none: heads draft in one process only")
