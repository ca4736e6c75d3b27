"""iniVation AEDAT4 (`.aedat4`): the event streams of a file; frames, IMU and triggers are skipped.

    "#!AER-DAT4.0\\r\\n", size-prefixed flatbuffer IOHeader {0 compression, 1 data table position, 2 info XML}, then
    packets {int32 stream id, int32 size, bytes}, each a compressed, size-prefixed flatbuffer EventPacket {0 vector of
    {int64 t us, int16 x, int16 y, bool on, 3 bytes of padding}}

https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-4.0.html. Read without the flatbuffers
package and without the data table, which a recording cut short does not have. Origin is top-left already.
"""

from __future__ import annotations

import re
import struct

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cascade_runtime.events.array import Events
from cascade_runtime.events.flatbuffer import table_field
from cascade_runtime.events.readers.columns import to_events
from cascade_runtime.events.readers.source import Source

_MAGIC = b"#!AER-DAT4.0\r\n"
_EVENT = np.dtype({"names": ["t", "x", "y", "p"], "formats": ["<i8", "<i2", "<i2", "u1"], "itemsize": 16})
_CODECS = {0: None, 1: "lz4", 2: "lz4", 3: "zstd", 4: "zstd"}
_MAX_PACKET_BYTES = 64 * 2**20


def read_aedat4(source: Source) -> Events:
    """All event streams of the file, merged by time. Raises EventFormatError; a cut-off last packet is an error too."""
    data = memoryview(source.data)
    try:
        (size,) = struct.unpack_from("<I", data, len(_MAGIC))
        start = len(_MAGIC) + 4
        codec, streams, sensor, table_at = _parse_header(source, data[start : start + size])
        parts, total, at = [], 0, start + size
        end = table_at if start + size <= table_at <= len(data) else len(data)
        while at < end:
            stream, length = struct.unpack_from("<ii", data, at)
            if length < 0 or at + 8 + length > end:
                raise source.error(f"offset {at}", f"a packet of {length} bytes where {end - at - 8} are left")
            if stream in streams:
                packet = _decompress(source, data[at + 8 : at + 8 + length], codec, at)
                total += len(packet)
                source.check_expanded(total, f"offset {at}")
                parts.append(_events_of(packet))
            at += 8 + length
    except (struct.error, ValueError) as error:
        raise source.error("aedat4", str(error)) from error
    rows = np.concatenate(parts) if parts else np.zeros(0, _EVENT)
    return to_events(source, [rows["t"], rows["x"], rows["y"], rows["p"]], sensor=sensor)


def _parse_header(source: Source, header: memoryview) -> tuple[str | None, set[int], tuple[int, int] | None, int]:
    """Codec name, ids of the event streams, sensor of the first of them, offset of the data table (or -1)."""
    (root,) = struct.unpack_from("<I", header, 0)
    compression, table, info = (table_field(header, root, index) for index in range(3))
    kind = struct.unpack_from("<i", header, compression)[0] if compression is not None else 0
    if kind not in _CODECS:
        raise source.error("IOHeader", f"unknown compression {kind}")
    if info is None:
        raise source.error("IOHeader", "no description of the streams")
    info += struct.unpack_from("<I", header, info)[0]
    (length,) = struct.unpack_from("<I", header, info)
    xml = bytes(header[info + 4 : info + 4 + length]).decode("utf-8", "replace")
    streams, sensor = set(), None
    # one node a stream; searched as text, since an XML parser would expand hostile entities
    for part in re.split(r'<node name="(?=\d)', xml)[1:]:
        if re.search(r'key="typeIdentifier"[^>]*>EVTS<', part):
            number = re.match(r"\d{1,9}", part)
            streams.add(int(number.group()) if number else -1)
            sides = [re.search(rf'key="size{axis}"[^>]*>(\d{{1,6}})<', part) for axis in "XY"]
            if sensor is None and sides[0] and sides[1]:
                sensor = (int(sides[0].group(1)), int(sides[1].group(1)))
    if not streams:
        raise source.error("IOHeader", "no event stream (typeIdentifier EVTS)")
    return _CODECS[kind], streams, sensor, struct.unpack_from("<q", header, table)[0] if table is not None else -1


def _decompress(source: Source, packet: memoryview, codec: str | None, at: int) -> memoryview:
    """Frames of LZ4 and Zstandard, through Arrow's streaming decompressor, which allocates only as output appears."""
    if codec is None:
        return packet
    limit = min(_MAX_PACKET_BYTES, source.limits.max_expanded_bytes)
    try:
        with pa.CompressedInputStream(pa.BufferReader(pa.py_buffer(packet)), codec) as stream:
            data = stream.read(limit + 1)
    except (pa.ArrowException, OSError) as error:
        raise source.error(f"offset {at}", f"{codec} packet: {error}") from error
    if len(data) > limit:
        raise source.error(f"offset {at}", f"a packet of more than {limit} bytes once decompressed")
    return memoryview(data)


def _events_of(packet: memoryview) -> NDArray[np.void]:
    (root,) = struct.unpack_from("<I", packet, 4)  # after the size prefix
    vector = table_field(packet[4:], root, 0)
    if vector is None:
        return np.zeros(0, _EVENT)
    vector += 4
    vector += struct.unpack_from("<I", packet, vector)[0]
    (count,) = struct.unpack_from("<I", packet, vector)
    if vector + 4 + count * _EVENT.itemsize > len(packet):
        raise ValueError(f"{count} events announced where {len(packet) - vector - 4} bytes are left")
    return np.frombuffer(packet, _EVENT, count, vector + 4)
