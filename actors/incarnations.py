"""`Incarnations`: which start of every stage is the present one, and which have fallen since.

    fell("heavy", 3)       what there was is dead, or hangs: number 3 is to take its place
    renewed("heavy", 3)    number 3 is there
    give_up("heavy", why)  it will not come back

Numbers are given by whoever restarts stages, and only grow: what comes twice, or too late, is no news.
"""

from __future__ import annotations

from collections.abc import Iterable


class Incarnations:
    """Of the stages of one pipeline. present: the number of each; 0 for what was there at the start."""

    def __init__(self, stages: Iterable[str]) -> None:
        self.present = dict.fromkeys(stages, 0)
        self._next = dict(self.present)  # as far as is known
        self._given_up: dict[str, str] = {}  # stage -> why

    def fell(self, stage: str, number: int) -> bool:
        """The stage is down until this incarnation of it is there. Whether it was up: what could not be started has not
        been at anything.
        """
        news = number > self._next[stage] and not self.down(stage)
        self._next[stage] = max(number, self._next[stage])
        return news

    def renewed(self, stage: str, number: int) -> bool:
        """This incarnation is there. Whether that is news."""
        news = number > self.present[stage]
        self.present[stage] = max(number, self.present[stage])
        self._next[stage] = max(number, self._next[stage])
        return news

    def down(self, *stages: str) -> bool:
        """Whether one of them has fallen and is not there again."""
        return any(self._next[stage] > self.present[stage] for stage in stages)

    def give_up(self, stage: str, why: str) -> None:
        """The stage will not come back."""
        self._given_up[stage] = why

    def given_up(self, *stages: str) -> dict[str, str]:
        """Those of them that will not come back, and why."""
        return {stage: why for stage, why in self._given_up.items() if stage in stages}
