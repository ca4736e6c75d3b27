"""`KeptFeatures`: what a tower made of the recordings that were asked about last, for the next question about them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from cascade_runtime.vision.features import VisualFeatures

Key = tuple[str, str]  # space of the tower, hash of the recording
_PATIENCE_S = 60.0  # for another thread that computes the same


class KeptFeatures:
    """At most `most_bytes` of features, those longest unused dropped first; with 0 nothing is kept. What several
    threads want at once is computed by one of them, and by each where that one fails.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.nbytes = most_bytes, 0
        self._kept: OrderedDict[Key, VisualFeatures] = OrderedDict()
        self._making: dict[Key, Future[VisualFeatures]] = {}
        self._lock = threading.Lock()

    def get(self, key: Key, make: Callable[[], VisualFeatures]) -> VisualFeatures:
        """As kept, or as made now. Raises what `make` raises."""
        if not self.most_bytes:
            return make()
        mine: Future[VisualFeatures] = Future()
        with self._lock:
            made = self._kept.get(key)
            if made is not None:
                self._kept.move_to_end(key)
                return made
            under_way = self._making.setdefault(key, mine)
        if under_way is not mine:
            with suppress(Exception):  # whatever became of the other's
                return under_way.result(_PATIENCE_S)
            return make()
        try:
            fresh = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            mine.set_exception(error)
            raise
        self._keep(key, fresh)
        mine.set_result(fresh)
        return fresh

    def _keep(self, key: Key, made: VisualFeatures) -> None:
        with self._lock:
            del self._making[key]
            self._kept[key] = made
            self.nbytes += made.data.nbytes
            while self.nbytes > self.most_bytes:
                _, oldest = self._kept.popitem(last=False)
                self.nbytes -= oldest.data.nbytes
