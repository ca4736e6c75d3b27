"""ROS 1 bags (`.bag`, format 2.0) with events: event_camera_msgs/EventPacket (encoding evt3) and dvs_msgs/EventArray.

    record   uint32 header length, header, uint32 data length, data; header: (uint32 length, "name=value") fields,
    `op` says what op 5 chunk (compression none | bz2 | lz4; holds records)   op 7 connection (id, topic, type)   op 2
    message (connection id)

http://wiki.ros.org/Bags/Format/2.0. No ROS needed. Where a bag has several event topics, the one with most bytes is
read. EVT3 state runs on across packets, so a topic's packets are joined before decoding.
"""

from __future__ import annotations

import bz2
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from cascade_runtime.events.array import Events
from cascade_runtime.events.readers.columns import to_events
from cascade_runtime.events.readers.evt3 import decode_evt3
from cascade_runtime.events.readers.source import Source

_MAGIC = b"#ROSBAG V2.0\n"
_MESSAGE, _CHUNK, _CONNECTION = 2, 5, 7
_TYPES = ("event_camera_msgs/EventPacket", "dvs_msgs/EventArray")
_DVS_EVENT = np.dtype(
    {
        "names": ["x", "y", "secs", "nsecs", "p"],
        "formats": ["<u2", "<u2", "<u4", "<u4", "u1"],
        "offsets": [0, 2, 4, 8, 12],
        "itemsize": 13,
    }
)


@dataclass
class _Topic:
    """One connection's messages, unpacked: payload pieces, sensor size, encoding."""

    kind: str
    pieces: list[memoryview] = field(default_factory=list)
    sensor: tuple[int, int] | None = None


def read_rosbag(source: Source) -> Events:
    """The busiest event topic of the bag. Raises EventFormatError."""
    topics: dict[int, _Topic] = {}
    try:
        data = memoryview(source.data)
        if bytes(data[: len(_MAGIC)]) != _MAGIC:
            raise ValueError("not a ROS bag of format 2.0")
        for header, body in _all_records(source, data[len(_MAGIC) :]):
            _take(header, body, topics)
        busiest = max(topics.values(), key=lambda topic: sum(map(len, topic.pieces)), default=None)
        if busiest is None or not busiest.pieces:
            raise ValueError(f"no messages of type {' or '.join(_TYPES)}")
        joined = b"".join(busiest.pieces)
    except (struct.error, ValueError, KeyError, OSError, pa.ArrowException) as error:
        raise source.error("rosbag", f"{type(error).__name__}: {error}") from error
    if busiest.kind == _TYPES[0]:
        return to_events(
            source, decode_evt3(source, np.frombuffer(joined, "<u2", len(joined) // 2)), sensor=busiest.sensor
        )
    rows = np.frombuffer(joined, _DVS_EVENT)
    source.check_events(len(rows))
    t = rows["secs"].astype(np.int64) * 1_000_000 + rows["nsecs"] // 1000
    return to_events(source, [t, rows["x"], rows["y"], rows["p"]], sensor=busiest.sensor)


def _records(data: memoryview) -> Iterator[tuple[dict[bytes, bytes], memoryview]]:
    at = 0
    while at < len(data):
        parts = []
        for _ in range(2):
            (length,) = struct.unpack_from("<I", data, at)
            if at + 4 + length > len(data):
                raise ValueError(f"a record of {length} bytes where {len(data) - at - 4} are left")
            parts.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        yield _fields(parts[0]), parts[1]


def _fields(header: memoryview) -> dict[bytes, bytes]:
    fields, at = {}, 0
    while at < len(header):
        (length,) = struct.unpack_from("<I", header, at)
        name, separator, value = bytes(header[at + 4 : at + 4 + length]).partition(b"=")
        if not separator or at + 4 + length > len(header):
            raise ValueError("a header field without a value")
        fields[name] = value
        at += 4 + length
    return fields


def _all_records(source: Source, data: memoryview) -> Iterator[tuple[dict[bytes, bytes], memoryview]]:
    """The bag's records, chunks opened (they do not nest)."""
    total = 0
    for header, body in _records(data):
        if header.get(b"op") != bytes([_CHUNK]):
            yield header, body
            continue
        opened = _open_chunk(
            source, header.get(b"compression", b"none"), body, source.limits.max_expanded_bytes - total
        )
        total += len(opened)
        yield from _records(opened)


def _open_chunk(source: Source, compression: bytes, body: memoryview, limit: int) -> memoryview:
    if compression == b"none":
        return body
    if compression == b"bz2":
        opened = bz2.BZ2Decompressor().decompress(body, limit + 1)
    elif compression == b"lz4":
        with pa.CompressedInputStream(pa.BufferReader(pa.py_buffer(body)), "lz4") as stream:
            opened = stream.read(limit + 1)
    else:
        raise ValueError(f"chunk compression {compression[:20]!r}; read: none, bz2, lz4")
    if len(opened) > limit:
        raise source.error("chunks", f"more than max_expanded_bytes={source.limits.max_expanded_bytes}")
    return memoryview(opened)


def _take(header: dict[bytes, bytes], body: memoryview, topics: dict[int, _Topic]) -> None:
    op = header.get(b"op")
    if op == bytes([_CONNECTION]):
        kind = _fields(body).get(b"type", b"").decode("latin-1")
        if kind in _TYPES:
            topics.setdefault(_connection(header), _Topic(kind))
    elif op == bytes([_MESSAGE]):
        topic = topics.get(_connection(header))
        if topic is not None:
            (_take_event_packet if topic.kind == _TYPES[0] else _take_event_array)(body, topic)


def _connection(header: dict[bytes, bytes]) -> int:
    return struct.unpack("<I", header[b"conn"])[0]


def _take_event_packet(body: memoryview, topic: _Topic) -> None:
    """header, u32 height, width, u64 seq, u64 time_base, string encoding, bool is_bigendian, u8[] events."""
    at = _after_ros_header(body)
    height, width, _, _, length = struct.unpack_from("<IIQQI", body, at)
    encoding = bytes(body[at + 28 : at + 28 + length])
    if encoding != b"evt3":
        raise ValueError(f"EventPacket encoding {encoding[:20]!r}; read: evt3")
    at += 28 + length
    bigendian, count = struct.unpack_from("<BI", body, at)
    if bigendian or at + 5 + count > len(body):
        raise ValueError("an EventPacket that is big-endian or cut short")
    topic.sensor = (width, height)
    topic.pieces.append(body[at + 5 : at + 5 + count])


def _take_event_array(body: memoryview, topic: _Topic) -> None:
    """header, u32 height, width, Event[] {u16 x, u16 y, time ts, bool polarity}."""
    at = _after_ros_header(body)
    height, width, count = struct.unpack_from("<III", body, at)
    if at + 12 + count * _DVS_EVENT.itemsize > len(body):
        raise ValueError("an EventArray that is cut short")
    topic.sensor = (width, height)
    topic.pieces.append(body[at + 12 : at + 12 + count * _DVS_EVENT.itemsize])


def _after_ros_header(body: memoryview) -> int:
    """Offset past std_msgs/Header: u32 seq, time stamp, string frame_id."""
    (length,) = struct.unpack_from("<I", body, 12)
    if 16 + length > len(body):
        raise ValueError("a message header that is cut short")
    return 16 + length
