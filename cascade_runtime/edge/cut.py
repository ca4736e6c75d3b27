"""Where the work is cut between edge and core, and what the core tells an edge so that the cut fits: `Seeing`.

    raw        the events; the core renders, encodes, adapts
    frames     what the target's rule renders of them, packed without loss; the core encodes and adapts
    features   frames, and encoded and adapted features; the core has its own tower, gate and language stages left
    drafts     features, and draft tokens: the recipe's lightest stage runs on the edge (`drafter = "edge"`), ahead of
               the core within its window, and until it is no longer sure where the recipe says so (`min_confidence`).
               The core verifies what has come by `deadlines.upstream_s`, and goes on alone where nothing has (SLED)

The target's own tower may have to look at the frames whatever the gate says of the features, so they always come along.
The drafter on the edge sees aligned features; what the gate makes of them it is not told.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cascade_runtime.edge.drafter import DrafterFacts
from cascade_runtime.errors import ConfigError, InputError, RemoteError
from cascade_runtime.proto import edge_pb2

CUTS = ("raw", "frames", "features", "drafts")
VERSION = 1
CHUNK_BYTES = 128 << 10
MAX_BATCH_BYTES = 1 << 20
"""Of one message; an edge sends payloads in pieces of `CHUNK_BYTES`, so that pulses get through between them."""
MAX_WINDOW_BYTES = 64 << 20
MAX_WINDOW_EVENTS = 2_000_000
MAX_DECODED_BYTES = 64 << 20
"""Of a window's arrays once unpacked."""
_MAX_OPTIONS = 4096


@dataclass(frozen=True, kw_only=True)
class Seeing:
    """How a recipe looks at a window. counts: a stage asks where the events of each frame lie. source_space,
    target_space: of the event encoder's and the adapter's features, empty where the recipe has none.
    drafter: what may draft on the edge, where the recipe lets one.
    """

    recipe: str
    cuts: tuple[str, ...]
    rule: str
    options: dict[str, Any]
    counts: bool = False
    source_space: str = ""
    target_space: str = ""
    drafter: DrafterFacts | None = None

    def check_cut(self, cut: str) -> str:
        """The cut, if it can be made here. Raises `ConfigError`."""
        if cut not in self.cuts:
            raise ConfigError("cut", cut, f"of recipe {self.recipe}: {', '.join(self.cuts)}")
        return cut

    @property
    def options_json(self) -> str:
        """The rule's options, in one spelling."""
        return json.dumps(self.options, sort_keys=True)

    def welcome(self, *, resumed: bool) -> edge_pb2.Welcome:
        """As it is told to an edge."""
        return edge_pb2.Welcome(
            resumed=resumed,
            recipe=self.recipe,
            cuts=self.cuts,
            rule=self.rule,
            options=self.options_json,
            counts=self.counts,
            source_space=self.source_space,
            target_space=self.target_space,
            drafter=None if self.drafter is None else self.drafter.told(),
        )

    @classmethod
    def of(cls, told: edge_pb2.Welcome) -> Seeing:
        """What a core said. Raises `RemoteError`, `InputError`."""
        if not told.cuts:
            raise RemoteError("the core's welcome has no cuts")
        return cls(
            recipe=told.recipe,
            cuts=tuple(told.cuts),
            rule=told.rule,
            options=read_options(told.options),
            counts=told.counts,
            source_space=told.source_space,
            target_space=told.target_space,
            drafter=DrafterFacts.of(told.drafter) if told.HasField("drafter") else None,
        )


def read_options(text: str) -> dict[str, Any]:
    """A rule's options from JSON. Raises `InputError`."""
    try:
        options = json.loads(text) if len(text) <= _MAX_OPTIONS else None
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise InputError("options", text[:80], "a short JSON object")
    return options
