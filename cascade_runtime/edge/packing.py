"""A window as what crosses to the core: `RawPacker`, `FramePacker`. The other cuts need `feature_packing.py`.

A packer knows nothing of links; `bodies_of` cuts what it gives into batches. Needs no torch.
"""

from __future__ import annotations

import time
import zlib
from typing import Protocol

from cascade_runtime.edge.arrays import pack_arrays
from cascade_runtime.edge.cut import MAX_WINDOW_BYTES, Seeing
from cascade_runtime.edge.ingest import Window
from cascade_runtime.errors import InputError
from cascade_runtime.events import Events
from cascade_runtime.events.cell_counts import cell_counts
from cascade_runtime.events.facts import patch_occupancy
from cascade_runtime.events.representations.window import frame_numbers, render, seen_window, source_hash
from cascade_runtime.proto import edge_pb2


class Packer(Protocol):
    """One cut."""

    def pack(self, window: Window) -> edge_pb2.WindowPart:
        """All of a window that holds events."""
        ...


class RawPacker:
    """The events."""

    def pack(self, window: Window) -> edge_pb2.WindowPart:
        """An Arrow batch of the window's events."""
        return part_of(window, compact(window.events).to_ipc_bytes())


class FramePacker:
    """What the target's rule makes of the events: exactly the frames that the core would render."""

    def __init__(self, seeing: Seeing) -> None:
        self.seeing = seeing

    def pack(self, window: Window) -> edge_pb2.WindowPart:
        """The frames and, where a stage asks, where their events lie."""
        seen, seeing = seen_window(window.events), self.seeing
        frames = render(seen, seeing.rule, seeing.options)
        arrays = {"frames": frames}
        if seeing.counts:
            arrays["density"] = cell_counts(seen, frame_numbers(seen, seeing.rule, seeing.options), len(frames))
        part = part_of(window, pack_arrays(arrays))
        part.rendered.CopyFrom(rendered(seeing, seen, source_hash(frames)))
        return part


def compact(events: Events) -> Events:
    """The same events in memory of their own: a slice would take its neighbours along."""
    t, x, y, p = (column.copy() for column in (events.t, events.x, events.y, events.p))
    return Events(t, x, y, p, width=events.width, height=events.height, t_offset_us=events.t_offset_us)


def part_of(window: Window, payload: bytes) -> edge_pb2.WindowPart:
    """A payload with what every cut says of its window."""
    return edge_pb2.WindowPart(
        number=window.number,
        last=True,
        begin_us=window.begin_us,
        end_us=window.end_us,
        closed_ns=window.closed_ns,
        packed_ns=time.monotonic_ns(),
        payload=payload,
    )


def bodies_of(whole: edge_pb2.WindowPart, chunk_bytes: int) -> list[bytes]:
    """A window as the bodies of as many batches as its payload needs; the last one says all there is to say of it.

    Raises `InputError` for a window that no core takes.
    """
    payload = whole.payload
    if len(payload) > MAX_WINDOW_BYTES:
        raise InputError(
            "window", f"{len(payload)} bytes", f"at most {MAX_WINDOW_BYTES}: shorter windows, fewer events"
        )
    starts = range(0, max(1, len(payload)), chunk_bytes)
    bodies = [
        edge_pb2.WindowPart(number=whole.number, payload=payload[start : start + chunk_bytes]).SerializeToString()
        for start in starts[:-1]
    ]
    whole.payload = payload[starts[-1] :]
    return [*bodies, whole.SerializeToString()]


def rendered(seeing: Seeing, seen: Events, source: str) -> edge_pb2.Rendered:
    """What is said of frames rendered from the events that were looked at."""
    return edge_pb2.Rendered(
        rule=seeing.rule,
        options=seeing.options_json,
        source=source,
        events=len(seen),
        duration_us=seen.duration_us,
        occupancy=patch_occupancy(seen),
    )


def checksum(seq: int, body: bytes) -> int:
    """CRC-32 of a batch: its number is part of it, so that one cannot pass for another."""
    return zlib.crc32(body, zlib.crc32(seq.to_bytes(8, "little")))
