"""Small recordings in every format, made by hand from the formats' descriptions, for the reader and fuzz tests."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa

from cascade_runtime.events import Events

WIDTH, HEIGHT = 240, 180


def simulated(count: int = 300, seed: int = 0, span_us: int = 90_000) -> Events:
    """Random events of a 240x180 sensor that touch its far corner, so that guessing the sensor finds it."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, span_us, count))
    t[0] = 0
    x, y = rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count)
    x[-1], y[-1] = WIDTH - 1, HEIGHT - 1
    return Events(t, x, y, rng.integers(0, 2, count), width=WIDTH, height=HEIGHT)


def columns_of(events: Events) -> list[np.ndarray]:
    return [events.t + events.t_offset_us, events.x, events.y, events.p]


def same_events(found: Events, expected: Events) -> bool:
    """Equal absolute times, places and polarities, in order."""
    return all(np.array_equal(a, b) for a, b in zip(columns_of(found), columns_of(expected), strict=True))


def _saved(value: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=True)
    return stream.getvalue()


def eventgpt_npy(events: Events) -> bytes:
    return _saved(np.array({"p": events.p, "t": events.t, "x": events.x, "y": events.y}, dtype=object))


def structured(events: Events) -> np.ndarray:
    rows = np.zeros(len(events), [("p", "u1"), ("t", "<i8"), ("x", "<u2"), ("y", "<u2")])
    for name in "ptxy":
        rows[name] = getattr(events, name)
    return rows


def eventbench_npz(events: Events) -> bytes:
    bins = np.empty(3, dtype=object)
    for number, part in enumerate(np.array_split(structured(events), 3)):
        bins[number] = part
    stream = io.BytesIO()
    np.savez(stream, event_bins=bins)
    return stream.getvalue()


def table_npz(events: Events) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(
        stream, event_data=np.stack([events.x, events.y, events.t, events.p], axis=1).astype(np.float64)
    )
    return stream.getvalue()


def rpg_text(events: Events) -> bytes:
    rows = zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), events.p.tolist(), strict=True)
    return "".join(f"{t / 1e6:.9f} {x} {y} {p}\n" for t, x, y, p in rows).encode()


def csv_text(events: Events) -> bytes:
    rows = zip(events.x.tolist(), events.y.tolist(), events.p.tolist(), events.t.tolist(), strict=True)
    return ("x,y,polarity,timestamp\n" + "".join(f"{x},{y},{2 * p - 1},{t}\n" for x, y, p, t in rows)).encode()


def forty_bit(events: Events) -> bytes:
    raw = np.zeros((len(events), 5), np.uint8)
    raw[:, 0], raw[:, 1] = events.x, events.y
    raw[:, 2] = (events.p << 7) | ((events.t >> 16) & 0x7F)
    raw[:, 3], raw[:, 4] = (events.t >> 8) & 0xFF, events.t & 0xFF
    return raw.tobytes()


def evt2_words(events: Events) -> np.ndarray:
    words, high = [], -1
    for t, x, y, p in zip(*(column.tolist() for column in columns_of(events)), strict=True):
        if t >> 6 != high:
            high = t >> 6
            words.append((8 << 28) | high)
        words.append((p << 28) | ((t & 63) << 22) | (x << 11) | y)
    return np.array(words, "<u4")


def evt2(events: Events) -> bytes:
    return b"% evt 2.0\n% geometry 240x180\n% end\n" + evt2_words(events).tobytes()


def evt3_words(events: Events) -> np.ndarray:
    """Single events as ADDR_X; a time is written wherever it changes."""
    words, last = [], -1
    for t, x, y, p in zip(*(column.tolist() for column in columns_of(events)), strict=True):
        if t != last:
            if last < 0 or t >> 12 != last >> 12:
                words.append(0x8000 | ((t >> 12) & 0xFFF))
            words.append(0x6000 | (t & 0xFFF))
            last = t
        words += [y, 0x2000 | (p << 11) | x]
    return np.array(words, "<u2")


def evt3(events: Events) -> bytes:
    return b"% format EVT3;height=180;width=240\n% end\n" + evt3_words(events).tobytes()


def aedat4(events: Events, codec: str = "lz4") -> bytes:
    info = (
        b'<dv version="2.0"><node name="outInfo"><node name="0"><attr key="typeIdentifier" type="string">EVTS</attr>'
        b'<node name="info"><attr key="sizeX" type="int">240</attr><attr key="sizeY" type="int">180</attr>'
        b"</node></node></node></dv>"
    )
    vtable = struct.pack("<5H", 10, 20, 4, 8, 16) + b"\0\0"
    table = struct.pack("<iiqI", 12, {"none": 0, "lz4": 1, "zstd": 3}[codec], -1, 4)
    header = struct.pack("<I4s", 20, b"IOHE") + vtable + table + struct.pack("<I", len(info)) + info
    rows = np.zeros(len(events), np.dtype("<i8,<i2,<i2,u1,V3"))
    rows["f0"], rows["f1"], rows["f2"], rows["f3"] = columns_of(events)
    packet = struct.pack("<I4s3HxxiI", 16, b"EVTS", 6, 8, 4, 8, 4) + struct.pack("<I", len(events)) + rows.tobytes()
    packet = struct.pack("<I", len(packet)) + packet
    if codec != "none":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(packet)
        packet = sink.getvalue().to_pybytes()
    foreign = struct.pack("<ii", 1, 5) + b"frame"
    return (
        b"#!AER-DAT4.0\r\n"
        + struct.pack("<I", len(header))
        + header
        + foreign
        + struct.pack("<ii", 0, len(packet))
        + packet
    )


def _bag_record(fields: dict[str, bytes], data: bytes) -> bytes:
    header = b"".join(struct.pack("<I", len(k) + 1 + len(v)) + k.encode() + b"=" + v for k, v in fields.items())
    return struct.pack("<I", len(header)) + header + struct.pack("<I", len(data)) + data


def _bag(kind: str, messages: list[bytes], compression: str) -> bytes:
    connection = _bag_record({"op": b"\x07", "conn": b"\0\0\0\0", "topic": b"/e"}, _bag_fields({"type": kind.encode()}))
    stamped = {"op": b"\x02", "conn": b"\0\0\0\0", "time": bytes(8)}
    chunk = connection + b"".join(_bag_record(stamped, message) for message in messages)
    if compression == "bz2":
        import bz2

        chunk = bz2.compress(chunk)
    records = _bag_record({"op": b"\x03"}, b" " * 16) + _bag_record(
        {"op": b"\x05", "compression": compression.encode()}, chunk
    )
    return b"#ROSBAG V2.0\n" + records


def _bag_fields(fields: dict[str, bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(k) + 1 + len(v)) + k.encode() + b"=" + v for k, v in fields.items())


_ROS_HEADER = struct.pack("<IIII", 1, 2, 3, 3) + b"cam"


def packet_bag(events: Events, compression: str = "none") -> bytes:
    """event_camera_msgs/EventPacket, EVT3 split over two messages in the middle of a word run."""
    raw = evt3_words(events).tobytes()
    half = len(raw) // 4 * 2
    messages = []
    for part in (raw[:half], raw[half:]):
        facts = struct.pack("<IIQQI", HEIGHT, WIDTH, 0, 0, 4) + b"evt3" + struct.pack("<BI", 0, len(part))
        messages.append(_ROS_HEADER + facts + part)
    return _bag("event_camera_msgs/EventPacket", messages, compression)


def array_bag(events: Events) -> bytes:
    body = b"".join(
        struct.pack("<HHIIB", x, y, t // 10**6, t % 10**6 * 1000, p)
        for t, x, y, p in zip(*(column.tolist() for column in columns_of(events)), strict=True)
    )
    return _bag("dvs_msgs/EventArray", [_ROS_HEADER + struct.pack("<III", HEIGHT, WIDTH, len(events)) + body], "none")


def dat(events: Events) -> bytes:
    words = np.zeros((len(events), 2), "<u4")
    words[:, 0] = events.t
    words[:, 1] = events.x | (events.y.astype(np.uint32) << 14) | (events.p.astype(np.uint32) << 28)
    return b"% Data file containing CD events.\n% Version 2\n% Height 180\n% Width 240\n\x0c\x08" + words.tobytes()


def aedat2(events: Events) -> bytes:
    """jAER's DAVIS240 layout: big-endian, x and y counted from the bottom right as the chip does."""
    words = np.zeros((len(events), 2), ">u4")
    y = (HEIGHT - 1 - events.y).astype(np.uint32)
    words[:, 0] = (y << 22) | (events.x.astype(np.uint32) << 12) | (events.p.astype(np.uint32) << 11)
    words[:, 1] = events.t
    head = "#!AER-DAT2.0\r\n# AEChip: eu.seebetter.ini.chips.davis.DAVIS240C\r\n#End Of ASCII Header\r\n"
    return head.encode() + words.tobytes()


def hdf5(events: Events, folder: Path, t_offset: int = 51_000_000_000) -> bytes:
    """DSEC's layout, Blosc-compressed."""
    import h5py
    import hdf5plugin

    path = folder / "seed.h5"
    with h5py.File(path, "w") as file:
        for name, dtype in (("t", np.uint32), ("x", np.uint16), ("y", np.uint16), ("p", np.uint8)):
            data = getattr(events, name).astype(dtype)
            file.create_dataset(f"events/{name}", data=data, chunks=(100,), compression=hdf5plugin.Blosc(cname="zstd"))
        file["t_offset"] = np.int64(t_offset)
    return path.read_bytes()
