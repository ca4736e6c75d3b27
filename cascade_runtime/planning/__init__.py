"""`plan`: which stage of a recipe on which device of a cluster, and what that should bring.

    load_cluster(name or file)          cluster.py: pools, links, profiles, agreement, load
    plan(recipe, cluster) -> Plan       planner.py; plan.py: what it says, as text and JSON
    draw(plan) -> SVG                   picture.py
    edge_cuts(recipe, cluster, link)    edge_cuts.py: raw events, frames or features from an edge box, by its link

Torch and Ray are not needed: sizes come from config.json files, costs from data sheets or profiles, and what the stages
would do from the schedulers and policies that they run.
"""

from __future__ import annotations

from pathlib import Path

from cascade_runtime.config import Recipe, load_recipe, recipe_names
from cascade_runtime.planning.cluster import (
    Cluster,
    Load,
    check_assumptions,
    cluster_from_dict,
    cluster_names,
    load_cluster,
)
from cascade_runtime.planning.edge_cuts import EdgeCuts, edge_cuts
from cascade_runtime.planning.picture import draw
from cascade_runtime.planning.plan import Plan
from cascade_runtime.planning.planner import plan

__all__ = [
    "Cluster",
    "EdgeCuts",
    "Load",
    "Plan",
    "check_assumptions",
    "cluster_from_dict",
    "cluster_names",
    "draw",
    "edge_cuts",
    "load_cluster",
    "load_planned_recipe",
    "plan",
    "planned_recipe_names",
]

_RECIPES = Path(__file__).parent / "recipes"


def planned_recipe_names() -> tuple[str, ...]:
    """Recipes that can be planned: those that run here, and those of published models."""
    return tuple(sorted((*recipe_names(), *(path.stem for path in _RECIPES.glob("*.toml")))))


def load_planned_recipe(source: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
    """As `load_recipe`, with the recipes of published models by name, too."""
    own = _RECIPES / f"{source}.toml"
    return load_recipe(own if str(source) in planned_recipe_names() and own.is_file() else source, overrides)
