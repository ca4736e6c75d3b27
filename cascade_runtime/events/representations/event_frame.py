"""Red/blue event pictures: white where nothing happened, red ON, blue OFF. Two rules for pixels that saw both.

last_wins     the latest event colours the pixel: EventGPT (common/common.py generate_event_image), bit-equal to its
per-event loop on_over_off   any ON event beats every OFF event: EventBench and EventFlash (dataset/data_processor.py)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.events.array import Events
from cascade_runtime.events.representations.pixels import pixel_numbers

_NOTHING, _OFF, _ON = 0, 1, 2


def last_wins(events: Events, *, tight: bool = False) -> NDArray[np.uint8]:
    """(H, W, 3) uint8. tight: size the picture by the largest x and y, as EventGPT does, not by the sensor."""
    labels = np.zeros(events.height * events.width, np.uint8)
    labels[pixel_numbers(events)] = events.p + np.uint8(1)  # numpy assigns repeated indices in order
    picture = _paint(labels, events)
    if not tight or not len(events):
        return picture
    return np.ascontiguousarray(picture[: int(events.y.max()) + 1, : int(events.x.max()) + 1])


def on_over_off(events: Events) -> NDArray[np.uint8]:
    """(H, W, 3) uint8."""
    labels = np.zeros(events.height * events.width, np.uint8)
    numbers, on = pixel_numbers(events), events.p.view(np.bool_)
    labels[numbers[~on]] = _OFF
    labels[numbers[on]] = _ON
    return _paint(labels, events)


def _paint(labels: NDArray[np.uint8], events: Events) -> NDArray[np.uint8]:
    """Labels to colours, a channel at a time: comparing is many times faster than looking up rows of a palette."""
    picture = np.empty((len(labels), 3), np.uint8)
    for channel, dark in enumerate((labels == _OFF, labels != _NOTHING, labels == _ON)):
        picture[:, channel] = dark.view(np.uint8) - np.uint8(1)  # True -> 0, False -> 255
    return picture.reshape(events.height, events.width, 3)
