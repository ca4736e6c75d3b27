"""`open_pipeline`: what answers an edge's windows, and the stage that passes its drafts on where the recipe has one."""

from __future__ import annotations

from actors.handles import StageHandle
from cascade_runtime.config import Recipe
from cascade_runtime.transports import Transport, open_transport


def open_pipeline(target: str, recipe: Recipe) -> tuple[Transport, StageHandle | None]:
    """The pipeline of a recipe in this process or on Ray. A drafter on edge boxes needs stages that run apart: in this
    process they are threads then. Raises what starting it raises.
    """
    light = recipe.stages[0]
    if light.drafter != "edge":
        return open_transport(target, recipe), None
    if target == "in-process":
        from cluster.threaded import ThreadedTransport

        threaded = ThreadedTransport(recipe)
        return threaded, threaded.stages[light.name]
    from cluster.ray_transport import RayTransport

    on_ray = open_transport(target, recipe)
    assert isinstance(on_ray, RayTransport)  # of one replica: a recipe has no more where edges draft
    return on_ray, on_ray.pipeline.stages[light.name]
