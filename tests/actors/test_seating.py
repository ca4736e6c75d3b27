"""Which replica has which request, whatever falls, comes back, enters and ends, in whatever order."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.course import Course
from actors.incarnations import Incarnations
from actors.seating import Seating
from cascade_runtime.api import GenerateRequest
from cascade_runtime.config import Recipe, recipe_from_dict
from cascade_runtime.events import Events

STEPS = ("enter", "end", "fall", "return", "spread", "arrive")


def recipe_of(light: int, heavy: int, slots: int) -> Recipe:
    counts = {"light": light, "heavy": heavy}
    return recipe_from_dict(
        {
            "cascade": {"name": "t", "levels": list(counts), "num_draft_tokens": [4], "slots": slots},
            "stages": {name: {"checkpoint": "family:light", "replicas": count} for name, count in counts.items()},
        }
    )


class World:
    """A seating, and the courses inside."""

    def __init__(self, light: int, heavy: int, slots: int) -> None:
        self.recipe = recipe_of(light, heavy, slots)
        self.members = self.recipe.members
        self.incarnations = Incarnations([member for each in self.members.values() for member in each])
        self.inside: dict[str, Course] = {}
        self.seating = Seating(self.recipe, self.incarnations, self.inside)
        self.numbers = itertools.count()

    def enter(self) -> Course:
        number = next(self.numbers)
        request = GenerateRequest(events=EVENTS, question="?", request_id=f"r{number}")
        course = self.inside[f"r{number}"] = Course(request, number, 0.0, 1e9, drafts=True)
        course.entered = True
        self.seating.take(course, *self.members)
        return course

    def load(self, member: str) -> int:
        return sum(member in course.at.values() for course in self.inside.values())


EVENTS = Events([0], [0], [0], [0], width=2, height=2)


def test_requests_spread_over_what_is_there_and_no_further_than_there_is_room() -> None:
    world = World(light=3, heavy=2, slots=4)
    courses = [world.enter() for _ in range(4)]
    assert [course.at["heavy"] for course in courses] == ["heavy", "heavy.2", "heavy", "heavy.2"]
    assert [course.at["light"] for course in courses] == ["light", "light.2", "light.3", "light"]
    world.incarnations.fell("heavy.2", 1)
    assert not world.seating.take(courses[1], "heavy") and courses[1].at["heavy"] == "heavy.2"  # the other is full
    del world.inside["r0"]
    assert world.seating.take(courses[1], "heavy") and courses[1].at["heavy"] == "heavy"
    assert courses[1].seats.keys() >= {"heavy", "heavy.2"}  # both may know of it, and are told when it ends


def test_whom_a_stage_speaks_with_goes_by_who_has_the_request() -> None:
    world = World(light=3, heavy=2, slots=6)
    routes = [
        [world.seating.route(course, level)[:2] for level in (0, 1)] for course in (world.enter() for _ in range(4))
    ]
    assert routes == [
        [(0, 0), (0, 0)],
        [(0, 1), (1, 0)],
        [(0, 0), (2, 0)],
        [(0, 1), (0, 0)],
    ]


def test_only_what_is_uneven_by_much_is_evened_out() -> None:
    world = World(light=1, heavy=2, slots=12)
    world.incarnations.fell("heavy.2", 1)
    courses = [world.enter() for _ in range(6)]
    for course in courses:
        course.target_at = "heavy", 0
    assert world.seating.spread("heavy") == []
    world.incarnations.renewed("heavy.2", 1)
    moved = world.seating.spread("heavy")
    assert len(moved) == 3 and {former for _, former in moved} == {"heavy"}
    assert all(course.moves("heavy") and course.at["heavy"] == "heavy.2" for course, _ in moved)
    assert world.seating.spread("heavy") == []
    for course in [course for course, _ in moved][:1]:
        del world.inside[course.request.request_id]
    assert world.seating.spread("heavy") == []  # 3 and 2


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 9),
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1000)), max_size=60),
)
def test_every_request_has_a_place_that_is_there_wherever_there_is_one(
    light: int, heavy: int, slots: int, steps: list[tuple[str, int]]
) -> None:
    world, fallen = World(light, heavy, slots), dict[str, int]()
    levels = [*world.members["light"], *world.members["heavy"]]
    room = {name: -(-slots // len(world.members[name])) for name in ("light", "heavy")}
    for step, draw in steps:
        member = levels[draw % len(levels)]
        stage = member.partition(".")[0]
        courses = list(world.inside.values())
        if step == "enter" and len(courses) < slots:
            world.enter()
        elif step == "end" and courses:
            del world.inside[courses[draw % len(courses)].request.request_id]
        elif step == "fall" and not world.incarnations.down(member):
            fallen[member] = fallen.get(member, 0) + 1
            world.incarnations.fell(member, fallen[member])
            for course in world.seating.leave(member, stage):
                assert course.at[stage] != member and not world.incarnations.down(course.at[stage])
        elif step == "return" and world.incarnations.down(member):
            world.incarnations.renewed(member, fallen[member])
        elif step == "spread":
            before = [world.load(each) for each in world.members[stage]]
            moved = world.seating.spread(stage)
            after = [world.load(each) for each in world.members[stage]]
            assert sum(after) == sum(before) and max(after) <= max(before)
            assert not moved or max(after) - min(after) < max(before) - min(before)
        elif step == "arrive":
            for course in courses:
                served = world.seating.take(course, "heavy")
                assert served == (not world.incarnations.down(course.at["heavy"]))
                if served:
                    course.target_at = course.at["heavy"], 0
        for stage, most in room.items():
            there = [each for each in world.members[stage] if not world.incarnations.down(each)]
            if len(there) == len(world.members[stage]):
                assert all(world.load(each) <= most for each in there) or len(there) == 1
            for course in world.inside.values():
                assert course.at[stage] in world.members[stage] and course.at[stage] in course.seats
