"""How long after the sensor closed a window each stage was done with it, whichever machine's clock saw it.

    packed       the edge has rendered and packed it     sent       its last batch was handed to the link
    received     the core has it whole                   checked    and has looked at it again
    started      the pipeline began                      first      with its first token
    answered     the whole answer                        arrived    and the edge has it

Times of the core are shifted by the offset between the two clocks, which the edge knows to half a round trip.
"""

from __future__ import annotations

from cascade_runtime.proto import edge_pb2

CORE_STAGES = ("received", "checked", "started", "first", "answered")


def core_ms(outcome: edge_pb2.Outcome, closed_ns: int) -> dict[str, float]:
    """Stage -> ms since closed_ns, which is of the core's clock; stages that an outcome did not reach are left out."""
    stamps = (outcome.received_ns, outcome.checked_ns, outcome.started_ns, outcome.first_ns, outcome.done_ns)
    return {stage: (stamp - closed_ns) / 1e6 for stage, stamp in zip(CORE_STAGES, stamps, strict=True) if stamp}
