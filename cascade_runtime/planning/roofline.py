"""`RooflineCost`: what a pass should take by the device's data sheet, as the `StepCost` that schedulers are given.

    seconds = layers x host time + max(bytes read / bandwidth, operations / FLOPS)

A pass reads the weights once and the KV of every position held; a token computes two operations per number and, per
position, four per attention channel (Kaplan et al. 2020, appendix B; Williams et al. 2009 for the roofline).

Devices over which layers are split work one after the other: a pass takes as long as on one that were large enough, and
for each crossing, between devices and back to the first, `CROSSING_S` and the states of its tokens over PCIe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cascade_runtime.planning.cluster import Cluster, Kind
from cascade_runtime.planning.model_size import ModelSize
from cascade_runtime.scheduling.cost import StepCost

BYTES = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5625}
"""Per number; int4 with a 16-bit scale for each group of 32."""
CROSSING_S = 2e-5
"""Of a copy between two devices of a node, before its bytes: assumed, not measured."""


@dataclass(frozen=True)
class RooflineCost(StepCost):
    """The linear coefficients are those of the memory side, with `host_s` in `base`. compute_s: per token;
    attention_s: per token and position.
    """

    host_s: float = 0.0
    compute_s: float = 0.0
    attention_s: float = 0.0

    def seconds(self, rows: float, tokens: float, context: float = 0.0) -> float:
        """What a pass over so many rows, tokens and held positions takes."""
        memory = super().seconds(rows, tokens, context) - self.host_s
        compute = tokens * (self.compute_s + self.attention_s * context / max(rows, 1.0))
        return self.host_s + max(memory, compute)


def roofline(size: ModelSize, kind: Kind, dtype: str, devices: int = 1) -> RooflineCost:
    """A pass of a language model of that size on a device of that kind, or split over several."""
    bandwidth, flops = kind.bandwidth_gb_s * 1e9 * kind.bandwidth_share, kind.flops(dtype)
    read = size.language - size.idle
    crossings = devices if devices > 1 else 0
    host = size.layers * kind.layer_us * 1e-6 + crossings * CROSSING_S
    moved = crossings * size.hidden * kv_bytes(dtype) / (kind.pcie_gb_s * 1e9)
    return RooflineCost(
        base=host + read * BYTES[dtype] / bandwidth,
        per_token=moved,
        per_position=size.kv * kv_bytes(dtype) / bandwidth,
        host_s=host,
        compute_s=2 * read / flops + moved,
        attention_s=4 * size.attention / flops,
    )


def cost_of(cluster: Cluster, stage: str, size: ModelSize, kind: Kind, dtype: str, devices: int = 1) -> StepCost:
    """As measured where the cluster file says so, else by the roofline. What does not fit one device was measured on
    several.
    """
    for profile in cluster.profiles:
        if (profile.stage, profile.kind) == (stage, kind.name):
            ms = profile.base_ms, profile.per_row_ms, profile.per_token_ms, 1e-3 * profile.per_position_us
            return StepCost(*(1e-3 * each for each in (*ms, profile.several_ms)))
    return roofline(size, kind, dtype, devices)


def vision_s(size: ModelSize, kind: Kind, dtype: str, frames: int) -> float:
    """A tower, event encoder or adapter over the frames of one request."""
    flops = 2.0 * size.vision * max(size.positions, 1) * frames
    return max(flops / kind.flops(dtype), size.vision * BYTES[dtype] / (kind.bandwidth_gb_s * 1e9))


def kv_bytes(dtype: str) -> float:
    """Per number of a KV slot: weights may be quantised, what is held of a request is not."""
    return BYTES["bfloat16"] if dtype in ("int8", "int4") else BYTES[dtype]


def slowed(cost: StepCost, by: float) -> StepCost:
    """The same pass on a device that others use, too: everything takes `by` times as long."""
    scaled = replace(crowded(cost, by), base=by * cost.base, several=by * cost.several)
    return replace(scaled, host_s=by * scaled.host_s) if isinstance(scaled, RooflineCost) else scaled


def crowded(cost: StepCost, by: float) -> StepCost:
    """The same pass with `by` times as much of everything in it: rows, tokens and positions."""
    scaled = replace(
        cost, per_row=by * cost.per_row, per_token=by * cost.per_token, per_position=by * cost.per_position
    )
    if isinstance(scaled, RooflineCost):
        return replace(scaled, compute_s=by * scaled.compute_s, attention_s=by * scaled.attention_s)
    return scaled
