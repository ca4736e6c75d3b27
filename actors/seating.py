"""`Seating`: which replica of every stage has which request.

    take(course, "mid")      the replica that it has while that is there, else the emptiest that is and has room
    spread("mid")            requests that move, where one replica has at least twice as many as another, and two more

A replica of a level has a part of the cascade's slots; one of encoder or adapter takes what comes. Requests are counted
where they have a place: at the target also where they still are while they move. What a move costs, feeding a prompt
and what is confirmed once more, is paid where it evens out much. Guarded by the controller's lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from actors.course import Course
from actors.incarnations import Incarnations
from actors.rows import Route
from cascade_runtime.config import Recipe

_MANY_TIMES = 2


class Seating:
    """Of one pipeline. inside: its requests, by id."""

    def __init__(self, recipe: Recipe, incarnations: Incarnations, inside: Mapping[str, Course]) -> None:
        self.members = recipe.members
        self._levels = recipe.cascade.levels
        self._room = {name: recipe.share_of(index).cascade.slots for index, name in enumerate(self._levels)}
        self._incarnations, self._inside = incarnations, inside

    def take(self, course: Course, *stages: str) -> bool:
        """Give a request a replica of each of these stages, where what it has is not there. Whether all are there and
        have room for it.
        """
        served = [self._take(course, stage) for stage in stages]  # each of them takes one
        return all(served)

    def spread(self, stage: str) -> list[tuple[Course, str]]:
        """Even out a stage: who moves, and from where. Those that were told least move."""
        moved: list[tuple[Course, str]] = []
        there = [member for member in self.members[stage] if not self._incarnations.down(member)]
        if len(there) < 2:
            return moved
        going = [course for course in _entered(self._inside) if not course.over]
        count = {member: sum(course.at.get(stage) == member for course in going) for member in there}
        few, many = min(there, key=count.__getitem__), max(there, key=count.__getitem__)
        if count[many] < _MANY_TIMES * count[few] + 2:
            return moved
        while count[many] > count[few] + 1 and self._has_room(None, stage, few):
            movable = [course for course in going if course.settled(stage) and course.at[stage] == many]
            if not movable:  # they are on their way there
                break
            course = min(movable, key=lambda each: len(each.progress.tokens))
            course.sit(stage, few)
            moved.append((course, many))
            count[many], count[few] = count[many] - 1, count[few] + 1
            few, many = min(there, key=count.__getitem__), max(there, key=count.__getitem__)
        return moved

    def leave(self, member: str, stage: str) -> list[Course]:
        """This replica is down: its requests take others, as far as there are any. Those that do."""
        here = [course for course in self._inside.values() if course.settled(stage) and course.at[stage] == member]
        for course in here:
            self._take(course, stage)
        return [course for course in here if course.at[stage] != member]

    def route(self, course: Course, level: int) -> Route:
        """Which replicas of its neighbours the level is to speak with."""

        def number(of: int) -> tuple[int, int]:
            name = self._levels[of] if 0 <= of < len(self._levels) else ""
            return (self.members[name].index(course.at[name]), course.turns[name]) if name in course.at else (0, 0)

        (upstream, upstream_turn), (_, turn), (downstream, downstream_turn) = map(number, (level - 1, level, level + 1))
        return Route(upstream, downstream, turn, upstream_turn, downstream_turn)

    def _take(self, course: Course, stage: str) -> bool:
        members, has = self.members[stage], course.at.get(stage)
        if has is None or (len(members) > 1 and not self._serves(course, stage, has)):
            there = [member for member in members if self._serves(course, stage, member)]
            if there or has is None:
                has = min(there or members, key=lambda member: self._load(course, stage, member))
                course.sit(stage, has)
        return self._serves(course, stage, has)

    def _serves(self, course: Course, stage: str, member: str) -> bool:
        return not self._incarnations.down(member) and self._has_room(course, stage, member)

    def _has_room(self, course: Course | None, stage: str, member: str) -> bool:
        return stage not in self._room or self._load(course, stage, member) < self._room[stage]

    def _load(self, but: Course | None, stage: str, member: str) -> int:
        return sum(course is not but and course.is_at(stage, member) for course in _entered(self._inside))


def _entered(inside: Mapping[str, Course]) -> Iterable[Course]:
    return (course for course in inside.values() if course.entered)
