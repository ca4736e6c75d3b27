"""Frames on a byte stream, with credits: 4 bytes little-endian, then the payload they announce.

    high bit clear: a frame of that many bytes follows
    high bit set:   the peer has read that many frames, so as many more may be sent; nothing follows

Example: `credit(2) + frame(b"abc")` is `02 00 00 80  03 00 00 00  61 62 63`. A length is checked before a byte of the
frame is kept, so a hostile peer can make the reader hold at most one largest frame.
"""

from __future__ import annotations

import struct

from cascade_runtime.errors import ChannelError

_WORD = struct.Struct("<I")
_CREDIT = 1 << 31


def frame(payload: bytes) -> bytes:
    """One frame as it goes on the stream."""
    return _WORD.pack(len(payload)) + payload


def credit(count: int) -> bytes:
    """A grant of `count` more frames."""
    return _WORD.pack(_CREDIT | count)


class FrameParser:
    """Cuts a byte stream into frames and credits, whatever pieces it arrives in."""

    def __init__(self, max_frame_bytes: int) -> None:
        self._max = max_frame_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> tuple[list[bytes], int]:
        """The frames completed by `data`, and the credits it granted. Raises `ChannelError` on an impossible length."""
        buffer = self._buffer
        buffer += data
        frames: list[bytes] = []
        credits = at = 0
        while len(buffer) - at >= _WORD.size:
            (word,) = _WORD.unpack_from(buffer, at)
            if word & _CREDIT:
                credits += word & ~_CREDIT
                at += _WORD.size
                continue
            if word > self._max:
                raise ChannelError(f"the peer announced a frame of {word} bytes; allowed: {self._max}")
            end = at + _WORD.size + word
            if len(buffer) < end:
                break
            frames.append(bytes(buffer[at + _WORD.size : end]))
            at = end
        del buffer[:at]
        return frames, credits
