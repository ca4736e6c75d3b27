"""`edge_cuts`: where to cut the work between an edge box and the core, by the link between them.

    seconds(cut) = work on the edge + work on the core + latency + 8 x bytes / bandwidth            of one window
    answered_s(cut) = the same, and the answer: what follows in the core, with drafts on the link where the cut has them

Per bandwidth the cut with the quickest answer is chosen; where two take equally long is their break-even. Bytes of raw
events and frames are medians of measured windows (`edge_windows.toml`), those of features follow from the checkpoints'
sizes. The cut "drafts" sends what "features" does and runs the light stage on the box, too (`edge_drafts.py`): it pays
by its answers alone.
"""

from __future__ import annotations

import itertools
import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from cascade_runtime.config import Recipe, StageConfig
from cascade_runtime.config.checks import number
from cascade_runtime.errors import ConfigError
from cascade_runtime.planning.cluster import Cluster, Kind, Load
from cascade_runtime.planning.edge_drafts import EdgeDrafting, edge_drafting, with_box
from cascade_runtime.planning.model_size import checkpoint_directory, size_of
from cascade_runtime.planning.plan import byte_words
from cascade_runtime.planning.problem import problem_of
from cascade_runtime.planning.roofline import vision_s

_WINDOWS = Path(__file__).parent / "edge_windows.toml"
_PUBLISHED_RULE = ("event_frame/last_wins", 5)  # what is assumed of a target whose directory is not here
_FLOAT32_BYTES = 4
_RENDERS_SLOWER = 3.0  # an edge box than the measured core, unless told otherwise


@dataclass(frozen=True)
class CutCost:
    """One cut: bytes that cross for a window, and seconds of work on either side, those of the target left out. Of its
    answer: seconds, bytes of drafts and verdicts, and tokens per second of all requests; 0 where that is not known.
    """

    cut: str
    window_bytes: int
    edge_s: float
    core_s: float
    answer_s: float = 0.0
    answer_bytes: int = 0
    tokens_per_s: float = 0.0

    def seconds(self, mbit_s: float, latency_ms: float) -> float:
        """Of one window, from the sensor to the core's language stages."""
        return self.edge_s + self.core_s + latency_ms / 1000 + 8 * self.window_bytes / (1e6 * mbit_s)

    def answered_s(self, mbit_s: float, latency_ms: float) -> float:
        """From the sensor to the last token. A draft block's own time on the link counts as one that nothing hides."""
        return self.seconds(mbit_s, latency_ms) + self.answer_s + 8 * self.answer_bytes / (1e6 * mbit_s)

    @property
    def all_bytes(self) -> int:
        """Of the window and of its answer."""
        return self.window_bytes + self.answer_bytes

    @property
    def work_s(self) -> float:
        """What does not depend on the bandwidth, but for the latency."""
        return self.edge_s + self.core_s + self.answer_s


@dataclass(frozen=True)
class Scene:
    """Measured windows of one recording: events, bytes as raw events and as frames by rule, ms of packing frames."""

    name: str
    events: int
    raw_bytes: int
    frame_bytes: dict[str, int]
    frame_ms: dict[str, float]


@dataclass(frozen=True)
class Choice:
    """The cuts of one scene. best: the quickest at the link; reign: (cut, from, to) Mbit/s where each is quickest."""

    scene: Scene
    costs: tuple[CutCost, ...]
    best: str
    reign: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class EdgeCuts:
    """For a link of mbit_s and latency_ms one way, every scene's choice. drafting: the core with the light stage there,
    on the box and nowhere, where the recipe has one. notes: what was taken for granted.
    """

    mbit_s: float
    latency_ms: float
    rule: str
    choices: tuple[Choice, ...]
    drafting: EdgeDrafting | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a bandwidth without bound is null."""
        choices = [
            {
                "scene": choice.scene.name,
                "best": choice.best,
                "cuts": [
                    asdict(cost)
                    | {
                        "seconds": _plain(cost.seconds(self.mbit_s, self.latency_ms)),
                        "answered_s": _plain(cost.answered_s(self.mbit_s, self.latency_ms)),
                    }
                    for cost in choice.costs
                ],
                "quickest": [
                    {"cut": cut, "from_mbit_s": _plain(low), "to_mbit_s": _plain(high)}
                    for cut, low, high in choice.reign
                ],
            }
            for choice in self.choices
        ]
        link = {"mbit_s": self.mbit_s, "latency_ms": self.latency_ms}
        drafting = self.drafting.to_dict() if self.drafting else None
        return {**link, "rule": self.rule, "scenes": choices, "drafting": drafting, "notes": list(self.notes)}

    def text(self) -> str:
        """For people."""
        link = f"edge and core {self.mbit_s:g} Mbit/s and {self.latency_ms:g} ms apart, per window of 50 ms"
        lines = [f"{link}: bytes, in the core's language stages after, answered after"]
        for choice in self.choices:
            lines.append(f"  {choice.scene.name}, {choice.scene.events:,} events")
            for cost in choice.costs:
                seconds = (each(self.mbit_s, self.latency_ms) for each in (cost.seconds, cost.answered_s))
                said = "".join(f"  {1000 * each:8.4g} ms" for each in seconds)
                mark = " <- quickest" if cost.cut == choice.best else ""
                lines.append(f"    {cost.cut:<9}{byte_words(cost.all_bytes):>9}{said}{mark}")
            spans = ", ".join(f"{cut} {_span(low, high)}" for cut, low, high in choice.reign)
            lines.append(f"    quickest: {spans}")
        lines += self.drafting.lines() if self.drafting else []
        return "\n".join([*lines, *(f"  taken for granted: {note}" for note in self.notes)])


def break_even_mbit_s(one: CutCost, other: CutCost) -> float | None:
    """The bandwidth at which both take equally long; None where one is the quicker at any."""
    more_bytes, more_work_s = one.all_bytes - other.all_bytes, other.work_s - one.work_s
    if more_bytes == 0 or more_work_s == 0 or (more_bytes > 0) != (more_work_s > 0):
        return None
    return 8 * more_bytes / (1e6 * more_work_s)


def reigns(costs: Sequence[CutCost]) -> tuple[tuple[str, float, float], ...]:
    """(cut, from, to) Mbit/s: which cut is the quickest from the slowest link to the quickest one."""
    pairs = itertools.combinations(costs, 2)
    edges = sorted({even for one, other in pairs if (even := break_even_mbit_s(one, other)) is not None})
    bounds = [0.0, *edges, math.inf]
    found: list[tuple[str, float, float]] = []
    for low, high in itertools.pairwise(bounds):
        inside = high / 2 if not low else 2 * low if math.isinf(high) else math.sqrt(low * high)
        best = quickest(costs, inside if math.isfinite(inside) else 1.0, 0.0)
        if found and found[-1][0] == best:
            found[-1] = (best, found[-1][1], high)
        else:
            found.append((best, low, high))
    return tuple(found)


def quickest(costs: Sequence[CutCost], mbit_s: float, latency_ms: float) -> str:
    """The cut whose answer is there first; of equals the one with fewer bytes."""
    return min(costs, key=lambda cost: (cost.answered_s(mbit_s, latency_ms), cost.all_bytes)).cut


def edge_cuts(recipe: Recipe, cluster: Cluster, link: str | None, load: Load | None = None) -> EdgeCuts | None:
    """The cuts of a recipe for a link as `parse_link` reads it, or for the cluster's own between its cameras and other
    devices; None without either. load: instead of the cluster's. Raises `ConfigError`.
    """
    edge = next((pool for pool in cluster.pools if pool.cameras), None)
    core = max(
        (pool for pool in cluster.pools if pool is not edge), key=lambda pool: _speed(cluster, pool.kind), default=edge
    )
    if link is not None:
        mbit_s, latency_ms, slower = parse_link(link)
    else:
        sites = {edge.site, core.site} if edge is not None and core is not None else set()
        known = next((each for each in cluster.links if len(sites) == 2 and set(each.between) == sites), None)
        if known is None:
            return None
        mbit_s, latency_ms, slower = known.mbit_s, known.latency_ms, None
    assert core is not None
    rule, frames, notes = _rule(recipe.target)
    kinds = cluster.kinds[(edge or core).kind], cluster.kinds[core.kind]
    if edge is None:
        notes.append("the edge computes as quickly as the core: no pool has cameras")
    if slower is None:
        slower = _RENDERS_SLOWER
        notes.append(
            f"the edge renders {slower:g} times slower than one core of an AMD EPYC: --edge-link MBIT,MS,TIMES"
        )
    beside = with_box(cluster, kinds[0].name, core, mbit_s, latency_ms)
    drafting = edge_drafting(problem_of(recipe, beside, load or cluster.load))
    costs = [(scene, _costs(recipe, scene, rule, frames, kinds, slower)) for scene in scenes()]
    if drafting is not None:
        costs = [(scene, _answered(each, drafting)) for scene, each in costs]
    elif len(recipe.cascade.levels) > 1:
        notes.append(
            "answers take equally long after every cut: no device of the core has room for the language stages"
        )
    if not any(len(each) > 1 for _, each in costs):
        notes.append(f"no frames of rule {rule} were measured: raw events only")
    choices = tuple(Choice(scene, each, quickest(each, mbit_s, latency_ms), reigns(each)) for scene, each in costs)
    return EdgeCuts(mbit_s, latency_ms, rule, choices, drafting, tuple(notes))


def parse_link(text: str) -> tuple[float, float, float | None]:
    """(Mbit/s, ms one way, how many times slower the edge renders) of "MBIT,MS" or "MBIT,MS,TIMES". Raises
    `ConfigError`.
    """
    try:
        mbit_s, latency_ms, *more = (float(part) for part in text.split(",", 2))
    except ValueError:
        allowed = "MBIT,MS or MBIT,MS,TIMES: Mbit/s, ms one way, how many times slower the edge renders"
        raise ConfigError("--edge-link", text, allowed) from None
    number(ConfigError, "--edge-link (Mbit/s)", mbit_s, 0.001, 1e7)
    number(ConfigError, "--edge-link (ms)", latency_ms, 0.0, 10_000.0)
    for times in more:
        number(ConfigError, "--edge-link (times slower)", times, 0.01, 1000.0)
    return mbit_s, latency_ms, more[0] if more else None


@cache
def scenes() -> tuple[Scene, ...]:
    """The measured windows."""
    return tuple(Scene(**table) for table in tomllib.loads(_WINDOWS.read_text())["scenes"])


def _costs(
    recipe: Recipe, scene: Scene, rule: str, frames: int, kinds: tuple[Kind, Kind], slower: float
) -> tuple[CutCost, ...]:
    """raw, and frames and features where they are known. kinds: the edge's and the core's."""
    if rule not in scene.frame_bytes:
        return (CutCost("raw", scene.raw_bytes, 0.0, 0.0),)
    render_s, packed = scene.frame_ms[rule] / 1000, scene.frame_bytes[rule]
    if recipe.encoder is None or recipe.adapter is None:
        return CutCost("raw", scene.raw_bytes, 0.0, render_s), CutCost("frames", packed, slower * render_s, 0.0)
    encoder, adapter = size_of(recipe.encoder), size_of(recipe.adapter)
    edge_s, core_s = (sum(vision_s(size, kind, "float32", frames) for size in (encoder, adapter)) for kind in kinds)
    features = frames * encoder.positions * (encoder.feature_size + adapter.feature_size) * _FLOAT32_BYTES
    return (
        CutCost("raw", scene.raw_bytes, 0.0, render_s + core_s),
        CutCost("frames", packed, slower * render_s, core_s),
        CutCost("features", packed + features, slower * render_s + edge_s, 0.0),
    )


def _answered(costs: tuple[CutCost, ...], drafting: EdgeDrafting) -> tuple[CutCost, ...]:
    """The same cuts with the core's answers, and drafts where features can cross and the box has room."""
    core, edge = drafting.without_cut, drafting.with_cut
    found = [replace(cost, answer_s=core.answer_s, tokens_per_s=core.tokens_per_s) for cost in costs]
    if costs[-1].cut == "features" and drafting.fits:
        sent, rate = drafting.answer_bytes if edge.min_drafts else 0, edge.tokens_per_s
        found.append(replace(costs[-1], cut="drafts", answer_s=edge.answer_s, answer_bytes=sent, tokens_per_s=rate))
    return tuple(found)


def _rule(target: StageConfig) -> tuple[str, int, list[str]]:
    """The target's rule and how many frames it makes."""
    path = checkpoint_directory(target) / "preprocessor_config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))["event_representation"] if path.is_file() else None
        if said is not None:
            return str(said["name"]), int(said.get("frames", 1)), []
    except (OSError, ValueError, KeyError, TypeError):
        pass
    rule, frames = _PUBLISHED_RULE
    return rule, frames, [f"the target is shown {frames} pictures by {rule}: its directory does not say"]


def _speed(cluster: Cluster, kind: str) -> float:
    return cluster.kinds[kind].flops("float32")


def _plain(mbit_s: float) -> float | None:
    return float(f"{mbit_s:.6g}") if math.isfinite(mbit_s) else None


def _span(low: float, high: float) -> str:
    if not low:
        return "at any bandwidth" if math.isinf(high) else f"below {high:.3g} Mbit/s"
    return f"from {low:.3g} Mbit/s" if math.isinf(high) else f"{low:.3g} to {high:.3g} Mbit/s"
