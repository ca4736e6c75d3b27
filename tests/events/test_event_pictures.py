"""Pictures: the PNG decodes to the picture, the picture shows the events, the preview has its shape."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from recording_seeds import simulated

from cascade_runtime.errors import InputError
from cascade_runtime.events import Events, describe, preview, render_png
from cascade_runtime.events.picture import render
from cascade_runtime.events.png import encode_png


def decode_png(data: bytes) -> np.ndarray:
    """Chunks and checksums of an 8-bit RGB PNG without filters, by the standard."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    assert (depth, colour) == (8, 2)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert (rows[:, 0] == 0).all()
    return rows[:, 1:].reshape(height, width, 3)


def test_png_round_trip() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    assert np.array_equal(decode_png(encode_png(picture)), picture)
    with pytest.raises(InputError, match="picture"):
        encode_png(picture[..., 0])


def test_render_png_writes_what_it_returns(tmp_path: Path) -> None:
    events = simulated()
    data = render_png(events, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == data
    assert np.array_equal(decode_png(data), render(events))


def test_on_is_warm_off_is_cool_and_silence_is_dark() -> None:
    events = Events([0, 1, 2], [0, 1, 1], [0, 0, 0], [1, 0, 0], width=3, height=1)
    on, off, silent = (pixel.astype(int) for pixel in render(events)[0])
    assert on[0] > on[2] + 50
    assert off[2] > off[0] + 50
    assert silent.max() < 30


def test_the_densest_moment_is_shown_unless_all_is_asked_for() -> None:
    t = np.concatenate([np.arange(5) * 100_000, 900_000 + np.arange(100)])
    x = np.concatenate([np.zeros(5, int), np.ones(100, int)])
    events = Events(t, x, np.zeros(105, int), np.ones(105, int), width=2, height=1)
    assert render(events)[0, 0].max() < 30
    assert render(events, window_us=None)[0, 0].max() > 60


def test_one_hot_pixel_does_not_darken_the_scene() -> None:
    scene = np.arange(200)
    x = np.concatenate([scene % 20, np.full(5000, 19)])
    y = np.concatenate([scene // 20, np.full(5000, 19)])
    events = Events(np.sort(np.arange(5200) % 1000), x, y, np.ones(5200, int), width=20, height=20)
    assert render(events)[:10].max(axis=2).min() > 200


def test_preview_is_half_blocks_of_the_width_asked_for() -> None:
    lines = preview(simulated(5000), columns=60).splitlines()
    bare = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert all(line == "▀" * 60 for line in bare)
    assert len(lines) == round(180 * 60 / 240 / 2)
    assert all(line.endswith("\x1b[0m") for line in lines)
    with pytest.raises(InputError, match="columns"):
        preview(simulated(), columns=0)


def test_preview_places_events_where_they_are() -> None:
    events = Events([0], [7], [0], [1], width=8, height=8)
    first, *rest = preview(events, columns=8).splitlines()
    cells = first.split("▀")
    assert "255;176;64" in cells[7]
    assert all("255;176;64" not in cell for cell in [*cells[:7], *rest])


def test_an_empty_recording_is_a_dark_picture() -> None:
    empty = Events([], [], [], [], width=4, height=3)
    assert render(empty).shape == (3, 4, 3)
    assert render(empty).max() < 30
    assert "▀" in preview(empty)
    assert describe(empty)["events"] == 0


def test_describe_is_json_and_agrees_with_the_recording() -> None:
    events = simulated(2000)
    facts = json.loads(json.dumps(describe(events), allow_nan=False))
    assert facts["events"] == 2000
    assert facts["duration_us"] == events.duration_us
    assert facts["on_share"] == pytest.approx(events.p.mean())
    pixels = len(set(zip(events.x.tolist(), events.y.tolist(), strict=True)))
    assert facts["active_pixel_share"] == pytest.approx(pixels / (240 * 180))
    assert facts["direction"] == "none"
    assert facts["speed_px_per_s"] is None
