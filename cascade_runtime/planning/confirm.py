"""`confirm`: a forecast replica in the simulator, with the schedulers and the policies that the runtime would make.

Of a replica whose requests fall into slices one is simulated, as `forecast` looks at one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median

from cascade_runtime.config import Recipe
from cascade_runtime.planning.forecast import Forecast
from cascade_runtime.planning.layout import Layout
from cascade_runtime.planning.problem import Problem
from cascade_runtime.planning.roofline import crowded
from cascade_runtime.scheduling.from_recipe import policy_from_recipe
from cascade_runtime.simulation import Agreement, Device, Link, Load, Stage, simulate

MOST_ROWS = 64


@dataclass(frozen=True)
class Confirmed:
    """What the simulator says of one replica. ttft_s: the median, at full load."""

    tokens_per_s: float
    ttft_s: float


def planned_recipe(problem: Problem, layout: Layout, said: Forecast) -> Recipe:
    """The recipe as the plan would have it, every level once: its slots, and the m and W to begin with."""
    recipe = problem.recipe
    cascade = replace(
        recipe.cascade,
        levels=tuple(recipe.cascade.levels[level] for level in layout.levels),
        num_draft_tokens=tuple(edge.min_drafts for edge in said.edges),
        window=max((edge.window for edge in said.edges), default=recipe.cascade.window),
        slots=said.rows,
    )
    stages = tuple(recipe.stages[level] for level in layout.levels)
    return replace(recipe, cascade=cascade, stages=stages)


def confirm(problem: Problem, layout: Layout, said: Forecast) -> Confirmed | None:
    """Simulate one replica; None where it holds more rows than the simulator can follow in seconds."""
    rows = said.rows // layout.slices
    if rows > MOST_ROWS:
        return None
    recipe = planned_recipe(problem, layout, replace(said, rows=rows))
    cluster, devices = problem.cluster, [Device(str(i)) for i in range(len(layout.devices))]
    stages = []
    for k, level in enumerate(layout.levels):
        part, device = problem.levels[level], layout.at[problem.levels[level].name]
        cost = problem.cost(part, cluster.kind_of(cluster.pools[layout.devices[device]]), layout.span(part.name))
        cost = crowded(cost, layout.crowd(part.name))
        stages.append(Stage(part.name, policy_from_recipe(recipe, k, cost), cost, devices[device]))
    load = problem.load
    result = simulate(
        stages,
        Agreement([edge.agreement for edge in said.edges]),
        Load(streams=rows, requests=4 * rows, tokens=load.tokens, prompt=problem.prompt),
        [Link(edge.latency_s) for edge in said.edges],
        upstream_s=recipe.deadlines.upstream_s,
        window=recipe.cascade.window,
        prefill_tokens=recipe.cascade.prefill_tokens,
    )
    tower = layout.at[problem.tower.name]
    kind = cluster.kind_of(cluster.pools[layout.devices[tower]])
    encode_s, crowd = problem.request_s(problem.tower, kind), layout.crowd(problem.tower.name)
    began, ended = (result.finished_at_s[k * rows - 1] for k in (1, 3))  # while every row is taken
    rate = 2 * rows * load.tokens / (ended - began)
    if encode_s and problem.tower is not problem.levels[-1]:
        rate = min(rate, load.tokens / (crowd * encode_s))
    elif encode_s and problem.measured_request_s(problem.tower, kind) is None:
        rate = 1 / (1 / rate + crowd * encode_s / load.tokens)  # the target's own tower holds up its decoding
    return Confirmed(layout.slices * rate, median(result.ttft_s) + encode_s)
