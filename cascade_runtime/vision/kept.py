"""`KeptFeatures`: what a tower made of the recordings that were asked about last, for the next question about them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from cascade_runtime.vision.features import VisualFeatures

Key = tuple[str, str]  # space of the tower, hash of the recording
_PATIENCE_S = 60.0  # for another thread that computes the same


class KeptFeatures:
    """At most `most_bytes` of features, those longest unused dropped first; with 0 nothing is kept. What several
    threads want at once is computed by one of them.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.nbytes = most_bytes, 0
        self._kept: OrderedDict[Key, VisualFeatures] = OrderedDict()
        self._making: dict[Key, threading.Event] = {}
        self._lock = threading.Lock()

    def get(self, key: Key, make: Callable[[], VisualFeatures]) -> VisualFeatures:
        """As kept, or as made now. Raises what `make` raises; of those who waited, one makes it then."""
        if not self.most_bytes:
            return make()
        with self._lock:
            made, under_way = self._of(key), self._making.get(key)
            if made is None and under_way is None:
                self._making[key] = threading.Event()
        if made is not None:
            return made
        if under_way is not None:
            return self.get(key, make) if under_way.wait(_PATIENCE_S) else make()
        try:
            made = make()
            self._keep(key, made)
            return made
        finally:
            with self._lock:
                self._making.pop(key).set()

    def _of(self, key: Key) -> VisualFeatures | None:
        made = self._kept.get(key)
        if made is not None:
            self._kept.move_to_end(key)
        return made

    def _keep(self, key: Key, made: VisualFeatures) -> None:
        with self._lock:
            self._kept[key] = made
            self.nbytes += made.data.nbytes
            while self.nbytes > self.most_bytes:
                _, oldest = self._kept.popitem(last=False)
                self.nbytes -= oldest.data.nbytes
