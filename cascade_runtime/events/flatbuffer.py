"""Fields of a flatbuffer table, found without trusting any offset: the little that Arrow's and AEDAT4's headers need.

https://flatbuffers.dev/internals: a table begins with the distance back to its vtable, which lists the fields' offsets.
"""

from __future__ import annotations

import struct


def table_field(data: memoryview, table: int, index: int) -> int | None:
    """Position of field number `index`, or None where it is left at its default. Raises ValueError or struct.error."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0:
        raise ValueError("a flatbuffer table outside its message")
    (size,) = struct.unpack_from("<H", data, vtable)
    if 4 + 2 * index + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", data, vtable + 4 + 2 * index)
    return table + offset if offset else None
