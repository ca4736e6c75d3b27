"""`placed_recipes`: a plan as recipes that run as it says: levels, drafts and slots, and where each stage goes.

A stage that is split asks for all its devices, and names them as its process will see them. Who lives
beside it has the first. Of a device with copies every stage has as many replicas.

What a pool's labels and a stage's `labels`, `num_gpus` and `beside` say is all that placement needs: the launcher turns
it into bundles (`cluster/placement.py`), and the file can be read, kept and changed by hand.
"""

from __future__ import annotations

from dataclasses import replace

from cascade_runtime.config import Recipe, StageConfig
from cascade_runtime.errors import ConfigError
from cascade_runtime.planning.cluster import Cluster, Pool
from cascade_runtime.planning.plan import DevicePlan, Plan, Replica
from cascade_runtime.planning.problem import split_device


def placed_recipes(recipe: Recipe, found: Plan, cluster: Cluster) -> list[Recipe]:
    """One recipe for each kind of replica of the plan, its `cascade.replicas` saying how many. Raises `ConfigError` for
    a plan that assumes what the runtime does not do.
    """
    if not found.runs_today:
        raise ConfigError("plan", list(found.assumptions), "a plan that assumes nothing the runtime does not do today")
    return [_placed(recipe, replica, cluster, number) for number, replica in enumerate(found.replicas)]


def _placed(recipe: Recipe, replica: Replica, cluster: Cluster, number: int) -> Recipe:
    in_turns = replica.mode == "in turns"
    drafts = tuple(edge.min_drafts for edge in replica.edges)
    window = max((edge.window for edge in replica.edges), default=recipe.cascade.window)
    if in_turns:
        drafts = (max(1, min(64, replica.drafts)),) * (len(replica.levels) - 1)
        window = max((*drafts, replica.drafts))
    cascade = replace(
        recipe.cascade,
        name=recipe.cascade.name if not number else f"{recipe.cascade.name[:60]}-{number + 1}",
        levels=replica.levels,
        num_draft_tokens=drafts,
        window=window or recipe.cascade.window,
        slots=replica.slots,
        replicas=1 if in_turns else replica.count,  # stages that take turns do so in one process
        loading="in_turns" if in_turns else recipe.cascade.loading,
    )
    stages = {stage.name: stage for stage in recipe.stages if stage.name in replica.levels}
    stages |= {place.name: place for place in (recipe.encoder, recipe.adapter) if place is not None}
    pools = {pool.name: pool for pool in cluster.pools}
    for device in replica.devices:
        placed = _on_device(device, pools[device.pool], cluster.kind_of(pools[device.pool]).cpu, stages, in_turns)
        stages |= {stage.name: stage for stage in placed}
    return replace(
        recipe,
        cascade=cascade,
        stages=tuple(stages[level] for level in replica.levels),
        encoder=stages.get("encoder"),
        adapter=stages.get("adapter"),
    )


def _on_device(
    device: DevicePlan, pool: Pool, cpu: bool, stages: dict[str, StageConfig], in_turns: bool
) -> list[StageConfig]:
    """The stages of one device: one has the place, the others live beside it. One that is split has its place with its
    first device.
    """
    here = [stages[each.stage] for each in device.stages if each.stage in stages and each.piece == 1]
    shown = {each.stage: each for each in device.stages}
    if in_turns:  # one process on one device: Ray has no part in it
        here = [replace(stage, replicas=1, num_gpus=0.0, labels={}, beside="") for stage in here]
        return [replace(stage, device="cpu" if cpu else "cuda") for stage in here]
    here.sort(key=lambda stage: (-shown[stage.name].pieces, -shown[stage.name].weight_bytes))
    placed = []
    for stage in here:
        beside, pieces = here[0].name if stage is not here[0] else "", shown[stage.name].pieces
        placed.append(
            replace(
                stage,
                device="cpu" if cpu else "auto" if pieces == 1 else split_device(pieces),
                num_gpus=0.0 if cpu or beside else float(pieces),
                labels={} if beside else dict(pool.labels),
                beside=beside,
                replicas=device.copies,
            )
        )
    return placed
