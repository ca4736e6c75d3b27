"""`Quarantine`: which requests may enter a stage again after it has crashed with them inside. A pure state machine.

    first crash      everybody who was inside is suspect once, and enters again
    second           who was inside alone both times is guilty; of several, one at a time is let in again (on trial)
    crash on trial   guilty: refused from now on, wherever it stands and whoever asks again with its id
    ends well        acquitted

So a request that kills a stage fails alone, and one that was only there when somebody pulled a plug twice does not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

_CRASHES = 2
_REMEMBERED = 1024  # guilty ids


class Quarantine:
    """Of all stages of one pipeline. Requests go by their ids."""

    def __init__(self) -> None:
        self._crashes: dict[tuple[str, str], int] = {}  # of (stage, request)
        self._alone: dict[tuple[str, str], int] = {}  # those of them with nobody else inside
        self._trial: dict[str, str] = {}  # stage -> the request that is tried there
        self._guilty: OrderedDict[tuple[str, str], None] = OrderedDict()

    def crashed(self, stage: str, inside: Collection[str]) -> None:
        """The stage has died, or hung and was killed, with these requests inside."""
        tried = self._trial.pop(stage, None)
        for request in inside:
            key = stage, request
            self._crashes[key] = self._crashes.get(key, 0) + 1
            self._alone[key] = self._alone.get(key, 0) + (len(inside) == 1)
            if request == tried or self._alone[key] >= _CRASHES:
                self._guilty[key] = None
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
        return self._trial.setdefault(stage, request) == request

    def left(self, request: str) -> None:
        """It has ended, well or not: what is known of it but its guilt is forgotten."""
        for known in (self._crashes, self._alone):
            for key in [key for key in known if key[1] == request]:
                del known[key]
        for stage in [stage for stage, tried in self._trial.items() if tried == request]:
            del self._trial[stage]
