"""`Recipe`: one setup, and how it is read from a TOML file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cascade_runtime.config.acceptance import RULES, SHARED_NOISE, AcceptanceConfig
from cascade_runtime.config.checks import NAME, choice, integer, number
from cascade_runtime.config.drafting import check_drafting, check_runs_apart
from cascade_runtime.config.emulation import EmulationConfig, profile_kind
from cascade_runtime.config.stage import StageConfig, members_of
from cascade_runtime.config.supervision import SupervisionConfig
from cascade_runtime.config.toml_file import arguments, known_keys, read_toml
from cascade_runtime.config.tree import TreeConfig
from cascade_runtime.errors import ConfigError

MAX_LEVELS = 6
POLICY_MODES = ("adaptive", "fixed", "free_running", "pre_verify", "lock_step")
_TARGET_SEES = "the answer is a function of what the target sees"
_BUILT_IN = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """The shape of the cascade.

    levels: stage names from the lightest to the target. mode: "strict" (the target sees dense features: lossless
    against dense) or "aligned" (it sees accepted aligned features: approximate). num_draft_tokens: per edge, how many
    drafts make up one block. window: how many tokens a stage may run ahead of what its verifier confirmed. slots: rows
    held at once by each stage, over its replicas; max_len: positions in each slot, prompt and answer together.
    prefill_tokens: positions of prompts fed in one pass at most; a longer prompt is fed in chunks, between the steps of
    other rows. acceptance: the rule that keeps drafts (`config/acceptance.py`); all but the default run in one process
    only, and those named lossy do not give the target's answer. replicas: whole pipelines of this kind on Ray, which
    share the requests; those of one stage are `StageConfig.replicas`.
    loading: "resident" keeps every stage's weights where they are, "in_turns" has one model's at a time in a device's
    memory, in one process: each drafts `window` tokens for all requests before the next is loaded. keep_features_mb: of
    dense features kept for the next question about the same recording, where the gate wants whole recordings encoded;
    emulated stages keep none.
    """

    name: str
    levels: tuple[str, ...]
    mode: str = "strict"
    num_draft_tokens: tuple[int, ...] = ()
    window: int = 16
    slots: int = 8
    max_len: int = 1024
    prefill_tokens: int = 512
    acceptance: str = SHARED_NOISE
    replicas: int = 1
    loading: str = "resident"
    keep_features_mb: int = 0

    def __post_init__(self) -> None:
        where = "cascade"
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.-]{1,64}", self.name):
            raise ConfigError(f"{where}.name", self.name, "1 to 64 letters, digits, '_', '-', '.'")
        if (
            isinstance(self.levels, str)
            or not isinstance(self.levels, Sequence)
            or not 1 <= len(self.levels) <= MAX_LEVELS
        ):
            raise ConfigError(f"{where}.levels", self.levels, f"a list of 1 to {MAX_LEVELS} stage names")
        for level in self.levels:
            if not isinstance(level, str) or not NAME.fullmatch(level):
                raise ConfigError(f"{where}.levels", level, "lower-case names such as light, mid, heavy")
        if len(set(self.levels)) != len(self.levels):
            raise ConfigError(f"{where}.levels", self.levels, "each name once")
        object.__setattr__(self, "levels", tuple(self.levels))
        choice(f"{where}.mode", self.mode, ("strict", "aligned"))
        edges = len(self.levels) - 1
        drafts = self.num_draft_tokens
        if isinstance(drafts, str) or not isinstance(drafts, Sequence) or len(drafts) != edges:
            raise ConfigError(f"{where}.num_draft_tokens", drafts, f"one integer per edge ({edges} here)")
        for count in drafts:
            integer(ConfigError, f"{where}.num_draft_tokens", count, 1, 64)
        object.__setattr__(self, "num_draft_tokens", tuple(drafts))
        # A verifier waiting for more drafts than its drafter may send would only ever be woken by its deadline.
        integer(ConfigError, f"{where}.window", self.window, max(drafts, default=1), 1024)
        integer(ConfigError, f"{where}.slots", self.slots, 1, 4096)
        integer(ConfigError, f"{where}.max_len", self.max_len, 16, 1_048_576)
        integer(ConfigError, f"{where}.prefill_tokens", self.prefill_tokens, 1, 1_048_576)
        choice(f"{where}.acceptance", self.acceptance, tuple(RULES))
        integer(ConfigError, f"{where}.replicas", self.replicas, 1, 1000)
        choice(f"{where}.loading", self.loading, ("resident", "in_turns"))
        integer(ConfigError, f"{where}.keep_features_mb", self.keep_features_mb, 0, 1_048_576)


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """When aligned event features may stand in for dense ones (cosine between the two, per frame).

    At or above `accept` the frame is accepted, below `reject` it falls back to dense, and so it does in between.
    policy: "full" computes every dense frame beside the aligned one, "spot" a fraction of them (`spot_fraction`),
    "predicted" trusts a small head that predicts the cosine. learns: the adapter goes on learning from frames that were
    refused, in memory; under policy "full" in mode "strict" only, where it changes no answer.
    """

    accept: float = 0.8
    reject: float = 0.5
    policy: str = "full"
    spot_fraction: float = 0.25
    learns: bool = False

    def __post_init__(self) -> None:
        number(ConfigError, "gate.accept", self.accept, -1, 1)
        number(ConfigError, "gate.reject", self.reject, -1, self.accept)
        choice("gate.policy", self.policy, ("full", "spot", "predicted"))
        if not isinstance(self.learns, bool) or (self.learns and self.policy != "full"):
            raise ConfigError("gate.learns", self.learns, 'true or false, true only under gate.policy = "full"')
        number(ConfigError, "gate.spot_fraction", self.spot_fraction, 0, 1)


@dataclass(frozen=True, kw_only=True)
class ChannelConfig:
    """How neighbouring stages exchange token blocks. "auto" takes the fastest backend that both ends can reach."""

    backend: str = "auto"

    def __post_init__(self) -> None:
        choice("channels.backend", self.backend, ("auto", "object_store", "stream", "call", "local"))


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Who decides how far to draft and when to verify.

    mode: "adaptive" decides from measured costs and hazards, num_draft_tokens are where it begins; "fixed" keeps to
    num_draft_tokens. Others to compare with: "free_running" never waits for drafts (PipeSpec), "pre_verify" waits for
    num_draft_tokens but goes on alone after a refusal (PEARL), "lock_step" runs one stage at a time. objective, of
    "adaptive": "throughput" waits for drafts where that brings more tokens per second, "latency" never makes a token
    wait for drafts.
    draft_length: how far the lightest stage drafts within its window: "survival" all of it, as the verifier's measured
    hazards set it; "confidence" while the joint probability of its drafts, in its own eyes, is at least min_confidence;
    "occupancy" the less, the more patches of the recording hold events.
    """

    mode: str = "adaptive"
    objective: str = "throughput"
    draft_length: str = "survival"
    min_confidence: float = 0.3

    def __post_init__(self) -> None:
        choice("policy.mode", self.mode, POLICY_MODES)
        choice("policy.objective", self.objective, ("throughput", "latency"))
        choice("policy.draft_length", self.draft_length, ("survival", "confidence", "occupancy"))
        number(ConfigError, "policy.min_confidence", self.min_confidence, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class DeadlineConfig:
    """How long anything may wait, in seconds.

    start_s: every stage loaded and linked. request_s: one answer. upstream_s: a verifier whose drafter is silent runs
    without it. control_s: one control call to a stage. drain_s: a clean stop.
    """

    start_s: float = 120.0
    request_s: float = 120.0
    upstream_s: float = 0.05
    control_s: float = 30.0
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("start_s", 1.0, 3600.0),
            ("request_s", 0.1, 3600.0),
            ("upstream_s", 0.0, 60.0),
            ("control_s", 0.1, 600.0),
            ("drain_s", 0.1, 600.0),
        ):
            number(ConfigError, f"deadlines.{name}", getattr(self, name), low, high)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole setup. `stages` follow the order of `cascade.levels`; the last one is the target."""

    cascade: CascadeConfig
    stages: tuple[StageConfig, ...]
    encoder: StageConfig | None = None
    adapter: StageConfig | None = None
    gate: GateConfig = field(default_factory=GateConfig)
    channels: ChannelConfig = field(default_factory=ChannelConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    deadlines: DeadlineConfig = field(default_factory=DeadlineConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    emulation: EmulationConfig | None = None
    tree: TreeConfig | None = None
    acceptance: AcceptanceConfig | None = None  # the defaults of the cascade's rule

    def __post_init__(self) -> None:
        names = tuple(stage.name for stage in self.stages)
        if names != self.cascade.levels:
            raise ConfigError("stages", names, f"one table per level, {', '.join(self.cascade.levels)}, and no other")
        if (self.encoder is None) != (self.adapter is None):
            raise ConfigError("encoder", self.encoder, "[encoder] and [adapter] together, or neither")
        if self.cascade.mode == "aligned" and self.encoder is None:
            raise ConfigError("cascade.mode", "aligned", "strict, since the recipe has no [encoder] and [adapter]")
        learnable = self.cascade.mode == "strict" and self.adapter is not None and not self.adapter.emulated
        if self.gate.learns and not learnable:
            raise ConfigError("gate.learns", True, "false, unless an [adapter] that computes serves mode strict")
        self._check_emulation()
        self._check_neighbours()
        for place in [*self.stages[-1:], *self.stages[1:], *filter(None, (self.encoder, self.adapter))]:
            if place.drafter != "model":
                allowed = f'model: only the lightest of several levels can be "{place.drafter}"'
                raise ConfigError(f"{place.name}.drafter", place.drafter, allowed)
        if self.target.sees != "all":
            raise ConfigError(f"stages.{self.target.name}.sees", self.target.sees, f"all: {_TARGET_SEES}")
        for stage in self.stages:
            integer(ConfigError, f"stages.{stage.name}.max_len", stage.max_len, 0, self.cascade.max_len)
        for place in filter(None, (self.encoder, self.adapter)):
            if place.max_len:
                raise ConfigError(f"{place.name}.max_len", place.max_len, "0: only language stages have KV slots")
            if place.sees != "all":
                raise ConfigError(f"{place.name}.sees", place.sees, "all: only drafting language stages may see less")
            if place.compile:
                raise ConfigError(f"{place.name}.compile", True, "false: only language stages compile their passes")
        light = self.stages[0]
        if light.drafter != "model" and light.emulated:
            raise ConfigError(f"stages.{light.name}.drafter", light.drafter, "model, where the device is emulated")

        check_drafting(self)

    def check_runs_apart(self) -> None:
        """Raise `ConfigError` where the stages cannot run apart from each other, as pipelines run them."""
        check_runs_apart(self)

    def _check_neighbours(self) -> None:
        """A stage lives beside one that has a place of its own."""
        places = [*self.stages, *filter(None, (self.encoder, self.adapter))]
        own = [place.name for place in places if not place.beside]
        for place in places:
            if place.beside:
                choice(f"{place.where}.beside", place.beside, own)
                host = next(other for other in places if other.name == place.beside)
                if place.replicas > host.replicas:
                    allowed = f"at most {host.replicas}, the replicas of {host.name}, beside which they live"
                    raise ConfigError(f"{place.where}.replicas", place.replicas, allowed)

    def _check_emulation(self) -> None:
        """All stages are emulated or none: tokens and features of one kind mean nothing to the other."""
        places = [*self.stages, *filter(None, (self.encoder, self.adapter))]
        emulated = [place.name for place in places if place.emulated]
        if emulated and len(emulated) < len(places):
            raise ConfigError("device", f"emulated: {', '.join(emulated)}", "all stages emulated, or none")
        if (self.emulation is not None) != bool(emulated):
            raise ConfigError("emulation", self.emulation, "an [emulation] table where the stages are emulated only")
        if self.emulation is not None:
            self.emulation.check_edges(len(self.stages) - 1)

    @property
    def name(self) -> str:
        """The recipe's name, for tables and logs."""
        return self.cascade.name

    @property
    def marks(self) -> tuple[str, ...]:
        """What every result of this setup must say beside its figures; empty where models really run."""
        if self.emulation is None:
            return ()
        devices = ", ".join(f"{stage.name} on {stage.device}" for stage in self.stages)
        said = {
            "agreement": "made-up tokens",
            "ngram": "recorded answers, n-gram drafts",
            "recorded": "recorded tokens",
        }
        return (f"emulated, no model ran: {devices}; {said[self.emulation.drafters]}",)

    @property
    def target(self) -> StageConfig:
        """The stage whose tokens the answer consists of."""
        return self.stages[-1]

    @property
    def members(self) -> dict[str, tuple[str, ...]]:
        """Stage -> the names of its replicas, in the order of the pipeline: encoder, adapter, the levels. Where no
        adapter is given there is one beside each target, with the target's tower.
        """
        encoders = self.encoder.members if self.encoder else members_of("encoder", 1)
        adapters = self.adapter.members if self.adapter else members_of("adapter", self.target.replicas)
        return {"encoder": encoders, "adapter": adapters, **{stage.name: stage.members for stage in self.stages}}

    @property
    def level_members(self) -> tuple[str, ...]:
        """The names of all replicas of the levels, lightest first."""
        return tuple(member for stage in self.stages for member in stage.members)

    def share_of(self, index: int) -> Recipe:
        """The recipe as one replica of level `index` has it: with its own part of the slots."""
        slots = -(-self.cascade.slots // self.stages[index].replicas)
        return self if slots == self.cascade.slots else replace(self, cascade=replace(self.cascade, slots=slots))

    def stage(self, level: str) -> StageConfig:
        """The stage of one level. Raises `ConfigError` for a level the recipe does not have."""
        for stage in self.stages:
            if stage.name == level:
                return stage
        raise ConfigError("level", level, ", ".join(self.cascade.levels))


def recipe_names() -> tuple[str, ...]:
    """The recipes that come with the package, by name."""
    return tuple(sorted(path.stem for path in _BUILT_IN.glob("*.toml")))


def setup_names() -> tuple[str, ...]:
    """The recipes of common machines that come with the package; their checkpoints do not."""
    return tuple(sorted(f"setups/{path.stem}" for path in (_BUILT_IN / "setups").glob("*.toml")))


def load_recipe(source: str | Path = "three_level", overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: a built-in name, or the path of a TOML file (anything that ends in .toml).

    `overrides` are "table.key=value" strings applied on top, the value in TOML (`cascade.window=8`,
    `stages.light.device="cuda:0"`); what is not TOML counts as a bare string. Raises `ConfigError` naming the key.
    """
    path = Path(source)
    if path.suffix != ".toml":
        if str(source) not in (names := (*recipe_names(), *setup_names())):
            raise ConfigError("recipe", str(source), f"a .toml file, or one of {', '.join(names)}")
        path = _BUILT_IN / f"{source}.toml"
    table = read_toml("recipe", source, path)
    for override in overrides:
        _apply(table, override)
    return recipe_from_dict(table)


def recipe_from_dict(table: Mapping[str, Any]) -> Recipe:
    """Build a recipe from the nested tables of its TOML form. Raises `ConfigError` on any unknown key."""
    known_keys("recipe", table, [item.name for item in fields(Recipe)])
    for required in ("cascade", "stages"):
        if required not in table:
            raise ConfigError("recipe", list(table), f"a [{required}] table")
    stages = table["stages"]
    if not isinstance(stages, Mapping):
        raise ConfigError("stages", stages, "one table per level")
    cascade = CascadeConfig(**arguments(CascadeConfig, "cascade", table["cascade"]))
    ordered = sorted(stages, key=lambda name: cascade.levels.index(name) if name in cascade.levels else MAX_LEVELS)
    parts: dict[str, Any] = {
        "cascade": cascade,
        "stages": tuple(_stage(name, f"stages.{name}", stages[name]) for name in ordered),
    }
    for key in ("encoder", "adapter"):
        if key in table:
            parts[key] = _stage(key, key, table[key])
    kinds = {
        "gate": GateConfig,
        "channels": ChannelConfig,
        "policy": PolicyConfig,
        "deadlines": DeadlineConfig,
        "supervision": SupervisionConfig,
        "emulation": EmulationConfig,
        "tree": TreeConfig,
        "acceptance": RULES[cascade.acceptance],
    }
    for key, kind in kinds.items():
        if key in table:
            parts[key] = kind(**arguments(kind, key, table[key]))
    return Recipe(**parts)


def _stage(name: str, where: str, table: Any) -> StageConfig:
    given = arguments(StageConfig, where, table, "name")
    if "profile" in given:
        kind = profile_kind(name)
        try:
            given["profile"] = kind(**arguments(kind, "profile", given["profile"]))
        except ConfigError as error:
            raise ConfigError(f"{where}.{error.field}", error.value, error.allowed) from None
    return StageConfig(name=name, **given)


def _apply(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or len(path) < 2 or not all(path) or "\n" in text:
        raise ConfigError("override", override, "table.key=value, for example cascade.window=8")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(key, override, f"a table at {part!r}")
    table[path[-1]] = value
