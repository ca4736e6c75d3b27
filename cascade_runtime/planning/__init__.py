"""`plan`: which stage of a recipe on which device of a cluster, and what that should bring.

    load_cluster(name or file)          cluster.py: pools, links, profiles, agreement, load
    plan(recipe, cluster) -> Plan       planner.py; plan.py: what it says, as text and JSON
    draw(plan) -> SVG                   picture.py
    edge_cuts(recipe, cluster, link)    edge_cuts.py: raw events, frames, features or drafts from an edge box;
                                        edge_drafts.py: the core's answers with the light stage there or on it
    placed_recipes(recipe, plan, ..)    placed.py: the recipes that run as the plan says; toml_text.py: as files

    needs, model_size -> problem        what each part weighs, what its passes cost (roofline, or a profile)
    layout -> forecast -> confirm       which placements fit, what one should reach, the best of them simulated;
                                        free_devices: of each node, since layers are split only within one
                                        turns: parts that take turns in one device's memory
    describe                            the chosen one, device by device

Torch and Ray are not needed: sizes come from config.json files, costs from data sheets or profiles, and what the stages
would do from the schedulers and policies that they run.
"""

from __future__ import annotations

from pathlib import Path

from cascade_runtime.config import Recipe, load_recipe, recipe_names, setup_names
from cascade_runtime.planning.cluster import (
    Cluster,
    Load,
    check_assumptions,
    cluster_from_dict,
    cluster_names,
    device_kinds,
    load_cluster,
)
from cascade_runtime.planning.edge_cuts import EdgeCuts, edge_cuts
from cascade_runtime.planning.needs import Need, needs
from cascade_runtime.planning.picture import draw
from cascade_runtime.planning.placed import placed_recipes
from cascade_runtime.planning.plan import Plan
from cascade_runtime.planning.planner import plan
from cascade_runtime.planning.toml_text import to_toml

__all__ = [
    "Cluster",
    "EdgeCuts",
    "Load",
    "Need",
    "Plan",
    "check_assumptions",
    "cluster_from_dict",
    "cluster_names",
    "device_kinds",
    "draw",
    "edge_cuts",
    "load_cluster",
    "load_planned_recipe",
    "needs",
    "placed_recipes",
    "plan",
    "planned_recipe_names",
    "to_toml",
]

_RECIPES = Path(__file__).parent / "recipes"


def planned_recipe_names() -> tuple[str, ...]:
    """Recipes that can be planned: those that run here, and those of published models."""
    return tuple(sorted((*recipe_names(), *setup_names(), *(path.stem for path in _RECIPES.glob("*.toml")))))


def load_planned_recipe(source: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
    """As `load_recipe`, with the recipes of published models by name, too."""
    own = _RECIPES / f"{source}.toml"
    return load_recipe(own if str(source) in planned_recipe_names() and own.is_file() else source, overrides)
