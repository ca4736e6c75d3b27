"""`open_ray`: the client's way to Ray: one pipeline, or as many as the recipe's `cascade.replicas` behind one front.

Each replica is a whole pipeline in a placement group of its own; nothing is shared between them but the Ray cluster.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import ray

from cascade_runtime.config import Recipe
from cascade_runtime.transports import Replicas, Transport
from cluster.launch import Report, connect
from cluster.ray_transport import RayTransport, join

_STARTS = 4  # pipelines that load at a time


def open_ray(recipe: Recipe, *, address: str | None = None, report: Report = lambda line: None) -> Transport:
    """Start the pipelines of a recipe on the Ray that this process is connected to, on the one at an address, or on one
    of its own. Raises what `launch` and `join` raise; what was started by then is stopped.
    """
    count = recipe.cascade.replicas
    if count == 1:
        return RayTransport(recipe, address=address, report=report)
    recipe.check_runs_apart()
    owns_ray = connect(recipe, None, report, pipelines=count) if address is None else join(address)
    one = replace(recipe, cascade=replace(recipe.cascade, replicas=1))
    with ThreadPoolExecutor(min(count, _STARTS)) as pool:
        starting = [pool.submit(RayTransport, one, report=report) for _ in range(count)]
    failed = [error for each in starting if (error := each.exception()) is not None]
    if failed:
        for each in starting:
            if each.exception() is None:
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    each.result().pipeline.close()
        if owns_ray:
            ray.shutdown()
        raise failed[0]
    return Replicas(
        [each.result() for each in starting],
        slots=recipe.cascade.slots,
        patience_s=recipe.deadlines.request_s,
        on_close=ray.shutdown if owns_ray else lambda: None,
    )
