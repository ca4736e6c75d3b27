"""`Cluster`: pools of equal devices, the links between their sites, and what is known of the load, read from TOML.

    [[pools]]      name, kind (of device_kinds.toml or [kinds.<name>]), devices, devices_per_node, site, cameras, labels
    [[links]]      between two sites: latency_ms, mbit_s. Sites without a link cannot work on one answer
    [[profiles]]   measured cost of a stage on a kind, in place of the roofline
    [agreement]    "light->mid" = 0.8: the chance that a draft of one stage is what the next would say
    [load]         streams, prompt, tokens, frames of a request
    assume         what a plan may do: "int8", "int4", which the runtime does not, and "sequential", taking turns

Unknown keys raise, numbers are bounded, every error is a `ConfigError` that names the key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from cascade_runtime.config.checks import choice, integer, number, printable
from cascade_runtime.config.toml_file import arguments, known_keys, read_toml
from cascade_runtime.errors import ConfigError

_CLUSTERS = Path(__file__).parent / "clusters"
_KINDS = Path(__file__).parent / "device_kinds.toml"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,31}")
MAX_POOLS = 32
MAX_DEVICES = 100_000
MAX_SPLIT = 8
ASSUMPTIONS = ("int8", "int4", "sequential")
DEFAULT_AGREEMENT = 0.7
_SAME_SITE_S, _SAME_SITE_MBIT = 1e-4, 10_000.0


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A sort of device. tflops by dtype, dense. bandwidth_share, flops_share: of the data sheet's figures, what is
    reached. layer_us: host time per layer and pass. cpu: computes in float32 unless told otherwise.
    """

    name: str
    memory_gib: float
    bandwidth_gb_s: float
    tflops: Mapping[str, float]
    pcie_gb_s: float = 25.0
    bandwidth_share: float = 0.8
    flops_share: float = 0.5
    layer_us: float = 100.0
    cpu: bool = False

    def __post_init__(self) -> None:
        where = f"kinds.{self.name}"
        for name, low, high in (
            ("memory_gib", 0.1, 1e5),
            ("bandwidth_gb_s", 0.1, 1e6),
            ("pcie_gb_s", 0.01, 1e5),
            ("bandwidth_share", 0.01, 1.0),
            ("flops_share", 0.01, 1.0),
            ("layer_us", 0.0, 1e5),
        ):
            number(ConfigError, f"{where}.{name}", getattr(self, name), low, high)
        if not isinstance(self.tflops, Mapping) or "bfloat16" not in self.tflops or "float32" not in self.tflops:
            raise ConfigError(f"{where}.tflops", self.tflops, "a table with bfloat16 and float32")
        for dtype, value in self.tflops.items():
            choice(f"{where}.tflops", dtype, ("bfloat16", "float16", "float32", "float64"))
            number(ConfigError, f"{where}.tflops.{dtype}", value, 1e-4, 1e6)
        if not isinstance(self.cpu, bool):
            raise ConfigError(f"{where}.cpu", self.cpu, "true or false")

    def flops(self, dtype: str) -> float:
        """Operations per second that are reached; half precision and quantised weights compute as bfloat16."""
        wanted = dtype if dtype in self.tflops else "float32" if dtype == "float64" else "bfloat16"
        return 1e12 * self.tflops[wanted] * self.flops_share

    @property
    def usable_bytes(self) -> int:
        """A tenth is left for activations."""
        return int(0.9 * self.memory_gib * 2**30)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Equal devices of one site. devices_per_node: that share a node, within which layers may be split; 0: all of them,
    up to eight. cameras: recordings come in here. labels: by which Ray finds its nodes.
    """

    name: str
    kind: str
    devices: int = 1
    devices_per_node: int = 0
    site: str = "core"
    cameras: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _name("pools.name", self.name)
        _name(f"pools.{self.name}.site", self.site)
        integer(ConfigError, f"pools.{self.name}.devices", self.devices, 1, MAX_DEVICES)
        integer(ConfigError, f"pools.{self.name}.devices_per_node", self.devices_per_node, 0, self.devices)
        if not isinstance(self.cameras, bool):
            raise ConfigError(f"pools.{self.name}.cameras", self.cameras, "true or false")
        labels = self.labels
        if not isinstance(labels, Mapping) or len(labels) > 16 or not all(isinstance(v, str) for v in labels.values()):
            raise ConfigError(f"pools.{self.name}.labels", labels, "a table of at most 16 strings")

    def on_a_node(self, devices: int) -> int:
        """How many share a node if the pool has so many."""
        return min(devices, self.devices_per_node or MAX_SPLIT)


@dataclass(frozen=True, kw_only=True)
class SiteLink:
    """Between two sites, or two devices of one. One way."""

    between: tuple[str, str]
    latency_ms: float
    mbit_s: float = _SAME_SITE_MBIT

    def __post_init__(self) -> None:
        both = self.between
        if not isinstance(both, list | tuple) or len(both) != 2 or not all(isinstance(site, str) for site in both):
            raise ConfigError("links.between", both, "the names of two sites")
        object.__setattr__(self, "between", tuple(both))
        number(ConfigError, "links.latency_ms", self.latency_ms, 0.0, 10_000.0)
        number(ConfigError, "links.mbit_s", self.mbit_s, 0.001, 1e7)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A pass of `stage` on `kind` takes base + per_row x rows + per_token x tokens + per_position x positions held, and
    several_ms more where it feeds more than one token. request_ms: what a request takes before its prefill:
    reading, preparing, vision. load_s: of the weights.
    """

    stage: str
    kind: str
    base_ms: float
    per_row_ms: float = 0.0
    per_token_ms: float = 0.0
    per_position_us: float = 0.0
    several_ms: float = 0.0
    request_ms: float | None = None
    load_s: float | None = None

    def __post_init__(self) -> None:
        where = f"profiles.{self.stage}"
        for item in fields(self)[2:]:
            value = getattr(self, item.name)
            if value is not None:
                number(ConfigError, f"{where}.{item.name}", value, 1e-4 if item.name == "base_ms" else 0.0, 1e7)


@dataclass(frozen=True, kw_only=True)
class Load:
    """streams: requests at a time over the whole cluster; 0 fills every slot. prompt: positions, 0 for `frames` frames
    and 64 positions of question. tokens: of an answer.
    """

    streams: int = 0
    prompt: int = 0
    tokens: int = 80
    frames: int = 8

    def __post_init__(self) -> None:
        integer(ConfigError, "load.streams", self.streams, 0, 1_000_000)
        integer(ConfigError, "load.prompt", self.prompt, 0, 1_000_000)
        integer(ConfigError, "load.tokens", self.tokens, 1, 4096)
        integer(ConfigError, "load.frames", self.frames, 1, 4096)


@dataclass(frozen=True)
class Cluster:
    """Everything of a cluster file; `kinds` holds those that its pools name."""

    name: str
    pools: tuple[Pool, ...]
    kinds: Mapping[str, Kind]
    links: tuple[SiteLink, ...] = ()
    profiles: tuple[Profile, ...] = ()
    agreement: Mapping[str, float] = field(default_factory=dict)
    load: Load = field(default_factory=Load)
    assume: tuple[str, ...] = ()

    def kind_of(self, pool: Pool) -> Kind:
        """The kind of a pool's devices."""
        return self.kinds[pool.kind]

    def latency_s(self, one: Pool, other: Pool) -> float | None:
        """One way between devices of two pools; None where their sites are not linked."""
        link = self._link(one, other)
        return link.latency_ms / 1000 if link else _SAME_SITE_S if one.site == other.site else None

    def bytes_per_s(self, one: Pool, other: Pool) -> float:
        """Between devices of two pools."""
        link = self._link(one, other)
        return (link.mbit_s if link else _SAME_SITE_MBIT) * 125_000

    def _link(self, one: Pool, other: Pool) -> SiteLink | None:
        pair = sorted((one.site, other.site))
        return next((link for link in self.links if sorted(link.between) == pair), None)


def cluster_names() -> tuple[str, ...]:
    """The cluster files that come with the package, by name."""
    return tuple(sorted(path.stem for path in _CLUSTERS.glob("*.toml")))


def load_cluster(source: str | Path) -> Cluster:
    """Read a cluster: a built-in name, or a path that ends in .toml. Raises `ConfigError` naming the key."""
    path = Path(source)
    if path.suffix != ".toml":
        if str(source) not in cluster_names():
            raise ConfigError("cluster", str(source), f"a .toml file, or one of {', '.join(cluster_names())}")
        path = _CLUSTERS / f"{source}.toml"
    table = read_toml("cluster", source, path)
    return cluster_from_dict(table)


def cluster_from_dict(table: Mapping[str, Any]) -> Cluster:
    """Build a cluster from the nested tables of its TOML form. Raises `ConfigError`."""
    known_keys("cluster", table, ("name", "pools", "kinds", "links", "profiles", "agreement", "load", "assume"))
    _name("name", table.get("name"))
    kinds = dict(device_kinds())
    own = table.get("kinds", {})
    known_keys("kinds", own, tuple(own) if isinstance(own, Mapping) and len(own) <= MAX_POOLS else ())
    for name, fields_ in own.items():
        _name("kinds", name)
        kinds[name] = Kind(name=name, **arguments(Kind, f"kinds.{name}", fields_, "name"))
    pools = tuple(Pool(**arguments(Pool, "pools", item)) for item in _list("pools", table.get("pools")))
    if not pools:
        raise ConfigError("pools", [], "at least one [[pools]] table")
    for pool in pools:
        choice(f"pools.{pool.name}.kind", pool.kind, sorted(kinds))
    if len({pool.name for pool in pools}) != len(pools):
        raise ConfigError("pools.name", [pool.name for pool in pools], "each name once")
    sites = {pool.site for pool in pools}
    links = tuple(SiteLink(**arguments(SiteLink, "links", item)) for item in _list("links", table.get("links", [])))
    for link in links:
        for site in link.between:
            choice("links.between", site, sorted(sites))
    profiles = tuple(Profile(**arguments(Profile, "profiles", x)) for x in _list("profiles", table.get("profiles", [])))
    agreement = table.get("agreement", {})
    known_keys("agreement", agreement, agreement)
    known_keys("agreement", agreement, [edge for edge in agreement if "->" in edge][:64])
    for edge, value in agreement.items():
        number(ConfigError, f"agreement.{edge}", value, 0.0, 0.999)
    return Cluster(
        name=table["name"],
        pools=pools,
        kinds={pool.kind: kinds[pool.kind] for pool in pools},
        links=links,
        profiles=profiles,
        agreement=dict(agreement),
        load=Load(**arguments(Load, "load", table.get("load", {}))),
        assume=check_assumptions(table.get("assume", [])),
    )


def check_assumptions(names: object) -> tuple[str, ...]:
    """`names` as assumptions of a plan. Raises `ConfigError`."""
    if not isinstance(names, list | tuple) or len(names) > 8:
        raise ConfigError("assume", names, f"a list of {', '.join(ASSUMPTIONS)}")
    for name in names:
        choice("assume", name, ASSUMPTIONS)
    return tuple(dict.fromkeys(names))


@cache
def device_kinds() -> Mapping[str, Kind]:
    """The kinds of device that are known by their data sheets, by name."""
    table = tomllib.loads(_KINDS.read_text())
    return {name: Kind(name=name, **item) for name, item in table.items()}


def _name(where: str, value: object) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ConfigError(where, printable(value), "1 to 32 letters, digits, '_', '-', '.'")


def _list(where: str, value: object) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_POOLS:
        raise ConfigError(where, value, f"at most {MAX_POOLS} [[{where}]] tables")
    return value
