"""`policy_from_recipe`: the policy of one stage, as its recipe says."""

from __future__ import annotations

from cascade_runtime.config import Recipe
from cascade_runtime.scheduling.adaptive import Adaptive
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.policy import FreeRunning, LockStep, Policy, PreVerify
from cascade_runtime.scheduling.rounds import Rounds


def policy_from_recipe(recipe: Recipe, stage: int, prior: StepCost, cores: int = 0) -> Policy:
    """The policy of stage `stage`, 0 the lightest. prior: what its passes cost, as far as that is known already.
    cores: how many the language stages share, 0 for none.

    num_draft_tokens[k] is the block of the edge from stage k to stage k + 1; where that carries trees, it says nothing.
    """
    blocks, window = recipe.cascade.num_draft_tokens, recipe.cascade.window
    takes = blocks[stage - 1] if stage else 0
    sends = blocks[stage] if stage < len(blocks) else 1
    if stage == 1 and recipe.tree is not None:
        return Rounds(sends, measures=recipe.policy.mode == "adaptive")
    if recipe.policy.mode == "lock_step":
        return LockStep(takes, sends)
    if stage and recipe.policy.mode == "free_running":
        return FreeRunning(window, sends)
    if stage and recipe.policy.mode == "pre_verify":
        return PreVerify(takes, window, sends)
    if recipe.policy.mode == "fixed" or not stage:
        policy = Policy(takes, window, max(1, takes), sends)
        if not stage and recipe.policy.draft_length == "confidence":
            policy.min_confidence = recipe.policy.min_confidence
        if recipe.stages[stage].drafter == "lookup":  # it is sure, or it knows nothing
            policy.min_confidence = 0.5
        return policy
    patient = recipe.policy.objective == "throughput"
    return Adaptive(
        prior, most=window, first_wait=takes, sends=sends, can_relay=stage > 1, patient=patient, cores=cores
    )


def patience_s(recipe: Recipe, stage: int) -> float:
    """How long a row of stage `stage` waits for a silent upstream; one that grows a tree is so for all its layers."""
    layers = recipe.tree.depth if stage == 1 and recipe.tree is not None else 1
    return layers * recipe.deadlines.upstream_s


def share_cores(recipe: Recipe) -> bool:
    """Whether the recipe puts all language stages on the CPU of one machine; one that edge boxes run is not there."""
    stages = recipe.stages[1:] if recipe.stages[0].drafter == "edge" else recipe.stages
    first = stages[0]
    return all(
        stage.device in ("auto", "cpu") and not stage.num_gpus and stage.labels == first.labels for stage in stages
    )


def window_of_row(recipe: Recipe, stage: int, occupancy: float | None) -> int | None:
    """How far a stage may run ahead in one request: no limit for the target.

    occupancy: share of the recording's patches with an event, or None where it is not known. Where the recipe says so,
    the lightest stage's window shrinks with it: the more there is to see, the sooner a small model goes wrong.
    """
    if stage == len(recipe.stages) - 1:
        return None
    window = recipe.cascade.window
    if stage or occupancy is None or recipe.policy.draft_length != "occupancy":
        return window
    return max(1, round(window * (1.0 - occupancy)))
