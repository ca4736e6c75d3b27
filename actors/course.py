"""`Course`: what the controller knows about one request while it runs. `Telling`: what of its answer was told."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.handles import StageHandle
from actors.target import NOTHING, Progress
from cascade_runtime.api import GenerateRequest, Piece
from cascade_runtime.config import Recipe, stage_of
from cascade_runtime.decoding.stopping import Stopper
from cascade_runtime.errors import DeadlineExceeded, StageError
from cascade_runtime.vision.event_branch import RenderedWindow

NOWHERE = "", -1


@dataclass(eq=False)
class Course:
    """One request. References are those of `StageHandle.start`.

    features: by stage, what it is admitted with, until the request ends: a stage that is started anew is told again.
    at: by stage, the replica that has it; seats: all replicas of levels that may have heard of it.
    turns: by stage, how many replicas have had it so far.
    target_at, target: the replica of the target that knows it, which incarnation of that, and its handle. progress: the
    last it said. told: by replica, which incarnation may be at it, and since when; without those that are known to be
    through with it.
    """

    request: GenerateRequest
    handle: int
    started: float
    deadline: float
    drafts: bool  # drafters take part
    first: int = 0  # the lightest level that does: not the one that edge boxes run, where none drafts for it
    features: dict[str, Any] = field(default_factory=dict)
    own: dict[int, Any] = field(default_factory=dict)  # dense features of levels with a tower of their own
    better: Any = None  # what drafters see once the gate has decided
    drafting: dict[str, tuple[StageHandle, Any]] = field(default_factory=dict)  # the drafters' admissions
    decision: Any = None  # reference of the gate's decision, or None
    seeing: dict[str, Any] = field(default_factory=dict)  # references of what encoder and adapter did when
    progress: Progress = NOTHING
    first_token_at: float = 0.0  # on the controller's clock; 0 while there is none
    at: dict[str, str] = field(default_factory=dict)
    seats: dict[str, None] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    target_at: tuple[str, int] = NOWHERE
    target: StageHandle | None = None
    admitted: bool = False  # that replica has said that it knows it
    prepared: bool = False  # encoder and adapter are through with it, as far as is known
    told: dict[str, tuple[int, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    entered: bool = False  # it has a slot
    over: bool = False  # it is being released
    cancelled: bool = False

    @property
    def waits(self) -> bool:
        """Whether it stands in line for a slot."""
        return not self.entered and not self.cancelled

    @property
    def left_s(self) -> float:
        """Seconds until the deadline. Raises when it has passed or the request was cancelled."""
        if self.cancelled:
            raise self.cancellation()
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"request {self.request.request_id}: no answer before its deadline")
        return left

    def expects(self, level: int) -> bool:
        """Whether a level is to wait for drafts."""
        return self.drafts and (level > self.first or not self.first)

    def sit(self, stage: str, member: str) -> None:
        """This replica of a stage has it from now on."""
        self.at[stage], self.turns[stage] = member, self.turns.get(stage, 0) + 1
        self.seats[member] = None

    def settled(self, stage: str) -> bool:
        """Whether it is where it is to be: it goes on, and is not on its way to another replica of the stage."""
        return self.entered and not self.over and stage in self.at and not self.moves(stage)

    def moves(self, stage: str) -> bool:
        """Whether another replica of the target still has it."""
        there = self.target_at[0]
        return bool(there) and stage_of(there) == stage and there != self.at[stage]

    def is_at(self, stage: str, member: str) -> bool:
        """Whether a replica has a place taken by it."""
        return self.at.get(stage) == member or self.target_at[0] == member

    def tell(self, present: Mapping[str, int], *stages: str) -> None:
        """The replicas of these stages that have it are told of it now, perhaps once more."""
        for member in [self.at[stage] for stage in stages]:
            if member not in self.told or self.told[member][0] != present[member]:
                self.told[member] = present[member], time.monotonic()

    def was_at(self, member: str, incarnation: int, at: float) -> bool:
        """Whether this incarnation may have been at it then."""
        told, since = self.told.get(member, (incarnation, math.inf))
        return told == incarnation and since <= at

    def made(self) -> None:
        """What encoder and adapter make for the target is there."""
        self.prepared = True
        for stage in ("encoder", "adapter"):
            self.told.pop(self.at[stage], None)

    def cancellation(self) -> StageError:
        """What whoever waits for it gets once it is cancelled."""
        return StageError("controller", self.request.request_id, "cancelled")

    def heard(self, progress: Progress) -> None:
        """The target said so much just now."""
        self.progress = progress
        if progress.tokens and not self.first_token_at:
            self.first_token_at = progress.first_token_at + time.monotonic() - progress.said_at


def lightest_of(recipe: Recipe, request: GenerateRequest) -> int:
    """The lightest level that takes part in a request."""
    if recipe.stages[0].drafter != "edge":
        return 0
    events = request.events
    return 0 if isinstance(events, RenderedWindow) and events.drafts else 1


class Telling:
    """An answer that is told piece by piece: each token once, whichever incarnation of the target says it."""

    def __init__(self, stopper: Stopper) -> None:
        self._stopper, self._detokenizer = stopper, stopper.detokenizer()
        self.seen = self._shown = 0  # tokens, characters

    def piece(self, progress: Progress) -> Piece | None:
        """What is new in it; None where nothing is."""
        if len(progress.tokens) <= self.seen:
            return None
        new, masks = progress.tokens[self.seen :], progress.masks[self.seen :]
        self.seen, last = len(progress.tokens), progress.finish_reason is not None
        text = self._stopper.text(progress.tokens) if last else self._stopper.shown(progress.tokens)
        piece = Piece(text[self._shown :], new, masks, self._detokenizer.add(new, last=last))
        self._shown = max(self._shown, len(text))
        return piece
