"""`Problem`: a recipe on a cluster, resolved into parts to place: what each weighs and what its passes cost, anywhere.

Parts are the recipe's levels, then "encoder" and "adapter" where it has them. The target's vision tower lives with the
adapter, else with the target: on the first device of one that is split.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cascade_runtime.config import Recipe, StageConfig
from cascade_runtime.errors import ConfigError
from cascade_runtime.models.layer_split import shares
from cascade_runtime.planning.cluster import DEFAULT_AGREEMENT, MAX_SPLIT, Cluster, Kind, Load
from cascade_runtime.planning.model_size import ModelSize, size_of
from cascade_runtime.planning.roofline import BYTES, cost_of, kv_bytes, vision_s
from cascade_runtime.scheduling.cost import StepCost

_QUESTION = 64


@dataclass(frozen=True)
class Part:
    """One stage to place. numbers: of weights it loads. level: its place in the cascade, None for the event branch."""

    name: str
    config: StageConfig
    size: ModelSize
    numbers: int
    level: int | None


@dataclass(frozen=True)
class Piece:
    """What one device holds of a part: so many of its layers, bytes of weights and of one KV slot."""

    layers: int
    weight_bytes: int
    slot_bytes: int


@dataclass(frozen=True)
class Problem:
    """quantise: "" or the assumed type of all weights on GPUs. prompt: positions of a request."""

    recipe: Recipe
    cluster: Cluster
    load: Load
    parts: tuple[Part, ...]
    prompt: int
    quantise: str = ""

    def with_quantise(self, dtype: str) -> Problem:
        """The same, with weights of another type."""
        return replace(self, quantise=dtype)

    @property
    def levels(self) -> tuple[Part, ...]:
        """The language stages, lightest first."""
        return tuple(part for part in self.parts if part.level is not None)

    @property
    def tower(self) -> Part:
        """The part that holds the target's vision tower."""
        return next((part for part in self.parts if part.name == "adapter"), self.levels[-1])

    def dtype(self, part: Part, kind: Kind) -> str:
        """Of a part's weights on a kind of device."""
        if self.quantise and not kind.cpu:
            return self.quantise
        return part.config.dtype if part.config.dtype != "auto" else "float32" if kind.cpu else "bfloat16"

    def weight_bytes(self, part: Part, kind: Kind) -> int:
        """On a device of that kind."""
        return int(part.numbers * BYTES[self.dtype(part, kind)])

    def slot_bytes(self, part: Part, kind: Kind) -> int:
        """Of one KV slot."""
        if part.level is None:
            return 0
        return int(part.size.kv * kv_bytes(self.dtype(part, kind)) * self.recipe.cascade.max_len)

    def pieces(self, part: Part, kind: Kind, devices: int = 1) -> tuple[Piece, ...]:
        """What each of so many devices of that kind holds, divided as the loader does (`models/layer_split.py`)."""
        size, slot = part.size, self.slot_bytes(part, kind)
        if devices == 1:
            return (Piece(size.layers, self.weight_bytes(part, kind), slot),)
        each, rest = BYTES[self.dtype(part, kind)], part.numbers - size.layers * size.layer
        return tuple(
            Piece(count, int(each * (count * size.layer + (0 if i else rest))), slot * count // size.layers)
            for i, count in enumerate(shares(size.layers, devices, size.ends / size.layer))
        )

    def most_devices(self, part: Part, kind: Kind) -> int:
        """Over how many of one node its layers may be split: 1 where one has room for it, or a recipe may not say so.
        Cores share the memory of their node.
        """
        whole = self.weight_bytes(part, kind) + self.slot_bytes(part, kind)
        if part.level is None or kind.cpu or part.config.drafter != "model" or whole <= kind.usable_bytes:
            return 1
        try:
            replace(part.config, device=split_device(2))
        except ConfigError:
            return 1
        return min(MAX_SPLIT, part.size.layers)

    def cost(self, part: Part, kind: Kind, devices: int = 1) -> StepCost:
        """Of a pass of a language stage, whole or split."""
        return cost_of(self.cluster, part.name, part.size, kind, self.dtype(part, kind), devices)

    def request_s(self, part: Part, kind: Kind) -> float:
        """What one request costs a part besides its language passes: vision, or as measured."""
        measured = self.measured_request_s(part, kind)
        if measured is not None:
            return measured
        seconds = 0.0
        if part.level is None:
            seconds += vision_s(part.size, kind, self.dtype(part, kind), self.load.frames)
        if part is self.tower:
            seconds += vision_s(self.levels[-1].size, kind, self.dtype(part, kind), self.load.frames)
        return seconds

    def measured_request_s(self, part: Part, kind: Kind) -> float | None:
        """The same, where the cluster file says it."""
        for profile in self.cluster.profiles:
            if (profile.stage, profile.kind) == (part.name, kind.name) and profile.request_ms is not None:
                return 1e-3 * profile.request_ms
        return None

    def load_s(self, part: Part, kind: Kind) -> float:
        """Of its weights from the host's memory."""
        for profile in self.cluster.profiles:
            if (profile.stage, profile.kind) == (part.name, kind.name) and profile.load_s is not None:
                return profile.load_s
        return self.weight_bytes(part, kind) / (kind.pcie_gb_s * 1e9)

    def agreement(self, upstream: int, downstream: int) -> float:
        """Of two levels that become neighbours: as given, else the product over the edges between them."""
        names = [part.name for part in self.levels]
        given = self.cluster.agreement
        direct = given.get(f"{names[upstream]}->{names[downstream]}")
        if direct is not None:
            return direct
        product = 1.0
        for k in range(upstream, downstream):
            product *= given.get(f"{names[k]}->{names[k + 1]}", DEFAULT_AGREEMENT)
        return product


def split_device(devices: int) -> str:
    """A stage's `device` that splits it over so many."""
    return "+".join(f"cuda:{index}" for index in range(devices))


def problem_of(recipe: Recipe, cluster: Cluster, load: Load) -> Problem:
    """Resolve every stage. Raises `ConfigError` for a checkpoint without a configuration, an edge or profile that the
    recipe does not have, and a request that does not fit a slot.
    """
    parts = parts_of(recipe)
    sizes = {part.name: part.size for part in parts}
    target = sizes[recipe.target.name]
    names = recipe.cascade.levels
    edges = [f"{a}->{b}" for i, a in enumerate(names) for b in names[i + 1 :]]
    for edge, value in cluster.agreement.items():
        if edge not in edges:
            raise ConfigError(f"agreement.{edge}", value, f"edges of the recipe: {', '.join(edges) or 'none'}")
    for profile in cluster.profiles:
        if profile.stage not in sizes:
            raise ConfigError("profiles.stage", profile.stage, f"stages of the recipe: {', '.join(sizes)}")
    prompt = load.prompt or load.frames * target.visual_tokens + 1 + _QUESTION
    room = recipe.cascade.max_len - load.tokens
    if prompt > room:
        allowed = f"at most {room}: cascade.max_len {recipe.cascade.max_len} less an answer of {load.tokens}"
        raise ConfigError("load.prompt", prompt, allowed)
    return Problem(recipe, cluster, load, parts, prompt)


def parts_of(recipe: Recipe) -> tuple[Part, ...]:
    """Everything of a recipe that has weights. Raises `ConfigError` for a checkpoint without a configuration."""
    configs = [config for config in (*recipe.stages, recipe.encoder, recipe.adapter) if config is not None]
    sizes = {config.name: size_of(config) for config in configs}
    parts = []
    for config in configs:
        size = sizes[config.name]
        level = recipe.cascade.levels.index(config.name) if config.name in recipe.cascade.levels else None
        numbers = size.language + size.projector if level is not None else size.vision
        if config.name == "adapter" or (recipe.adapter is None and config is recipe.target):
            numbers += sizes[recipe.target.name].vision
        parts.append(Part(config.name, config, size, numbers, level))
    return tuple(parts)
