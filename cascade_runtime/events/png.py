"""A PNG writer in a page (ISO/IEC 15948): 8-bit RGB, no interlace. Needs zlib only."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.errors import InputError


def encode_png(picture_HW3: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 -> the bytes of a PNG file."""
    if picture_HW3.ndim != 3 or picture_HW3.shape[2] != 3 or picture_HW3.dtype != np.uint8 or not picture_HW3.size:
        raise InputError("picture", f"{picture_HW3.dtype} of shape {picture_HW3.shape}", "a (H, W, 3) uint8 array")
    height, width, _ = picture_HW3.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row begins with filter 0
    rows[:, 1:] = picture_HW3.reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)
