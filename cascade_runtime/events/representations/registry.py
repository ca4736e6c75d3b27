"""The names of the representations, and `represent`, which looks one up."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from cascade_runtime.errors import InputError
from cascade_runtime.events.array import Events
from cascade_runtime.events.representations.activity import activity
from cascade_runtime.events.representations.density import density
from cascade_runtime.events.representations.event_frame import last_wins, on_over_off
from cascade_runtime.events.representations.histogram import histogram
from cascade_runtime.events.representations.time_surface import time_surface
from cascade_runtime.events.representations.voxel_grid import voxel_grid

REPRESENTATIONS: dict[str, Callable[..., NDArray[Any]]] = {
    "event_frame/last_wins": last_wins,
    "event_frame/on_over_off": on_over_off,
    "histogram": histogram,
    "voxel_grid": voxel_grid,
    "time_surface": time_surface,
    "density": density,
    "activity": activity,
}


def represent(events: Events, name: str, **options: object) -> NDArray[Any]:
    """The representation `name` of `events`; options are the rule's own. Raises InputError for an unknown name or
    option.
    """
    rule = REPRESENTATIONS.get(name)
    if rule is None:
        raise InputError("representation", name, ", ".join(REPRESENTATIONS))
    allowed = [parameter for parameter in inspect.signature(rule).parameters if parameter != "events"]
    unknown = [option for option in options if option not in allowed]
    if unknown:
        raise InputError(f"option of {name}", unknown[0], ", ".join(allowed) or "no options")
    return rule(events, **options)
