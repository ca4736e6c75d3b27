"""The event branch and the adapter/verifier on emulated devices: features of the right type that hold nothing.

They take as long as their profiles say, with a part that grows with the recording's length. Every frame passes the
gate: emulated features do not disagree.
"""

from __future__ import annotations

import hashlib

import numpy as np

from cascade_runtime.config import AdapterProfile, EncoderProfile, GateConfig
from cascade_runtime.emulation.device import EmulatedDevice
from cascade_runtime.errors import InputError
from cascade_runtime.events import Events
from cascade_runtime.vision.adapter_verifier import AdapterVerifier
from cascade_runtime.vision.event_branch import EventBranch, EventView, RenderedWindow
from cascade_runtime.vision.features import VisualFeatures
from cascade_runtime.vision.gate import GateDecision, decide

SPACE = "emulated"
_EVENT_SPACE = "emulated:events"


def _features(space: str, source: str, *transforms: str) -> VisualFeatures:
    return VisualFeatures(np.zeros((1, 1, 1), np.float32), space, ("emulated", *transforms), source)


class EmulatedBranch(EventBranch):
    """Stage 1. Without `encodes` there is no event encoder in the recipe."""

    def __init__(self, profile: EncoderProfile, device: EmulatedDevice, *, encodes: bool) -> None:
        super().__init__(("emulated", {}), profile if encodes else None)
        self.profile, self.device = profile, device

    def view(self, events: Events | RenderedWindow, encode: bool = True) -> EventView:
        """Wait as long as rendering the recording and, unless told not to, encoding it would take.

        The frames hold one number, the recording's length in seconds, which is all that later stages need.
        """
        if isinstance(events, RenderedWindow):
            raise InputError("events", "frames", "events: an emulated encoder renders none")
        encode = encode and self.encoder is not None
        seconds, profile = events.duration_us / 1e6, self.profile
        wait_ms = profile.render_ms + profile.render_per_second_ms * seconds + profile.encode_ms * encode
        with self.device.busy(wait_ms / 1000):
            source = recording_hash(events)
            features = _features(_EVENT_SPACE, source, "event_encoder") if encode else None
        return EventView(np.full((1, 1, 1, 1), seconds), source, features)


class EmulatedVerifier(AdapterVerifier):
    """Stage 2: every level reads the features of one emulated tower."""

    def __init__(
        self, profile: AdapterProfile, device: EmulatedDevice, gate: GateConfig, *, levels: int, adapts: bool
    ) -> None:
        self.towers, self.adapter, self.gate = [], profile if adapts else None, gate
        self.space, self.profile, self.device, self._levels = SPACE, profile, device, levels

    @property
    def shared(self) -> tuple[bool, ...]:
        """Every level reads the same features."""
        return (True,) * self._levels

    def align(self, features: VisualFeatures) -> VisualFeatures:
        """Wait as long as adapting takes."""
        features.expect(_EVENT_SPACE, 1)
        with self.device.busy(self.profile.align_ms / 1000):
            return _features(SPACE, features.source, "adapter")

    def dense(self, frames: np.ndarray, source: str, level: int = -1) -> VisualFeatures:
        """Wait as long as the tower takes for a recording of the length that `frames` hold."""
        with self.device.busy((self.profile.dense_ms + self.profile.dense_per_second_ms * frames.item()) / 1000):
            return _features(SPACE, source, "dense")

    def counted(self, features: VisualFeatures, view: EventView, level: int = -1) -> VisualFeatures:
        """The features: an emulated recording has no events anywhere."""
        return features

    def decide(self, view: EventView, aligned: VisualFeatures, dense: VisualFeatures | None) -> GateDecision:
        """Wait as long as the gate takes; it accepts."""
        with self.device.busy(self.profile.gate_ms / 1000):
            return decide(self.gate, [1.0])


def recording_hash(events: Events) -> str:
    """A tag of a recording's events."""
    digest = hashlib.blake2b(repr((events.width, events.height, events.t_offset_us)).encode(), digest_size=8)
    for column in (events.t, events.x, events.y, events.p):
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()
