"""`policy_from_recipe`: the policy of one stage, as its recipe says."""

from __future__ import annotations

from cascade_runtime.config import Recipe
from cascade_runtime.scheduling.adaptive import Adaptive
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.policy import LockStep, Policy


def policy_from_recipe(recipe: Recipe, stage: int, prior: StepCost) -> Policy:
    """The policy of stage `stage`, 0 the lightest. prior: what its passes cost, as far as that is known already.

    num_draft_tokens[k] is the block of the edge from stage k to stage k + 1.
    """
    blocks, window = recipe.cascade.num_draft_tokens, recipe.cascade.window
    takes = blocks[stage - 1] if stage else 0
    sends = blocks[stage] if stage < len(blocks) else 1
    if recipe.policy.mode == "lock_step":
        return LockStep(takes, sends)
    if recipe.policy.mode == "fixed" or not stage:
        return Policy(takes, window, max(1, takes), sends)
    patient = recipe.policy.objective == "throughput"
    return Adaptive(prior, most=window, first_wait=takes, sends=sends, can_relay=stage > 1, patient=patient)
