"""Named representations: `represent(events, "event_frame/last_wins")` -> numpy array.

    event_frame/last_wins     (H, W, 3) uint8, EventGPT's picture       event_frame/on_over_off   EventBench's
    histogram                 (2, H, W) int32 counts, OFF then ON       voxel_grid   (B, H, W) float32, Zhu et al. 2019
    time_surface              (2, H, W) float32, exp(-age / tau)        density      events per square patch, int64
    activity                  (F, 3, S, S) float32, the event encoder's input

A name is a rule, not a family: the same recording's "red/blue image" differs in up to 93 % of its active pixels between
the two event_frame rules. Each rule is a pure function in the file of its family; options are its keyword arguments.
"""

from __future__ import annotations

from cascade_runtime.events.representations.registry import REPRESENTATIONS, represent

__all__ = ["REPRESENTATIONS", "represent"]
