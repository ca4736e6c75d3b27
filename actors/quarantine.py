"""`Quarantine`: which requests may enter a stage again after it has crashed with them inside. A pure state machine.

    first crash      everybody who was inside is suspect once, and enters again
    second           who was inside alone both times is guilty; of several, one at a time is let in again (on trial)
    crash on trial   guilty: refused there from now on, wherever it stands and whoever asks again with its id
    got further      than when the stage crashed before: what it has passed is not what kills, and it is as at first
    ends well        acquitted

So a request that kills a stage fails alone, and one that was only there when somebody pulled a plug twice does not,
unless it was alone both times and had got no further.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

_CRASHES = 2
_REMEMBERED = 1024  # guilty ids


class Quarantine:
    """Of all stages of one pipeline. Requests go by their ids."""

    def __init__(self) -> None:
        self._crashes: dict[tuple[str, str], int] = {}  # of (stage, request)
        self._alone: dict[tuple[str, str], int] = {}  # those of them with nobody else inside
        self._reached: dict[tuple[str, str], int] = {}  # how far it had got at the last of them
        self._trial: str | None = None  # one at a time in the whole pipeline: two could wait for each other
        self._guilty: OrderedDict[tuple[str, str], None] = OrderedDict()

    def crashed(self, stage: str, inside: Mapping[str, int]) -> None:
        """The stage has died, or hung and was killed, with these requests inside, each so many tokens far there."""
        for request, reached in inside.items():
            key = stage, request
            if reached > self._reached.get(key, reached):
                self._crashes[key] = self._alone[key] = 0
            self._reached[key] = reached
            self._crashes[key] = self._crashes.get(key, 0) + 1
            self._alone[key] = self._alone.get(key, 0) + (len(inside) == 1)
            if self._alone[key] >= _CRASHES or (request == self._trial and self._crashes[key] > _CRASHES):
                self._guilty[key] = None
                self._trial = None if request == self._trial else self._trial
        while len(self._guilty) > _REMEMBERED:
            self._guilty.popitem(last=False)

    def guilty(self, stage: str, request: str) -> bool:
        """Whether it may never enter again."""
        return (stage, request) in self._guilty

    def admits(self, stage: str, request: str) -> bool:
        """Whether it may enter now; False while it is guilty, or waits for the trial of another. Whom this lets in
        after two crashes is on trial until it has left.
        """
        if self.guilty(stage, request):
            return False
        if self._crashes.get((stage, request), 0) < _CRASHES:
            return True
        self._trial = self._trial or request
        return self._trial == request

    def left(self, request: str) -> None:
        """It has ended, well or not: what is known of it but its guilt is forgotten."""
        for known in (self._crashes, self._alone, self._reached):
            for key in [key for key in known if key[1] == request]:
                del known[key]
        self._trial = None if request == self._trial else self._trial
