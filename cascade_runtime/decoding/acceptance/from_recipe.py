"""`acceptance_from_recipe`: how drafts are accepted, as the recipe says; traversal is a round of its own."""

from __future__ import annotations

from cascade_runtime.config import Recipe
from cascade_runtime.config.acceptance import RULES, DeferralConfig, FuzzyConfig, RatioConfig, TypicalConfig
from cascade_runtime.decoding.acceptance.acceptance import Acceptance
from cascade_runtime.decoding.acceptance.fuzzy import LossyFuzzy
from cascade_runtime.decoding.acceptance.ratio import Ratio
from cascade_runtime.decoding.acceptance.rejection import Rejection
from cascade_runtime.decoding.acceptance.rule import Rule
from cascade_runtime.decoding.acceptance.shared_noise import SharedNoise
from cascade_runtime.decoding.acceptance.speculative_cascade import LossyCascade, LossyCascadeToken, chow, diff, opt
from cascade_runtime.decoding.acceptance.typical import LossyTypical

_DEFER = {"lossy_cascade_chow": chow, "lossy_cascade_diff": diff, "lossy_cascade_opt": opt}


def acceptance_from_recipe(recipe: Recipe) -> Acceptance:
    """Shared noise, or rejection sampling by one of the rules."""
    name, edges = recipe.cascade.acceptance, len(recipe.stages) - 1
    chosen = recipe.acceptance or RULES[name]()
    rule: Rule
    match chosen:
        case RatioConfig():
            rule = Ratio(edges, chosen.leniency)
        case FuzzyConfig():
            rule = LossyFuzzy(chosen.per_edge(edges))
        case TypicalConfig():
            rule = LossyTypical(chosen.epsilon, chosen.alpha)
        case DeferralConfig():
            defer = _DEFER.get(name)
            rule = LossyCascade(defer, chosen.alpha) if defer else LossyCascadeToken(chosen.alpha)
        case _:
            return SharedNoise()
    return Rejection(name, rule)
