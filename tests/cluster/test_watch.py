"""The supervisor's decisions, whatever happens in whatever order: no stage twice, none too often, none for ever."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.pulse import Pulse
from cascade_runtime.config import SupervisionConfig, links_between
from cluster.chaos.plan import draw_faults
from cluster.supervision.watch import PERIOD_S, TICK_S, Fell, GiveUp, Ping, Restart, Rewire, Watch

LEVELS = ("light", "mid", "heavy")
SINGLE = [(level,) for level in LEVELS]
REPLICAS = [("light",), ("mid", "mid.2"), ("heavy", "heavy.2", "heavy.3")]
STAGES = ("encoder", "adapter", *LEVELS, "controller")
CONFIG = SupervisionConfig(restarts=3, window_s=60.0, backoff_s=0.5, silent_s=2.0, stuck_s=20.0)


def links_of(levels: Sequence[Sequence[str]]) -> dict[tuple[str, str], int]:
    """All of them at the start, and their epochs."""
    return {
        pair: epoch for ends in itertools.pairwise(levels) for pair, epoch in links_between(ends[0], ends[1]).items()
    }


class World:
    """Stages as the watch should see them, and a clock. It does at once, or never, what the watch asks for."""

    def __init__(self, config: SupervisionConfig = CONFIG, levels: Sequence[Sequence[str]] = SINGLE) -> None:
        self.now = 100.0
        stages = ("encoder", "adapter", *itertools.chain(*levels), "controller")
        self.watch = Watch(stages, levels, config, self.now)
        self.config = config
        self.silent: set[str] = set()
        self.stillborn: set[str] = set()
        self.unlinkable = False
        self.incarnation = dict.fromkeys(stages, 0)
        self.number = {member: number for members in levels for number, member in enumerate(members)}
        self.links: dict[tuple[str, str], int | None] = {**links_of(levels)}
        self.said: list[object] = []
        self.restarts: list[tuple[float, Restart]] = []

    def pulse(self, stage: str) -> Pulse:
        linked = {pair: epoch for pair, epoch in self.links.items() if epoch is not None}
        up = {self.number[light]: epoch for (light, heavy), epoch in linked.items() if heavy == stage}
        down = {self.number[heavy]: epoch for (light, heavy), epoch in linked.items() if light == stage}
        return Pulse("here", 1, upstream=up, downstream=down)

    def kill(self, stage: str) -> None:
        for pair in self.links:
            if stage in pair:
                self.links[pair] = None
        self.watch.died(stage, self.incarnation[stage], self.now, "killed")

    def tick(self, seconds: float = TICK_S) -> None:
        self.now += seconds
        for order in list(self.watch.decide(self.now)):
            self.said.append(order)
            if isinstance(order, Ping):
                assert order.incarnation == self.incarnation[order.stage]
                if order.stage not in self.silent:
                    self.watch.answered(order.stage, order.incarnation, self.now, self.pulse(order.stage))
            elif isinstance(order, Restart):
                assert order.incarnation == self.incarnation[order.stage] + 1
                self.restarts.append((self.now, order))
                self.incarnation[order.stage] += 1
                self.silent.discard(order.stage)
                for pair in self.links:
                    if order.stage in pair:
                        self.links[pair] = None
                if order.stage in self.stillborn:
                    self.watch.not_started(order.stage, order.incarnation, self.now, "stillborn")
                else:
                    self.watch.started(order.stage, order.incarnation, self.now)
            elif isinstance(order, Rewire):
                assert self.watch.phase(order.light) == self.watch.phase(order.heavy) == "up"
                if self.unlinkable:
                    self.watch.not_wired(order.light, order.heavy, order.epoch, self.now)
                else:
                    assert order.epoch > (self.links[order.light, order.heavy] or 0)
                    self.links[order.light, order.heavy] = order.epoch
                    self.watch.wired(order.light, order.heavy, order.epoch, self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.tick()

    def heard(self, kind: type) -> list[object]:
        return [order for order in self.said if isinstance(order, kind)]


def test_a_sound_pipeline_is_only_asked_for_its_pulse() -> None:
    world = World()
    world.run(10)
    assert {type(order) for order in world.said} == {Ping}
    asked = [order.stage for order in world.heard(Ping)]  # type: ignore[attr-defined]
    assert all(asked.count(stage) >= 0.8 * 10 / (PERIOD_S + TICK_S) for stage in STAGES)


def test_the_dead_is_restarted_at_once_and_linked_to_both_sides() -> None:
    world = World()
    world.run(1)
    world.kill("mid")
    killed_at = world.now
    assert not world.watch.whole("mid")
    world.run(1)
    assert [order.stage for _, order in world.restarts] == ["mid"] and world.restarts[0][1].died
    assert world.heard(Fell) == [Fell("mid", 1, killed_at)]
    assert world.said.index(Fell("mid", 1, killed_at)) < world.said.index(world.restarts[0][1])
    assert world.links == {("light", "mid"): 1, ("mid", "heavy"): 1}
    assert all(world.watch.whole(stage) for stage in STAGES)


def test_a_silent_stage_is_restarted_after_its_time_and_no_sooner() -> None:
    world = World()
    world.run(1)
    world.silent.add("heavy")
    since = world.now
    world.run(4)
    ((at, order),) = world.restarts
    assert order.stage == "heavy" and not order.died and "silent" in order.reason
    assert CONFIG.silent_s <= at - since <= CONFIG.silent_s + PERIOD_S + 3 * TICK_S
    (fell,) = world.heard(Fell)
    assert since <= fell.well_at <= since + PERIOD_S + TICK_S  # type: ignore[attr-defined]  when it was last asked
    assert world.said.index(fell) < world.said.index(order)


def test_who_does_not_answer_is_asked_once_more_before_it_is_blamed() -> None:
    world = World()
    world.run(1)
    world.silent.add("heavy")
    asked = len(world.heard(Ping))
    lost_at = world.now
    while world.now < lost_at + 0.5 * CONFIG.silent_s + PERIOD_S + 2 * TICK_S:
        world.tick()
    again = [order for order in world.heard(Ping)[asked:] if order.stage == "heavy"]  # type: ignore[attr-defined]
    assert len(again) == 2 and not world.restarts
    world.silent.discard("heavy")
    world.watch.answered("heavy", 0, world.now, world.pulse("heavy"))  # the second call was not lost
    world.run(2 * CONFIG.silent_s)
    assert not world.restarts and world.watch.whole("heavy")


def test_the_more_are_silent_the_longer_each_is_waited_for_and_a_late_look_blames_nobody() -> None:
    world = World()
    world.run(1)
    world.silent |= set(STAGES)
    world.run(CONFIG.silent_s * 5)
    assert not world.restarts
    world.run(CONFIG.silent_s * 2)
    assert {order.stage for _, order in world.restarts} == set(STAGES)
    sleepy = World()
    sleepy.run(1)
    sleepy.silent.add("mid")
    sleepy.tick()
    sleepy.tick(30.0)  # the machine, or the supervisor itself, stood still
    assert not sleepy.restarts


def test_a_loop_that_is_stuck_is_restarted_though_it_answers() -> None:
    world = World()
    world.run(1)
    healthy = world.pulse
    world.pulse = lambda stage: Pulse("here", 1, busy_s=25.0) if stage == "encoder" else healthy(stage)  # type: ignore[method-assign]
    world.run(1)
    at, order = world.restarts[0]
    assert order.stage == "encoder" and "at one thing" in order.reason
    assert world.heard(Fell)[0].well_at <= at - 25.0 + TICK_S  # type: ignore[attr-defined]


def test_a_link_that_broke_between_the_living_is_made_again() -> None:
    world = World()
    world.run(1)
    world.links["light", "mid"] = None
    world.run(1)
    assert world.heard(Rewire) == [Rewire("light", "mid", 1)] and not world.restarts


def test_links_that_cannot_be_made_are_tried_less_and_less_often() -> None:
    world = World()
    world.unlinkable = True
    world.links["light", "mid"] = None
    world.run(60)
    assert 8 <= len(world.heard(Rewire)) <= 22
    world.unlinkable = False
    world.run(6)
    assert world.watch.whole("mid")


def test_who_fails_too_often_is_given_up_once_with_growing_pauses_before() -> None:
    world = World()
    world.stillborn.add("heavy")
    world.kill("heavy")
    world.run(120)
    assert len(world.restarts) == CONFIG.restarts
    first, second, third = (at for at, _ in world.restarts)
    assert second - first >= CONFIG.backoff_s and third - second >= 2 * CONFIG.backoff_s
    (given_up,) = world.heard(GiveUp)
    assert given_up.stage == "heavy" and "stillborn, after 3 restarts" in given_up.reason  # type: ignore[attr-defined]
    assert world.watch.phase("heavy") == "lost" and world.watch.phase("mid") == "up"


def test_only_what_has_not_lived_for_long_is_paused_before() -> None:
    world = World()
    deaths, starts = [], []
    for lived_s in (1.0, 12.0, 1.0):
        world.run(lived_s)
        deaths.append(world.now)
        world.kill("mid")
        world.run(3)
        starts.append(world.restarts[-1][0])
    pauses = [start - death for death, start in zip(deaths, starts, strict=True)]
    soon = PERIOD_S + TICK_S
    assert pauses[0] < soon and pauses[1] < soon < CONFIG.backoff_s <= pauses[2]


def test_planned_restarts_are_not_counted_and_need_a_stage_that_is_up() -> None:
    world = World()
    for _ in range(3 * CONFIG.restarts):
        assert world.watch.restart("mid", world.now)
        assert not world.watch.restart("mid", world.now)
        world.run(1)
    assert all(order.planned for _, order in world.restarts) and len(world.restarts) == 3 * CONFIG.restarts
    assert not world.heard(GiveUp)


def test_news_of_an_earlier_incarnation_or_epoch_changes_nothing() -> None:
    world = World()
    world.run(1)
    world.kill("mid")
    world.run(1)
    before = list(world.restarts)
    world.watch.died("mid", 0, world.now, "long ago")
    world.watch.not_started("mid", 0, world.now, "long ago")
    world.watch.not_wired("light", "mid", 0, world.now)
    world.watch.answered("mid", 0, world.now, Pulse("here", 1, busy_s=99.0))
    world.run(1)
    assert world.restarts == before and all(world.watch.whole(stage) for stage in STAGES)


def test_every_replica_is_linked_to_every_one_next_door_under_epochs_of_their_own() -> None:
    world = World(levels=REPLICAS)
    world.run(1)
    world.kill("mid.2")
    world.run(1)
    assert [order.stage for _, order in world.restarts] == ["mid.2"]
    assert world.links == {
        ("light", "mid"): 0,
        ("light", "mid.2"): 1 + 2,
        ("mid", "heavy"): 0,
        ("mid", "heavy.2"): 1,
        ("mid", "heavy.3"): 2,
        ("mid.2", "heavy"): 3 + 6,
        ("mid.2", "heavy.2"): 4 + 6,
        ("mid.2", "heavy.3"): 5 + 6,
    }
    assert len(world.heard(Rewire)) == 4 and all(world.watch.whole(stage) for stage in world.incarnation)


WHATEVER = ["run", "run", "kill", "hang", "wake", "unlink", "still", "heal", "plan", "stale", "blocked"]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([SINGLE, REPLICAS]),
    st.lists(st.tuples(st.sampled_from(WHATEVER), st.integers(0, 1000), st.floats(0.05, 12.0)), max_size=25),
)
def test_whatever_happens_everything_is_whole_again_or_given_up(
    levels: Sequence[Sequence[str]], events: list[tuple[str, int, float]]
) -> None:
    world = World(levels=levels)
    stages = list(world.incarnation)

    def unlink(stage: str) -> None:
        for pair in world.links:
            if stage in pair:
                world.links[pair] = None

    acts: dict[str, Callable[[str], object]] = {
        "kill": world.kill,
        "hang": world.silent.add,
        "wake": world.silent.discard,
        "unlink": unlink,
        "still": world.stillborn.add,
        "heal": world.stillborn.discard,
        "plan": lambda stage: world.watch.restart(stage, world.now),
        "stale": lambda stage: world.watch.died(stage, world.incarnation[stage] - 1, world.now, "stale"),
        "blocked": lambda stage: setattr(world, "unlinkable", not world.unlinkable),
    }
    for what, number, seconds in events:
        if what == "run":
            world.run(seconds)
        else:
            acts[what](stages[number % len(stages)])
    world.silent.clear()
    world.stillborn.clear()
    world.unlinkable = False
    world.run(45)
    lost = {order.stage for order in world.heard(GiveUp)}  # type: ignore[attr-defined]
    assert all(world.watch.whole(stage) for stage in stages if stage not in lost)
    assert all(world.watch.phase(stage) == "lost" for stage in lost)
    assert len(world.heard(GiveUp)) == len(lost)
    for stage in stages:
        failed = [at for at, order in world.restarts if order.stage == stage and not order.planned]
        for at in failed:
            assert sum(at - CONFIG.window_s < each <= at for each in failed) <= CONFIG.restarts
    for (light, heavy), epoch in world.links.items():
        if not lost & {light, heavy}:
            made = [order for order in world.heard(Rewire) if isinstance(order, Rewire)]
            assert epoch == max(
                (order.epoch for order in made if (order.light, order.heavy) == (light, heavy)),
                default=links_of(levels)[light, heavy],
            )


@given(st.integers(0, 2**32), st.floats(10.0, 600.0))
@settings(max_examples=20, deadline=None)
def test_faults_are_a_function_of_their_seed_and_spare_nobody(seed: int, seconds: float) -> None:
    drawn = draw_faults(seed, seconds, STAGES[:5], ("kill", "hang"), 2.0)
    assert drawn == draw_faults(seed, seconds, STAGES[:5], ("kill", "hang"), 2.0)
    assert all(2.0 <= fault.at_s <= seconds - 2.0 for fault in drawn)
    for kind in ("kill", "hang"):
        counts = [sum((fault.kind, fault.stage) == (kind, stage) for fault in drawn) for stage in STAGES[:5]]
        assert max(counts) - min(counts) <= 1


def test_an_unknown_fault_is_refused() -> None:
    from cascade_runtime.errors import ConfigError

    with pytest.raises(ConfigError, match="meteor"):
        draw_faults(0, 60.0, STAGES, ("meteor",), 5.0)
