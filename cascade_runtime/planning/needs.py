"""`needs`: what each stage of a recipe asks of a device's memory, from config.json files alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cascade_runtime.config import Recipe
from cascade_runtime.errors import ConfigError
from cascade_runtime.planning.cluster import Cluster, Kind, Load, Pool
from cascade_runtime.planning.plan import byte_words
from cascade_runtime.planning.problem import Part, Problem, parts_of


@dataclass(frozen=True)
class Need:
    """Bytes of one stage's weights and of all its KV slots; of one replica, where it has several. piece: " 1/2" for
    what the first of two devices holds of it; pieces: those, where its layers are split.
    """

    stage: str
    dtype: str
    weight_bytes: int
    kv_bytes: int
    piece: str = ""
    pieces: tuple[Need, ...] = ()

    @property
    def total(self) -> int:
        """Of both."""
        return self.weight_bytes + self.kv_bytes

    def text(self) -> str:
        """For people."""
        kv = f" and {byte_words(self.kv_bytes)} of KV" if self.kv_bytes else ""
        return f"{self.stage}{self.piece} {byte_words(self.weight_bytes)} of {self.dtype} weights{kv}"


def needs(recipe: Recipe, kind: Kind) -> dict[str, Need]:
    """Stage -> what it needs on a device of that kind; empty for emulated stages, and where a checkpoint is not known
    here (the stage itself will say what it finds). A stage without a model here needs nothing. The target's vision
    tower counts with the adapter, else with the target.
    """
    if recipe.stages[0].drafter != "model":
        drafts = recipe.cascade.num_draft_tokens[1:]
        cascade = replace(recipe.cascade, levels=recipe.cascade.levels[1:], num_draft_tokens=drafts)
        recipe = replace(recipe, cascade=cascade, stages=recipe.stages[1:])
    try:
        parts = parts_of(recipe)
    except ConfigError:
        return {}
    cluster = Cluster(recipe.name, (Pool(name="any", kind=kind.name),), {kind.name: kind})
    problem = Problem(recipe, cluster, Load(), parts, prompt=0)
    return {part.name: _need(problem, part, kind) for part in parts}


def _need(problem: Problem, part: Part, kind: Kind) -> Need:
    dtype, devices = problem.dtype(part, kind), 1 + part.config.device.count("+")
    slots = -(-problem.recipe.cascade.slots // part.config.replicas)
    (whole,) = problem.pieces(part, kind)
    found: tuple[Need, ...] = ()
    if 1 < devices <= part.size.layers:
        held = enumerate(problem.pieces(part, kind, devices), 1)
        found = tuple(
            Need(part.name, dtype, each.weight_bytes, slots * each.slot_bytes, f" {i}/{devices}") for i, each in held
        )
    return Need(part.name, dtype, whole.weight_bytes, slots * whole.slot_bytes, pieces=found)
