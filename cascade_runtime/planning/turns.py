"""Sequential loading: the parts take turns in one device's memory, each loaded once for a batch of requests.

    load tower, encode all | (load drafter, draft once for all | ...) | load target, prefill, verify, decode the rest

A plan does so where "sequential" is allowed, and a recipe with `cascade.loading = "in_turns"` runs so. Weights come
from the host's memory at the speed of PCIe, or as measured (`load_s` of a profile); throwing them away costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from cascade_runtime.planning.problem import Part, Problem
from cascade_runtime.scheduling.hazards import expected_tokens, geometric

_DRAFTS = (0, 2, 4, 8, 16)


@dataclass(frozen=True)
class Turns:
    """One device of a pool that holds one part at a time. order: of the parts, each loaded once per batch. seconds: of
    a batch, of which `load_s` by part are loading. drafts: that each drafter makes per request, 0 where none is used.
    """

    pool: int
    order: tuple[str, ...]
    rows: int
    seconds: float
    ttft_s: float
    tokens_per_s: float
    load_s: dict[str, float]
    busy: dict[str, float]
    drafts: int


def take_turns(problem: Problem, pool: int, wanted: int) -> Turns | None:
    """The best way to take turns on one device of the pool, or None where a part does not fit even by itself."""
    target = problem.levels[-1]
    event = [part for part in problem.parts if part.level is None]
    drafters = problem.levels[:-1]
    found: list[Turns] = []
    for chosen in ([], *([drafter] for drafter in drafters)):
        rows = min([wanted, *(_rows(problem, part, pool) for part in (*event, *chosen, target))])
        if rows < 1:
            continue
        for drafts in _DRAFTS if chosen else (0,):
            if bool(chosen) == bool(drafts):
                found.append(_batch(problem, pool, event, chosen, rows, drafts))
    return max(found, key=lambda turns: turns.tokens_per_s, default=None)


def resident_bytes(problem: Problem, part: Part, pool: int) -> int:
    """Weights of a part in its turn; the target's tower has a turn of its own."""
    kind = problem.cluster.kind_of(problem.cluster.pools[pool])
    return problem.weight_bytes(_without_tower(problem, part), kind)


def _without_tower(problem: Problem, part: Part) -> Part:
    if part.level is None or part is not problem.tower:
        return part
    return Part(part.name, part.config, part.size, part.numbers - part.size.vision, part.level)


def _rows(problem: Problem, part: Part, pool: int) -> int:
    kind = problem.cluster.kind_of(problem.cluster.pools[pool])
    slot = problem.slot_bytes(part, kind)
    left = kind.usable_bytes - resident_bytes(problem, part, pool)
    return 4096 if left >= 0 and not slot else left // slot if slot and left >= 0 else 0


def _batch(problem: Problem, pool: int, event: list[Part], chosen: list[Part], rows: int, drafts: int) -> Turns:
    kind = problem.cluster.kind_of(problem.cluster.pools[pool])
    target, tokens, prompt = problem.levels[-1], problem.load.tokens, problem.prompt
    load: dict[str, float] = {}
    work: dict[str, float] = {}
    if problem.tower is target:
        load["tower"] = 2.0 * target.size.vision / (kind.pcie_gb_s * 1e9)
        work["tower"] = rows * problem.request_s(target, kind)
    for part in event:
        load[part.name], work[part.name] = problem.load_s(part, kind), rows * problem.request_s(part, kind)
    held = rows * (prompt + tokens / 2)
    gained = 0.0
    for part in chosen:
        cost = problem.cost(part, kind)
        load[part.name] = problem.load_s(part, kind)
        work[part.name] = rows * cost.seconds(1, prompt, prompt) + drafts * cost.seconds(rows, rows, held)
        alpha = problem.agreement(part.level or 0, len(problem.levels) - 1)
        gained = expected_tokens(geometric(alpha, drafts), drafts)
    cost = problem.cost(target, kind)
    load[target.name] = problem.load_s(_without_tower(problem, target), kind)
    prefill_s = rows * cost.seconds(1, prompt + drafts, prompt)
    work[target.name] = prefill_s + max(0.0, tokens - 1 - max(0.0, gained - 1)) * cost.seconds(rows, rows, held)
    seconds = sum(load.values()) + sum(work.values())
    ttft_s = seconds - work[target.name] + prefill_s
    busy = {name: (load[name] + work[name]) / seconds for name in load}
    return Turns(pool, tuple(load), rows, seconds, ttft_s, rows * tokens / seconds, load, busy, drafts)
