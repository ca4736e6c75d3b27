"""What of a recipe's drafting fits together: lookup, drafters on edge boxes, trees, heads beside the target, rules of
acceptance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascade_runtime.config.acceptance import RULES, SHARED_NOISE, TRAVERSAL, FuzzyConfig
from cascade_runtime.errors import ConfigError

if TYPE_CHECKING:
    from cascade_runtime.config.recipe import Recipe


def check_drafting(recipe: Recipe) -> None:
    """Raise `ConfigError` naming the field that does not fit."""
    light, rule, tree = recipe.stages[0], recipe.cascade.acceptance, recipe.tree
    several = len(recipe.stages) > 1
    if recipe.cascade.loading == "in_turns" and (rule != SHARED_NOISE or tree is not None or light.heads):
        raise ConfigError("cascade.loading", "in_turns", "resident, with trees, heads or another rule of acceptance")
    if recipe.cascade.loading == "in_turns" and (light.drafter != "model" or recipe.emulation is not None):
        raise ConfigError("cascade.loading", "in_turns", "resident, where a stage has no weights")
    for stage in recipe.stages if several else ():
        if stage.heads:
            raise ConfigError(f"stages.{stage.name}.heads", stage.heads, "none, unless the target is the only level")
    if tree is not None and light.heads and tree.kind != "eagle2":
        raise ConfigError("tree.kind", tree.kind, "eagle2, where heads draft")
    models_draft = several and light.drafter == "model" and not light.emulated
    if tree is not None and not light.heads and not models_draft:
        raise ConfigError("tree", tree.kind, "no [tree], unless the lightest of several levels is a model")
    if light.drafter == "edge":
        _check_edge(recipe)
    sampled = tree is not None and tree.kind == "sampled"
    if rule != SHARED_NOISE and not (rule == TRAVERSAL and sampled) and (tree is not None or light.heads):
        raise ConfigError("cascade.acceptance", rule, f"{SHARED_NOISE}, where trees are drafted")
    if sampled != (rule == TRAVERSAL) or (sampled and len(recipe.stages) != 2):
        allowed = f'{TRAVERSAL} between two levels, with [tree] kind = "sampled", or neither'
        raise ConfigError("cascade.acceptance", rule, allowed)
    if rule != SHARED_NOISE and recipe.emulation is not None:
        raise ConfigError("cascade.acceptance", rule, f"{SHARED_NOISE}: emulated devices say tokens and no laws")
    kind = RULES[rule]
    if recipe.acceptance is not None and not isinstance(recipe.acceptance, kind):
        raise ConfigError("acceptance", recipe.acceptance, f"what {rule} takes: {kind.__name__}")
    if isinstance(recipe.acceptance, FuzzyConfig):
        recipe.acceptance.per_edge(len(recipe.stages) - 1)


def _check_edge(recipe: Recipe) -> None:
    """A box drafts on the features that it sends, and for one pipeline."""
    where = f"stages.{recipe.stages[0].name}.drafter"
    if recipe.encoder is None:
        raise ConfigError(where, "edge", "model or lookup, in a recipe without [encoder] and [adapter]")
    if recipe.cascade.acceptance != SHARED_NOISE:
        raise ConfigError("cascade.acceptance", recipe.cascade.acceptance, f"{SHARED_NOISE}, where edge boxes draft")
    if recipe.cascade.replicas != 1:
        raise ConfigError("cascade.replicas", recipe.cascade.replicas, "1, where edge boxes draft")
    for stage in recipe.stages:
        if stage.replicas != 1:
            raise ConfigError(f"stages.{stage.name}.replicas", stage.replicas, "1, where edge boxes draft")


def check_runs_apart(recipe: Recipe) -> None:
    """Raise `ConfigError` where the stages cannot run apart from each other, as pipelines run them.

    Trees and heads can: they are drafts, and drafts are hints. Rules that weigh laws cannot. They need the law that
    each draft was drawn from, a number per token of the vocabulary (1.2 MB a draft for 150,000 of them) where shared
    noise sends four bytes. And they are exact only where each token that was drawn is tested: one that is lost, or late
    because of what it says, and is made up for by a fresh draw, biases the answer (by .054 in
    tests/decoding/test_rejection.py), so that a verifier could not go on without a drafter that is silent. The lossy
    ones let drafts into the answer, which then would depend on when messages come.
    """
    rule = recipe.cascade.acceptance
    if recipe.cascade.loading != "resident":
        raise ConfigError("cascade.loading", recipe.cascade.loading, "resident: stages take turns in one process only")
    if rule != SHARED_NOISE:
        allowed = (
            f"{SHARED_NOISE}: drafts of a pipeline may be lost or late, which biases other rules; run in one process"
        )
        raise ConfigError("cascade.acceptance", rule, allowed)
