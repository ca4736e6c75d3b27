"""What an edge sent, looked at again before any stage sees it: `Unpacker`.

Nothing an edge says is believed: schema, dtype, shape, sensor size, time order, spaces and hashes are checked here or
by the stage that uses them, sizes before anything is unpacked. A window that fails is refused alone, by `InputError`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from google.protobuf.message import DecodeError

from cascade_runtime.edge.arrays import unpack_arrays
from cascade_runtime.edge.cut import MAX_DECODED_BYTES, MAX_WINDOW_EVENTS, Seeing, read_options
from cascade_runtime.edge.ingest import MAX_JOINED_US
from cascade_runtime.errors import InputError
from cascade_runtime.events import Events
from cascade_runtime.events.cell_counts import CELLS
from cascade_runtime.events.representations.window import WINDOW_US, render
from cascade_runtime.proto import edge_pb2
from cascade_runtime.vision.event_branch import EventView, RenderedWindow
from cascade_runtime.vision.features import VisualFeatures


def read_part(body: bytes) -> edge_pb2.WindowPart:
    """A batch's body. Raises `InputError`."""
    try:
        return edge_pb2.WindowPart.FromString(body)
    except DecodeError as error:
        raise InputError("batch.body", f"{len(body)} bytes", "a WindowPart of edge.proto") from error


class Unpacker:
    """The windows of one session, in their order. Raises `InputError` for a sensor that cannot be."""

    def __init__(self, seeing: Seeing, cut: str, width: int, height: int) -> None:
        self.seeing, self.cut = seeing, seeing.check_cut(cut)
        self.width, self.height = width, height
        self._nothing = Events([], [], [], [], width=width, height=height)
        self._end_us: int | None = None

    def window(self, parts: Sequence[edge_pb2.WindowPart]) -> Events | RenderedWindow:
        """All parts of one window as a recording."""
        last = parts[-1]
        if any(part.number != last.number for part in parts):
            raise InputError("window.parts", [part.number for part in parts], "parts of one window")
        if not 0 < last.end_us - last.begin_us <= MAX_JOINED_US:
            raise InputError("window.end_us", last.end_us - last.begin_us, f"1 to {MAX_JOINED_US} us after begin_us")
        if self._end_us is not None and last.begin_us < self._end_us:
            raise InputError("window.begin_us", last.begin_us, f"at least {self._end_us}, where the last one ended")
        self._end_us = last.end_us
        payload = last.payload if len(parts) == 1 else b"".join(part.payload for part in parts)
        return self._events(last, payload) if self.cut == "raw" else self._rendered(last, payload)

    def _events(self, part: edge_pb2.WindowPart, payload: bytes) -> Events:
        events = Events.from_ipc_bytes(payload, max(1, len(payload)))  # nothing in it larger than what was sent
        if (events.width, events.height) != (self.width, self.height):
            raise InputError("sensor", (events.width, events.height), f"{(self.width, self.height)}, as in the hello")
        if not 1 <= len(events) <= MAX_WINDOW_EVENTS:
            raise InputError("window.events", len(events), f"1 to {MAX_WINDOW_EVENTS}")
        first, last = (events.t_offset_us + int(events.t[at]) for at in (0, -1))
        if first < part.begin_us or last >= part.end_us:
            raise InputError("window.t", (first, last), f"within {part.begin_us} <= t < {part.end_us}")
        return events

    def _rendered(self, part: edge_pb2.WindowPart, payload: bytes) -> RenderedWindow:
        said = part.rendered
        arrays = unpack_arrays(payload, MAX_DECODED_BYTES)
        wanted = {"frames"} | ({"density"} if self.seeing.counts else set())
        featured = self.cut in ("features", "drafts")
        wanted |= {"features", "aligned"} if featured else set()
        if set(arrays) != wanted:
            raise InputError("window.arrays", sorted(arrays), f"{sorted(wanted)} of cut {self.cut}")
        self._check_frames(arrays["frames"])
        density = arrays.get("density")
        if density is not None:
            self._check_density(density, len(arrays["frames"]))
        counted = 1 <= said.events <= MAX_WINDOW_EVENTS and said.duration_us <= WINDOW_US
        if not counted or not 0.0 <= said.occupancy <= 1.0:
            found = (said.occupancy, said.events, said.duration_us)
            raise InputError("window.rendered", found, f"a share, events, and at most {WINDOW_US} us of them")
        features = aligned = None
        if featured:
            transforms = (self.seeing.rule, "event_encoder")
            features = _packet(arrays["features"], said.source_space, transforms, said)
            aligned = _packet(arrays["aligned"], said.target_space, (*transforms, "adapter"), said)
        view = EventView(arrays["frames"], said.source, features, density, aligned)
        options = read_options(said.options)
        drafts = self.cut == "drafts" and part.drafts
        return RenderedWindow(view, said.rule, options, said.events, said.duration_us, said.occupancy, drafts)

    def _check_frames(self, frames: np.ndarray) -> None:
        """What the rule renders of an empty window has the dtype and shape of any frame that it renders."""
        seeing = self.seeing
        like = render(self._nothing, seeing.rule, seeing.options)
        counts = {len(like), int(seeing.options.get("frames", 1))}
        cut_down = bool(seeing.options.get("tight"))
        sides = zip(frames.shape[1:], like.shape[1:], strict=False)
        fits = frames.ndim == like.ndim and all(have == want or (cut_down and have < want) for have, want in sides)
        if not fits or frames.dtype != like.dtype or len(frames) not in counts:
            found, wanted = (frames.shape, frames.dtype.name), (sorted(counts), like.shape[1:], like.dtype.name)
            raise InputError("window.frames", found, f"{wanted}, what {seeing.rule} renders")
        if frames.dtype.kind == "f" and not bool(np.isfinite(frames).all()):
            raise InputError("window.frames", "NaN or infinity", "finite numbers")

    @staticmethod
    def _check_density(density: np.ndarray, frames: int) -> None:
        if density.shape != (frames, CELLS, CELLS) or density.dtype != np.float32:
            found = (density.shape, density.dtype.name)
            raise InputError("window.density", found, f"({frames}, {CELLS}, {CELLS}) float32")
        if not bool((np.isfinite(density) & (density >= 0)).all()):
            raise InputError("window.density", "a count below 0, or none", "counts of events")


def _packet(data: np.ndarray, space: str, transforms: tuple[str, ...], said: edge_pb2.Rendered) -> VisualFeatures:
    if data.dtype.kind == "f" and not bool(np.isfinite(data).all()):
        raise InputError("window.features", "NaN or infinity", "finite numbers")
    bits = data.dtype == np.uint16
    return VisualFeatures(data, space, transforms, said.source, bfloat16=bits, occupancy=said.occupancy)
