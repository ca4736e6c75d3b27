"""`plan`: which stage on which device, how often, and what that should bring.

    1  every replica that fits, with what it promises (`candidates.py`)
    2  the cluster filled with replicas: by tokens per second for the devices they take, from several beginnings
    3  the few best, and the best of each set of levels, in the simulator (`confirm.py`); 2 again with what that taught
    4  of all that were simulated, the best; and what one more device of each pool would bring

What the runtime does not do is assumed only where the cluster file or `assume` allows it, and then the plan says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from cascade_runtime.config import Recipe
from cascade_runtime.errors import ConfigError
from cascade_runtime.planning.candidates import Candidate, Sort, candidates, density
from cascade_runtime.planning.cluster import ASSUMPTIONS, DEFAULT_AGREEMENT, MAX_SPLIT, Cluster, Load
from cascade_runtime.planning.confirm import Confirmed, confirm
from cascade_runtime.planning.describe import Chosen, describe
from cascade_runtime.planning.free_devices import FreeDevices
from cascade_runtime.planning.layout import layouts
from cascade_runtime.planning.plan import OneMore, Plan, Spare
from cascade_runtime.planning.problem import Problem, problem_of
from cascade_runtime.planning.roofline import CROSSING_S
from cascade_runtime.planning.turns import take_turns

_CONFIRMED = 3
_BEGINNINGS = 24
_KINDS_OF_REPLICA = 8

_Filled = list[tuple[Candidate, int]]


def plan(recipe: Recipe, cluster: Cluster, *, load: Load | None = None, assume: Sequence[str] = ()) -> Plan:
    """Plan a recipe on a cluster. Raises `ConfigError` where no stage order fits, saying what would."""
    allowed = tuple(dict.fromkeys((*cluster.assume, *assume)))
    problem = _quantised(problem_of(recipe, cluster, load or cluster.load), allowed)
    room = _room(problem)
    found = candidates(problem, {i: count + 1 for i, count in room.items()}, "sequential" in allowed)
    measured = _Measured(problem)
    tried = _worth_a_try(problem, found, room)
    if not tried:
        raise _impossible(problem, allowed)
    for filled in tried:
        measured.total(filled)
    found = measured.corrected(found)
    tried += _worth_a_try(problem, found, room)
    alone = [candidate for candidate in found if candidate.levels == (len(problem.levels) - 1,)]
    by_alone = max(_fillings(problem, alone, room), key=_worth, default=[])
    best = max([*tried, by_alone or tried[0]], key=measured.worth)
    chosen = [
        Chosen(count, candidate.layout, candidate.said, candidate.turns, measured.of(candidate))
        for candidate, count in best
    ]
    used: Counter[int] = Counter()
    for candidate, count in best:
        for pool, devices in candidate.usage.items():
            used[pool] += count * devices
        if candidate.layout is not None:
            used.update(dict.fromkeys({candidate.layout.devices[i] for i in candidate.layout.shared}, 1))
    replicas = tuple(describe(problem, each) for each in chosen)
    return Plan(
        recipe=recipe.name,
        cluster=cluster.name,
        tokens_per_s=sum(r.count * (r.simulated_tokens_per_s or r.tokens_per_s) for r in replicas),
        predicted_tokens_per_s=sum(replica.count * replica.tokens_per_s for replica in replicas),
        tokens_per_s_alone=measured.total(by_alone),
        ttft_s=max(replica.ttft_s for replica in replicas),
        streams=sum(replica.count * replica.slots for replica in replicas),
        prompt=problem.prompt,
        answer_tokens=problem.load.tokens,
        replicas=replicas,
        one_more=tuple(_one_more(problem, found, room)),
        spare=tuple(
            Spare(pool.name, pool.kind, pool.site, pool.devices - used[i])
            for i, pool in enumerate(cluster.pools)
            if pool.devices > used[i]
        ),
        assumptions=_assumptions(problem),
        defaults=_defaults(problem, any(replica.splits for replica in replicas)),
    )


def _room(problem: Problem) -> dict[int, int]:
    return {i: pool.devices for i, pool in enumerate(problem.cluster.pools)}


def _quantised(problem: Problem, allowed: Sequence[str]) -> Problem:
    """The mildest allowed type of weights with which every level fits in some layout, else the smallest."""
    room = _room(problem)
    for dtype in ("", *(name for name in ASSUMPTIONS if name in allowed and name != "sequential")):
        problem = problem.with_quantise(dtype)
        if any(len(layout.levels) == len(problem.levels) for layout in layouts(problem, room)):
            break
    return problem


def _fillings(problem: Problem, candidates: Sequence[Candidate], room: Mapping[int, int]) -> Iterable[_Filled]:
    """Ways to fill the cluster: each begins with another candidate and goes on with what pays most for what is left."""
    whole = FreeDevices.of(problem.cluster.pools, room)
    fitting = [candidate for candidate in candidates if whole.most(candidate.groups)]
    ranked = sorted(fitting, key=lambda candidate: density(problem, room, candidate), reverse=True)
    by_rate = sorted(fitting, key=lambda candidate: candidate.worth, reverse=True)
    of_levels = {candidate.levels: candidate for candidate in reversed(ranked)}
    for first in dict.fromkeys((*ranked[:_BEGINNINGS], *by_rate[:_BEGINNINGS], *of_levels.values())):
        free, filled = whole, list[tuple[Candidate, int]]()
        streams = problem.load.streams
        for candidate in (first, *ranked):
            count = free.most(candidate.groups)
            if problem.load.streams:
                count = min(count, streams // candidate.rows + (1 if not filled and streams < candidate.rows else 0))
            if count < 1 or len(filled) == _KINDS_OF_REPLICA:
                continue
            filled.append((candidate, count))
            streams -= count * candidate.rows
            free = free.without(candidate.groups, count)
        if filled:
            yield filled


def _worth_a_try(problem: Problem, candidates: Sequence[Candidate], room: Mapping[int, int]) -> list[_Filled]:
    """Of every candidate, and of whole replicas only, whose predictions err less."""
    whole = [candidate for candidate in candidates if not candidate.copied]
    found = _most_promising(_fillings(problem, candidates, room))
    return found + (_most_promising(_fillings(problem, whole, room)) if len(whole) < len(candidates) else [])


def _most_promising(filled: Iterable[_Filled]) -> list[_Filled]:
    """The best few, and the best that begins with each set of levels: predictions err by how much is drafted."""
    ranked = sorted(filled, key=_worth, reverse=True)
    of_levels: dict[tuple[int, ...], _Filled] = {}
    for each in ranked:
        of_levels.setdefault(each[0][0].levels, each)
    return [*ranked[:_CONFIRMED], *(each for each in of_levels.values() if each not in ranked[:_CONFIRMED])]


def _total(filled: _Filled) -> float:
    return sum(count * candidate.rate for candidate, count in filled)


def _worth(filled: _Filled) -> float:
    """What the objective counts: by throughput all replicas, by latency one row of the first."""
    return filled[0][0].worth if filled[0][0].worth != filled[0][0].rate else _total(filled)


class _Measured:
    """Replicas as the simulator finds them, each simulated once."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._said: dict[int, Confirmed | None] = {}
        self._ratios: dict[Sort, list[float]] = {}

    def of(self, candidate: Candidate) -> Confirmed | None:
        """What the simulator says of a candidate; None where it cannot follow."""
        if candidate.layout is None or candidate.said is None:
            return None
        key = id(candidate.said)
        if key not in self._said:
            said = self._said[key] = confirm(self._problem, candidate.layout, candidate.said)
            if said is not None:
                ratio = said.tokens_per_s / candidate.said.tokens_per_s
                self._ratios.setdefault(candidate.sort, []).append(ratio)
        return self._said[key]

    def total(self, filled: _Filled) -> float:
        """Tokens per second over all replicas."""
        rates = ((said.tokens_per_s if (said := self.of(each)) else each.rate) * count for each, count in filled)
        return sum(rates)

    def worth(self, filled: _Filled) -> float:
        """What the objective counts: all tokens per second, or those of one request."""
        total = self.total(filled)
        if self._problem.recipe.policy.objective == "latency":
            return total / sum(count * candidate.rows for candidate, count in filled)
        return total

    def corrected(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Predictions scaled by what the simulator found for others of their sort, else for those without copies."""
        scale = {sort: sum(ratios) / len(ratios) for sort, ratios in self._ratios.items()}
        whole = {sort[:2]: factor for sort, factor in scale.items() if not sort[2]}
        factors = ((each, scale.get(each.sort, whole.get(each.sort[:2], 1.0))) for each in candidates)
        return [replace(each, rate=each.rate * by, worth=each.worth * by) for each, by in factors]


def _one_more(problem: Problem, candidates: Sequence[Candidate], room: Mapping[int, int]) -> Iterable[OneMore]:
    now = max(map(_total, _fillings(problem, candidates, room)))
    for i, pool in enumerate(problem.cluster.pools):
        then = max(map(_total, _fillings(problem, candidates, {**room, i: room[i] + 1})))
        yield OneMore(pool.name, pool.kind, max(then, now), max(0.0, then - now))


# -- what is said besides --------------------------------------------------------------------------------------------


def _assumptions(problem: Problem) -> tuple[str, ...]:
    return (f"weights on GPUs in {problem.quantise}",) if problem.quantise else ()


def _defaults(problem: Problem, split: bool) -> tuple[str, ...]:
    given, names = problem.cluster.agreement, [part.name for part in problem.levels]
    edges = [f"{a}->{b}" for a, b in pairwise(names)]
    said = [f"agreement {DEFAULT_AGREEMENT} on {edge}" for edge in edges if edge not in given]
    measured = {(profile.stage, profile.kind) for profile in problem.cluster.profiles}
    for kind in problem.cluster.kinds.values():
        if any((name, kind.name) not in measured for name in names):
            shares = f"{kind.bandwidth_share:.0%} of its bandwidth, {kind.flops_share:.0%} of its FLOPS"
            said.append(f"{kind.name} reaches {shares}, and {kind.layer_us:g} us of host time per layer and pass")
    if split:
        said.append(f"states cross between two devices of a node in {1e6 * CROSSING_S:g} us and at the speed of PCIe")
    return tuple(said)


def _impossible(problem: Problem, allowed: Sequence[str]) -> ConfigError:
    """The target on the largest device, over several of one node, and in every type of weights: which would do."""
    target, pools = problem.levels[-1], problem.cluster.pools
    sizes = [(problem.cluster.kind_of(pool).memory_gib, pool.on_a_node(pool.devices)) for pool in pools]
    largest = sizes.index(max(sizes))
    pool, kind = pools[largest], problem.cluster.kind_of(pools[largest])
    need = problem.weight_bytes(target, kind) + problem.slot_bytes(target, kind)
    would: list[str] = []
    for dtype in ("int8", "int4"):
        smaller = replace(problem, quantise=dtype)
        if dtype not in allowed and any(layouts(smaller, _room(problem))):
            would.append(f"--assume {dtype} ({smaller.weight_bytes(target, kind) / 1e9:.3g} GB of weights)")
    if "sequential" not in allowed and any(take_turns(problem, i, 1) is not None for i in range(len(pools))):
        would.append("--assume sequential")
    dtype = problem.dtype(target, kind)
    shown = f"{need / 1e9:.3g} GB of {dtype} weights and one KV slot"
    limit = f"at most {kind.usable_bytes / 1e9:.3g} GB, nine tenths of a {kind.name}"
    if problem.most_devices(target, kind) > 1:
        limit += f", or its layers over devices of one node, of which {pool.name} has {pool.on_a_node(pool.devices)}"
    else:
        limit += ": this stage runs on one device"
    devices = _enough(problem, largest)
    either = [f"{devices} {kind.name} on one node"] if devices else []
    tail = f". Would fit: {' or '.join(either + would)}" if either + would else ""
    none = "" if would else f". No quantisation that a plan may assume fits{'' if either else ' either'}"
    return ConfigError(f"stages.{target.name}", shown, limit + tail + none)


def _enough(problem: Problem, index: int) -> int | None:
    """With how many devices of that pool on one node there would be a layout."""
    cluster, pool = problem.cluster, problem.cluster.pools[index]
    for devices in range(pool.on_a_node(pool.devices) + 1, MAX_SPLIT + 1):
        larger = replace(pool, devices=max(devices, pool.devices), devices_per_node=devices)
        pools = (*cluster.pools[:index], larger, *cluster.pools[index + 1 :])
        with_larger = replace(problem, cluster=replace(cluster, pools=pools))
        if any(layouts(with_larger, _room(with_larger))):
            return devices
    return None
