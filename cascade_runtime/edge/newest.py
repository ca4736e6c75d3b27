"""`Newest`: of every window that is open, the newest message of a language stage, and whether it was told.

Drafts and verdicts are cumulative: what a newer message does not say counts no more. So each side of the link holds one
message per window, however fast they come and however slow the link is, and tells all of them again after a cut.

`read_messages` is how either side looks at a frame of the other: nothing in it is believed but its shape.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from cascade_runtime.errors import InputError
from cascade_runtime.messages import DraftBlock, Verdict, decode, encode

MAX_FRAME_BYTES = 1 << 16
MAX_TOKENS = 1024
"""Of one message: the widest window that a recipe may have."""
Message = TypeVar("Message", DraftBlock, Verdict)


def read_messages(frame: bytes, kind: type[Message]) -> list[Message]:
    """The messages of a frame from the other side. Raises `InputError`, or the `ChannelError` of `decode`."""
    if not 0 < len(frame) <= MAX_FRAME_BYTES:
        raise InputError("frame", f"{len(frame)} bytes", f"1 to {MAX_FRAME_BYTES}")
    messages: list[Message] = []
    for message in decode(frame):
        if not isinstance(message, kind):
            raise InputError("frame", type(message).__name__, f"messages of kind {kind.__name__}")
        if len(message.tokens) > MAX_TOKENS:
            raise InputError("message.tokens", len(message.tokens), f"at most {MAX_TOKENS}")
        if message.epoch:
            raise InputError("message.epoch", message.epoch, "0")
        if isinstance(message, DraftBlock) and message.parents is not None:
            raise InputError("message.parents", "a tree", "a chain of tokens")
        messages.append(message)
    return messages


class Newest:
    """What one side has to tell the other, by window. Any thread may call anything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages: dict[int, bytes | None] = {}
        self._due: dict[int, None] = {}  # in the order of what is longest due

    def open(self, window: int) -> None:
        """From now on messages about this window count."""
        with self._lock:
            self._messages.setdefault(window)

    def close(self, window: int) -> None:
        """It has ended."""
        with self._lock:
            self._messages.pop(window, None)
            self._due.pop(window, None)

    def put(self, window: int, message: DraftBlock | Verdict) -> bool:
        """A newer message about a window; False, and nothing changes, where that is not open."""
        encoded = encode(replace(message, request=window, epoch=0))
        with self._lock:
            if window not in self._messages:
                return False
            self._messages[window] = encoded
            self._due.setdefault(window)
            return True

    def due(self, may: Callable[[int], bool] = lambda window: True) -> bytes:
        """A frame of what was not told yet of windows that one may speak of, empty where there is nothing."""
        frame = bytearray()
        with self._lock:
            for window in [window for window in self._due if may(window)]:
                encoded = self._messages[window] or b""
                if len(frame) + len(encoded) > MAX_FRAME_BYTES:
                    break
                frame += encoded
                del self._due[window]
        return bytes(frame)

    def again(self) -> None:
        """The other side may have lost what it was told."""
        with self._lock:
            self._due = dict.fromkeys(window for window, message in self._messages.items() if message is not None)
