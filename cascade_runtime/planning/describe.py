"""`describe`: a chosen replica as the plan shows it: memory and load of every device, and the bottleneck."""

from __future__ import annotations

from dataclasses import dataclass

from cascade_runtime.planning.confirm import Confirmed, planned_recipe
from cascade_runtime.planning.forecast import Forecast, forecast
from cascade_runtime.planning.layout import Layout, pieces_on, slots_that_fit
from cascade_runtime.planning.plan import DevicePlan, Replica, StageOnDevice
from cascade_runtime.planning.problem import Problem, split_device
from cascade_runtime.planning.turns import Turns, resident_bytes

_FASTER = 1.25


@dataclass(frozen=True)
class Chosen:
    """`count` replicas of a layout with its forecast, or of turns."""

    count: int
    layout: Layout | None
    said: Forecast | None
    turns: Turns | None
    confirmed: Confirmed | None


def describe(problem: Problem, chosen: Chosen) -> Replica:
    """The replica in full."""
    if chosen.turns is not None:
        return _in_turns(problem, chosen.count, chosen.turns)
    assert chosen.layout is not None and chosen.said is not None
    layout, said = chosen.layout, chosen.said
    recipe = planned_recipe(problem, layout, said)
    overrides = [f"cascade.slots={said.rows}"]
    if said.edges:
        drafts = ",".join(map(str, recipe.cascade.num_draft_tokens))
        overrides += [f"cascade.num_draft_tokens=[{drafts}]", f"cascade.window={recipe.cascade.window}"]
    overrides += [f"stages.{name}.device={split_device(span)}" for name, span in layout.spans.items()]
    for part in problem.parts:
        copies = layout.copies_of(layout.at[part.name]) if part.name in layout.at else 1
        overrides += [f"{part.config.where}.replicas={copies}"] if copies != part.config.replicas else []
    whole = len(layout.levels) == len(problem.levels)
    apart = layout.slices == 1 or not any(part.config.beside for part in problem.parts)  # who lives beside whom changes
    return Replica(
        count=chosen.count,
        mode="together",
        levels=recipe.cascade.levels,
        slots=said.rows,
        slots_that_fit=slots_that_fit(problem, layout),
        devices=tuple(_device(problem, layout, said, device) for device in range(len(layout.devices))),
        edges=said.edges,
        tokens_per_s=said.tokens_per_s,
        simulated_tokens_per_s=chosen.confirmed.tokens_per_s if chosen.confirmed else None,
        ttft_s=said.ttft_s,
        simulated_ttft_s=chosen.confirmed.ttft_s if chosen.confirmed else None,
        bottleneck=bottleneck(problem, layout, said),
        overrides=tuple(overrides) if whole and apart else (),
    )


def bottleneck(problem: Problem, layout: Layout, said: Forecast) -> str:
    """The part whose being faster would bring most tokens per second."""
    gains = {name: forecast(problem, layout, said.rows, {name: _FASTER}).tokens_per_s for name in layout.at}
    return max(gains, key=lambda name: (gains[name], said.busy.get(name, 0.0)))


def _device(problem: Problem, layout: Layout, said: Forecast, device: int) -> DevicePlan:
    pool = problem.cluster.pools[layout.devices[device]]
    kind = problem.cluster.kind_of(pool)
    parts, copies = {part.name: part for part in problem.parts}, layout.copies_of(device)
    stages: list[StageOnDevice] = []
    for name, piece in pieces_on(problem, layout, device).items():
        part, pieces = parts[name], layout.span(name)
        # Layers work, and are loaded, one after the other, wherever they are.
        layers = piece.layers / part.size.layers if pieces > 1 else 1.0
        weights = piece.weight_bytes / problem.weight_bytes(part, kind)
        stages.append(
            StageOnDevice(
                stage=name,
                dtype=problem.dtype(part, kind),
                weight_bytes=piece.weight_bytes,
                kv_bytes=-(-said.rows // copies) * piece.slot_bytes,
                pass_ms=1000 * said.pass_s.get(name, 0.0) * layers,
                busy=said.busy[name] * layers,
                load_s=problem.load_s(part, kind) * weights,
                piece=1 + device - layout.at[name],
                pieces=pieces,
                layers=piece.layers if pieces > 1 else None,
            )
        )
    shared = device in layout.shared
    return DevicePlan(pool.name, kind.name, pool.site, kind.usable_bytes, tuple(stages), shared, copies)


def _in_turns(problem: Problem, count: int, turns: Turns) -> Replica:
    pool = problem.cluster.pools[turns.pool]
    kind = problem.cluster.kind_of(pool)
    parts = {part.name: part for part in problem.parts}
    stages: list[StageOnDevice] = []
    for turn, name in enumerate(turns.order):
        part = parts.get(name, problem.levels[-1])
        tower = name not in parts
        held = int(2 * part.size.vision) if tower else resident_bytes(problem, part, turns.pool)
        kv = 0 if tower else turns.rows * problem.slot_bytes(part, kind)
        dtype = "bfloat16" if tower else problem.dtype(part, kind)
        stages.append(StageOnDevice(name, dtype, held, kv, 0.0, turns.busy[name], turns.load_s[name], turn))
    levels = tuple(part.name for part in problem.levels if part.name in turns.order)
    return Replica(
        count=count,
        mode="in turns",
        levels=levels,
        slots=turns.rows,
        slots_that_fit=turns.rows,
        devices=(DevicePlan(pool.name, kind.name, pool.site, kind.usable_bytes, tuple(stages)),),
        edges=(),
        tokens_per_s=turns.tokens_per_s,
        simulated_tokens_per_s=None,
        ttft_s=turns.ttft_s,
        simulated_ttft_s=None,
        bottleneck=max(turns.busy, key=lambda name: turns.busy[name]),
        overrides=("cascade.loading=in_turns",) if levels == problem.recipe.cascade.levels else (),
        drafts=turns.drafts,
    )
