"""`edge_drafting`: the core's answers with the light stage beside it, on the edge box, and without it.

    core    every level in the core, by the best layout that fits
    edge    the first level on the box, one box to a request at a time, the others in the core. A round trip is in the
            loop: drafts cross upwards, verdicts come back
    alone   the core without the first level: what a target does whose drafts come too late (SLED, Li et al. 2025)

All three are `forecast`s over the same cluster: the core's pools, and the box at the other end of the link.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from cascade_runtime.planning.cluster import Cluster, Pool, SiteLink
from cascade_runtime.planning.forecast import Forecast, forecast
from cascade_runtime.planning.layout import Layout, layouts, slots_that_fit
from cascade_runtime.planning.plan import byte_words
from cascade_runtime.planning.problem import Part, Problem

HEADER_BYTES = 40
"""Of a draft block or a verdict on a stream: its own header, and its frame's length before that."""
TOKEN_BYTES = 5
_BOX = 0  # the box's place among the pools
_FURTHEST_MS, _BISECTIONS = 2000.0, 20


@dataclass(frozen=True)
class Answers:
    """What one pipeline in the core brings. tokens_per_s: of all its requests; answer_s: of one, from its visual input
    to its last token. The rest is of the first level's edge, 0 where that has no part in it.
    """

    levels: tuple[str, ...]
    tokens_per_s: float
    answer_s: float
    min_drafts: int
    window: int
    drafts_per_pass: float
    tokens_per_pass: float

    def round_bytes(self) -> int:
        """Of a round's draft block and of its verdict."""
        both = 2 * HEADER_BYTES + TOKEN_BYTES * (self.drafts_per_pass + self.tokens_per_pass)
        return round(both) if self.min_drafts else 0


@dataclass(frozen=True)
class EdgeDrafting:
    """requests: at a time. step_s: of a token on the box; need_bytes, room_bytes: the cut's there, and all of its own.
    off_core: what the first level takes in the core, bytes and share of a device's time. answer_bytes: of an answer's
    draft blocks and verdicts. beats_alone_ms, beats_core_ms: one way, up to which drafts from the edge are the quicker
    ones; None: nowhere.
    """

    requests: int
    core: Answers
    edge: Answers
    alone: Answers
    round_trip_s: float
    patience_s: float
    step_s: float
    need_bytes: int
    room_bytes: int
    off_core_bytes: int
    off_core_busy: float
    answer_bytes: int
    beats_alone_ms: float | None
    beats_core_ms: float | None

    @property
    def fits(self) -> bool:
        """Whether the box has room for what the cut puts there."""
        return self.need_bytes <= self.room_bytes

    @property
    def hidden_s(self) -> float:
        """How much of a round trip and a pass is hidden by a drafter W tokens ahead of what was confirmed."""
        return self.edge.window * self.step_s

    @property
    def with_cut(self) -> Answers:
        """With drafts from the edge, or alone where these bring less."""
        return self.edge if self.edge.tokens_per_s > self.alone.tokens_per_s else self.alone

    @property
    def without_cut(self) -> Answers:
        """With drafts of the core's own, or alone where these bring less."""
        return self.core if self.core.tokens_per_s > self.alone.tokens_per_s else self.alone

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        table = {**asdict(self), "fits": self.fits, "hidden_s": self.hidden_s, "round_bytes": self.edge.round_bytes()}
        return table | {"goes_on_alone": self.with_cut is self.alone}

    def lines(self) -> list[str]:
        """For people."""
        room = f"{byte_words(self.need_bytes)} of {byte_words(self.room_bytes)}"
        off = f"{byte_words(self.off_core_bytes)} and {self.off_core_busy:.0%} of a device's time"
        lines = [
            f"  drafts: the box holds {room}{'' if self.fits else ', WHICH DOES NOT FIT'}, "
            f"{1000 * self.step_s:.3g} ms a token; off the core {off}",
        ]
        for name, said in (("core", self.core), ("edge", self.edge), ("alone", self.alone)):
            drafts = f", m {said.min_drafts}, W {said.window}, {said.tokens_per_pass:.3g} tokens a pass"
            rate = f"{said.tokens_per_s:.4g} tokens/s, answered in {said.answer_s:.3g} s"
            where = {"core": "light in the core", "edge": "light on the edge", "alone": "without light"}[name]
            lines.append(f"    {where:<18} {rate}{drafts if said.min_drafts else ''}")
        trip, first = 1000 * self.round_trip_s, 1000 * (self.round_trip_s + self.step_s)
        if self.edge.min_drafts:
            hidden = f"of a round trip of {trip:.4g} ms and a pass W steps hide up to {1000 * self.hidden_s:.4g} ms"
            lines.append(f"    {hidden}, a refusal costs all of it; {self.edge.round_bytes()} bytes a round")
        else:
            waits = f"deadlines.upstream_s is {1000 * self.patience_s:.4g} ms: the target goes on alone"
            lines.append(f"    after a refusal drafts are there in {first:.4g} ms, {waits}")
        beats = f"quicker than none {_up_to(self.beats_alone_ms)}, than the core's own {_up_to(self.beats_core_ms)}"
        return [*lines, f"    drafts from the edge are {beats}"]


def with_box(cluster: Cluster, box_kind: str, core: Pool, mbit_s: float, latency_ms: float) -> Cluster:
    """The pools of the core's site, and before them one box at the other end of such a link."""
    near = [pool for pool in cluster.pools if pool.site == core.site and not pool.cameras]
    site = f"{core.site[:28]}-box"
    box = Pool(name="box", kind=box_kind, site=site, cameras=True)
    link = SiteLink(between=(site, core.site), latency_ms=latency_ms, mbit_s=mbit_s)
    within = (each for each in cluster.links if set(each.between) == {core.site})
    return replace(cluster, pools=(box, *(near or [core])), links=(link, *within))


def edge_drafting(problem: Problem) -> EdgeDrafting | None:
    """Of a problem over the cluster of `with_box`. None where the recipe has one level, or the core has no room for the
    levels below it.
    """
    levels = replace(problem, parts=problem.levels)
    wanted = problem.load.streams or problem.recipe.cascade.slots
    room = {i: pool.devices for i, pool in enumerate(problem.cluster.pools) if i != _BOX}
    found = list(layouts(levels, room))
    without = [layout for layout in found if 0 not in layout.levels]
    whole = [layout for layout in found if 0 in layout.levels]
    if len(levels.levels) == 1 or not without:
        return None
    requests = min(wanted, max(slots_that_fit(levels, layout) for layout in without))
    core_layout, core = _best(levels, whole or without, requests)
    alone_layout, alone = _best(levels, without, requests)
    split = [_with_light_on_box(levels, layout) for layout in without]
    edge_layout, edge = _best(levels, split, requests)
    light = levels.levels[0]
    box_kind = levels.cluster.kind_of(levels.cluster.pools[_BOX])
    event = [part for part in problem.parts if part.level is None]
    rate = {"alone": alone.tokens_per_s, "core": core.tokens_per_s}
    edge_answers, alone_answers = _answers(levels, edge_layout, edge), _answers(levels, alone_layout, alone)
    rounds = levels.load.tokens / max(1.0, edge_answers.tokens_per_pass)
    latency_s = levels.cluster.links[0].latency_ms / 1000

    def beats(than: str) -> float | None:
        def holds(latency_ms: float) -> bool:
            far = _far(levels, edge_layout, requests, latency_ms)
            return far.edges[0].drafts_per_pass > 0 and far.tokens_per_s > rate[than]

        return _furthest(holds)

    return EdgeDrafting(
        requests=requests,
        core=_answers(levels, core_layout, core),
        edge=edge_answers,
        alone=alone_answers,
        round_trip_s=2 * latency_s,
        patience_s=problem.recipe.deadlines.upstream_s,
        step_s=edge.pass_s[light.name],
        need_bytes=sum(problem.weight_bytes(part, box_kind) for part in (light, *event))
        + problem.slot_bytes(light, box_kind),
        room_bytes=box_kind.usable_bytes,
        off_core_bytes=_bytes_of(levels, core_layout, light, core.rows),
        off_core_busy=core.busy.get(light.name, 0.0),
        answer_bytes=round(rounds * edge_answers.round_bytes()),
        beats_alone_ms=beats("alone"),
        beats_core_ms=beats("core"),
    )


def _best(problem: Problem, found: list[Layout], requests: int) -> tuple[Layout, Forecast]:
    """The quickest of layouts with as many of the requests at a time as fit it."""

    def of(layout: Layout) -> Forecast:
        own = _own(problem, layout)
        return forecast(problem, layout, max(1, min(requests, slots_that_fit(problem, layout))), own=own)

    return max(((layout, of(layout)) for layout in found), key=lambda each: each[1].tokens_per_s)


def _bytes_of(problem: Problem, layout: Layout, part: Part, rows: int) -> int:
    """Weights and KV slots of a part, 0 where it has no place."""
    if part.name not in layout.at:
        return 0
    kind = problem.cluster.kind_of(problem.cluster.pools[layout.devices[layout.at[part.name]]])
    return problem.weight_bytes(part, kind) + rows * problem.slot_bytes(part, kind)


def _own(problem: Problem, layout: Layout) -> frozenset[str]:
    """Parts on the box: there is one for every request."""
    return frozenset(name for name, device in layout.at.items() if layout.devices[device] == _BOX)


def _with_light_on_box(problem: Problem, layout: Layout) -> Layout:
    device = len(layout.devices)
    at = {problem.levels[0].name: device, **layout.at}
    levels, devices = (0, *layout.levels), (*layout.devices, _BOX)
    return replace(layout, levels=levels, devices=devices, at=at, shared=frozenset({device}))


def _answers(problem: Problem, layout: Layout, said: Forecast) -> Answers:
    tower = problem.levels[-1]
    kind = problem.cluster.kind_of(problem.cluster.pools[layout.devices[layout.at[tower.name]]])
    drafts = bool(said.edges) and 0 in layout.levels and said.edges[0].drafts_per_pass > 0
    first = said.edges[0] if drafts else None
    in_turn_s = said.rows * problem.load.tokens / said.tokens_per_s  # Little's law: every place is always taken
    return Answers(
        levels=tuple(problem.levels[level].name for level in layout.levels),
        tokens_per_s=said.tokens_per_s,
        answer_s=problem.request_s(tower, kind) + in_turn_s,
        min_drafts=first.min_drafts if first else 0,
        window=first.window if first else 0,
        drafts_per_pass=first.drafts_per_pass if first else 0.0,
        tokens_per_pass=first.tokens_per_pass if first else 1.0,
    )


def _far(problem: Problem, layout: Layout, requests: int, latency_ms: float) -> Forecast:
    """The same, so far away."""
    link = replace(problem.cluster.links[0], latency_ms=latency_ms)
    moved = replace(problem, cluster=replace(problem.cluster, links=(link,)))
    return forecast(moved, layout, max(1, min(requests, slots_that_fit(problem, layout))), own=_own(problem, layout))


def _furthest(holds: Callable[[float], bool]) -> float | None:
    """The greatest latency at which it holds, in ms, up to `_FURTHEST_MS`; None where it does nowhere."""
    if not holds(0.0):
        return None
    low, high = 0.0, _FURTHEST_MS
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _up_to(latency_ms: float | None) -> str:
    return "nowhere" if latency_ms is None else f"up to {latency_ms:.3g} ms one way"
