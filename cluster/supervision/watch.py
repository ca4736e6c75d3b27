"""`Watch`: which stage is to be asked, restarted, linked again or given up. A pure state machine.

    pulses, deaths, starts, links that were made or not   --answered, died, started, wired, ..-->   Watch
    what is to be done now                                <--------------- decide(now) -----------

    up --dies, is silent, is stuck--> down --after a pause--> starting --started--> up
                                       \\--too often in a while--> lost

Times are seconds of any monotonic clock, given from outside and only compared: no jump of a wall clock is seen here. An
event of an incarnation, or of a link's epoch, that is no longer the last one is ignored.

A machine that is too busy makes all stages slow. So the more of them are silent at once, the longer each is waited for;
and one is blamed only after it was looked for a few times, which a supervisor that is itself slow has not done.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from actors.pulse import Pulse
from cascade_runtime.config import SupervisionConfig, links_between

PERIOD_S = 0.25  # from a pulse to the next question
TICK_S = 0.1  # how often `decide` is called, about
_LONGEST_BACKOFF_S = 10.0
_STEADY_S = 10.0  # what has been up for so long is started anew without a pause
_LONGEST_REWIRE_S = 5.0


@dataclass(frozen=True)
class Ping:
    """Ask this incarnation of a stage for its pulse; once more where half of the time has passed in which it may be
    silent: a call that is lost on its way is no silence of the stage's.
    """

    stage: str
    incarnation: int


@dataclass(frozen=True)
class Fell:
    """A stage is dead, hangs, or is to be started anew; this incarnation is to follow. well_at: what it was told later
    is not the cause.
    """

    stage: str
    incarnation: int
    well_at: float


@dataclass(frozen=True)
class Restart:
    """End what there is of a stage, and start it as this incarnation. noticed_at: when it was found out, or somebody
    wanted it. died: there is no process left to end.
    """

    stage: str
    incarnation: int
    reason: str
    noticed_at: float
    planned: bool = False
    died: bool = False


@dataclass(frozen=True)
class Rewire:
    """Link two neighbours under this epoch."""

    light: str
    heavy: str
    epoch: int


@dataclass(frozen=True)
class GiveUp:
    """A stage has failed too often."""

    stage: str
    reason: str


Instruction = Ping | Fell | Restart | Rewire | GiveUp


@dataclass(eq=False)
class _Stage:
    phase: Literal["up", "down", "starting", "lost"] = "up"
    incarnation: int = 0
    asked_at: float | None = None  # the question that is not answered yet
    looks: int = 0  # how often it was looked for since
    twice: bool = False  # it was asked a second time
    next_at: float = 0.0
    seen_at: float = 0.0  # it was alive then or later
    up_at: float = 0.0
    short_lives: int = 0  # in a row
    noticed_at: float = 0.0  # when it was last found to be gone
    due: float = 0.0
    reason: str = ""
    planned: bool = False
    died: bool = False
    failures: deque[float] = field(default_factory=deque)


@dataclass(eq=False)
class _Edge:
    """numbers: which replicas of their stages its ends are. step: from one of its epochs to the next."""

    numbers: tuple[int, int]
    step: int
    state: Literal["linked", "broken", "wiring"] = "linked"
    epoch: int = 0
    since: float = 0.0
    retry_at: float = 0.0
    misses: int = 0


class Watch:
    """Of `stages`; those in `levels` are linked, each replica of one with each of the next. Everything is up and linked
    at the start.
    """

    def __init__(
        self, stages: Sequence[str], levels: Sequence[Sequence[str]], config: SupervisionConfig, now: float
    ) -> None:
        self._config = config
        self._stages = {name: _Stage(next_at=now, seen_at=now, up_at=-_STEADY_S) for name in stages}
        self._edges: dict[tuple[str, str], _Edge] = {}
        for lighter, heavier in itertools.pairwise(levels):
            links = links_between(lighter, heavier)
            for (light, heavy), epoch in links.items():
                numbers = lighter.index(light), heavier.index(heavy)
                self._edges[light, heavy] = _Edge(numbers, len(links), epoch=epoch, since=now)
        self._fallen: list[Fell] = []
        self._lost: list[GiveUp] = []

    def phase(self, stage: str) -> str:
        """up, down, starting or lost."""
        return self._stages[stage].phase

    def whole(self, stage: str) -> bool:
        """Whether a stage is up, and linked to those neighbours that are."""
        return self.phase(stage) == "up" and all(
            edge.state == "linked"
            for pair, edge in self._edges.items()
            if stage in pair and all(self.phase(end) == "up" for end in pair)
        )

    def fallen(self) -> dict[str, int]:
        """Those that are not up, and the incarnation that is to follow."""
        down = {name: one for name, one in self._stages.items() if one.phase != "up"}
        return {name: one.incarnation + (one.phase != "starting") for name, one in down.items()}

    # -- events ------------------------------------------------------------------------------------------------------

    def answered(self, stage: str, incarnation: int, now: float, pulse: Pulse) -> None:
        """Its pulse has come."""
        one = self._stages[stage]
        if one.phase != "up" or one.incarnation != incarnation or one.asked_at is None:
            return
        one.seen_at, one.asked_at, one.next_at = one.asked_at, None, now + PERIOD_S
        if pulse.busy_s >= self._config.stuck_s:
            self._fail(one, stage, now, f"at one thing for {pulse.busy_s:.1f} s", well_at=now - pulse.busy_s)
            return
        for pair, edge in self._edges.items():
            if stage in pair and edge.state == "linked" and one.seen_at >= edge.since:
                light, heavy = edge.numbers
                told = pulse.downstream.get(heavy) if stage == pair[0] else pulse.upstream.get(light)
                if told != edge.epoch:
                    edge.state, edge.since = "broken", now

    def died(self, stage: str, incarnation: int, now: float, reason: str) -> None:
        """Its process is gone, or its loop."""
        one = self._stages[stage]
        if one.phase == "up" and one.incarnation == incarnation:
            self._fail(one, stage, now, reason, died=True)

    def started(self, stage: str, incarnation: int, now: float) -> None:
        """It has loaded and runs."""
        one = self._stages[stage]
        if one.phase == "starting" and one.incarnation == incarnation:
            one.phase, one.seen_at, one.next_at, one.asked_at = "up", now, now + PERIOD_S, None
            one.up_at = now

    def not_started(self, stage: str, incarnation: int, now: float, reason: str) -> None:
        """It could not be started."""
        one = self._stages[stage]
        if one.phase == "starting" and one.incarnation == incarnation:
            self._fail(one, stage, now, reason)

    def wired(self, light: str, heavy: str, epoch: int, now: float) -> None:
        """Both ends have joined the link of this epoch."""
        edge = self._edges[light, heavy]
        if edge.state == "wiring" and edge.epoch == epoch:
            edge.state, edge.since, edge.misses = "linked", now, 0

    def not_wired(self, light: str, heavy: str, epoch: int, now: float) -> None:
        """One of them has not."""
        edge = self._edges[light, heavy]
        if edge.state == "wiring" and edge.epoch == epoch:
            edge.state, edge.since, edge.misses = "broken", now, edge.misses + 1
            edge.retry_at = now + min(PERIOD_S * 2.0 ** min(edge.misses, 8), _LONGEST_REWIRE_S)

    def restart(self, stage: str, now: float) -> bool:
        """Somebody wants it started anew; whether it was up, and will be."""
        one = self._stages[stage]
        if one.phase != "up":
            return False
        self._fail(one, stage, now, "asked for", planned=True)
        return True

    # -- decisions ---------------------------------------------------------------------------------------------------

    def decide(self, now: float) -> Iterator[Instruction]:
        """What is to be done now, each thing once."""
        waits = [now - one.asked_at for one in self._stages.values() if one.asked_at is not None]
        silent_s = self._config.silent_s * max(1, sum(wait >= 0.5 * self._config.silent_s for wait in waits))
        for name, one in self._stages.items():
            if one.phase == "up" and one.asked_at is None and now >= one.next_at:
                one.asked_at, one.looks, one.twice = now, 0, False
                yield Ping(name, one.incarnation)
            elif one.phase == "up" and one.asked_at is not None:
                one.looks += 1
                if now - one.asked_at >= silent_s and one.looks * TICK_S >= 0.5 * self._config.silent_s:
                    self._fail(one, name, now, f"silent for {now - one.asked_at:.1f} s", well_at=one.asked_at)
                elif not one.twice and now - one.asked_at >= 0.5 * self._config.silent_s:
                    one.twice = True
                    yield Ping(name, one.incarnation)
        fallen, self._fallen = self._fallen, []
        yield from fallen
        for name, one in self._stages.items():
            if one.phase == "down" and now >= one.due:
                one.phase, one.incarnation = "starting", one.incarnation + 1
                yield Restart(name, one.incarnation, one.reason, one.noticed_at, one.planned, one.died)
        for (light, heavy), edge in self._edges.items():
            ends = self._stages[light], self._stages[heavy]
            alive = all(end.phase == "up" and end.seen_at >= edge.since for end in ends)
            if edge.state == "broken" and alive and now >= edge.retry_at:
                edge.state, edge.epoch = "wiring", edge.epoch + edge.step
                yield Rewire(light, heavy, edge.epoch)
        lost, self._lost = self._lost, []
        yield from lost

    def _fail(
        self,
        one: _Stage,
        name: str,
        now: float,
        reason: str,
        *,
        well_at: float | None = None,
        planned: bool = False,
        died: bool = False,
    ) -> None:
        one.reason, one.planned, one.died, one.asked_at, one.noticed_at = reason, planned, died, None, now
        for pair, edge in self._edges.items():
            if name in pair:
                edge.state, edge.since, edge.retry_at = "broken", now, now
        if planned:
            one.phase, one.due = "down", now
            self._fallen.append(Fell(name, one.incarnation + 1, -math.inf))  # nobody is the cause
            return
        self._fallen.append(Fell(name, one.incarnation + 1, now if well_at is None else well_at))
        while one.failures and one.failures[0] <= now - self._config.window_s:
            one.failures.popleft()
        if len(one.failures) >= self._config.restarts:
            one.phase = "lost"
            self._lost.append(
                GiveUp(name, f"{reason}, after {len(one.failures)} restarts in {self._config.window_s} s")
            )
            return
        steady = one.phase == "up" and now - one.up_at >= _STEADY_S
        one.short_lives = 0 if steady else one.short_lives + 1
        backoff_s = self._config.backoff_s * 2.0 ** min(one.short_lives - 1, 16) if one.short_lives else 0.0
        one.phase, one.due = "down", now + min(backoff_s, _LONGEST_BACKOFF_S)
        one.failures.append(now)
