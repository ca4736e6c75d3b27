"""Facts measured on scenes whose motion is known because they were simulated moving."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cascade_runtime.events import Events, frames_to_events, measure_facts
from cascade_runtime.events.facts import DIRECTIONS, REGIONS


def translating(vx: float, vy: float, *, seed: int = 0, frames: int = 20, step_us: int = 5_000) -> Events:
    """A random mosaic of 14-pixel tiles, edges 3 px soft, moving at (vx, vy) px/s past a 128x96 sensor."""
    tiles = np.random.default_rng(seed).random((40, 40))
    yy, xx = np.mgrid[0:96, 0:128].astype(float)
    stack = []
    for number in range(frames):
        shift_x, shift_y = vx * number * step_us * 1e-6, vy * number * step_us * 1e-6
        frame = np.zeros(xx.shape)
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                column = np.floor((xx - shift_x + i) / 14).astype(int) % 40
                frame += tiles[np.floor((yy - shift_y + j) / 14).astype(int) % 40, column] / 9
        stack.append(0.1 + 0.85 * frame)
    return frames_to_events(np.array(stack), np.arange(frames) * step_us)


def gap_deg(a: float, b: float) -> float:
    return abs((a - b + 180) % 360 - 180)


@pytest.mark.parametrize("direction", range(8))
@pytest.mark.parametrize("speed", [120.0, 400.0])
def test_direction_and_speed_of_a_translation_are_found(direction: int, speed: float) -> None:
    angle = math.radians(45 * direction)
    facts = measure_facts(translating(speed * math.cos(angle), -speed * math.sin(angle), seed=direction))
    assert facts.direction == DIRECTIONS[direction]
    assert gap_deg(facts.direction_deg, 45 * direction) < 15
    assert facts.speed_px_per_s == pytest.approx(speed, rel=0.2)


@pytest.mark.parametrize("speed", [30.0, 1200.0])
def test_the_window_fits_itself_to_slow_and_fast_scenes(speed: float) -> None:
    facts = measure_facts(translating(speed, 0, frames=60 if speed < 100 else 20))
    assert facts.direction == "right"
    assert facts.speed_px_per_s == pytest.approx(speed, rel=0.3)


def noise(count: int, seed: int) -> Events:
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, 100_000, count))
    columns = rng.integers(0, 128, count), rng.integers(0, 96, count), rng.integers(0, 2, count)
    return Events(t, *columns, width=128, height=96)


@pytest.mark.parametrize("count", [0, 50, 3_000, 100_000])
@pytest.mark.parametrize("seed", [0, 1])
def test_noise_has_no_direction(count: int, seed: int) -> None:
    facts = measure_facts(noise(count, seed))
    assert facts.direction == "none"
    assert math.isnan(facts.direction_deg)
    assert facts.speed_px_per_s == 0.0


def test_a_stuck_pixel_does_not_stop_the_scene() -> None:
    scene = translating(200, 0)
    stuck = np.linspace(0, scene.t[-1], 30_000).astype(np.int64)
    columns = [
        np.concatenate([getattr(scene, name), extra])
        for name, extra in zip(
            "txyp", (stuck, np.full(30_000, 5), np.full(30_000, 7), np.arange(30_000) % 2), strict=True
        )
    ]
    assert measure_facts(Events.from_arrays(*columns, width=128, height=96)).direction == "right"


@pytest.mark.parametrize("region", range(9))
def test_busiest_region_is_the_ninth_with_most_events(region: int) -> None:
    x = np.full(300, 15 + 30 * (region % 3))
    y = np.full(300, 10 + 20 * (region // 3))
    scattered = noise(200, 0)
    events = Events.from_arrays(
        np.concatenate([scattered.t, np.arange(300)]),
        np.concatenate([scattered.x % 90, x]),
        np.concatenate([scattered.y % 60, y]),
        np.concatenate([scattered.p, np.ones(300, int)]),
        width=90,
        height=60,
    )
    assert measure_facts(events).busiest_region == REGIONS[region]


def test_rate_and_on_share() -> None:
    events = Events(np.arange(5) * 1000, [0] * 5, [0] * 5, [1, 1, 1, 0, 1], width=1, height=1)
    facts = measure_facts(events)
    assert facts.rate_hz == 1250.0
    assert facts.on_share == 0.8
    empty = measure_facts(Events([], [], [], [], width=1, height=1))
    assert (empty.rate_hz, empty.on_share, empty.busiest_region) == (0.0, 0.0, "none")
