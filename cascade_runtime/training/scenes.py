"""Procedural scenes seen by a simulated event camera, and what is true of them.

    draw(rng, n) -> SceneBatch      n scenes of one kind: what moves, where it starts, how it moves, the sensor's
    thresholds film(batch) -> log intensities  (n, STEPS + 1, SIDE, SIDE), smooth in time, edges anti-aliased
    expose(...) -> EventBatch       every threshold crossing as an event, and the sensor's noise

A scene is one of: nothing but noise, a texture carried past or towards a moving camera, or one to three equal shapes
(disk, square, triangle, bar) crossing a still background the same way. Values keep a gap between the classes of a
fact; where a measured fact (rate, balance, busiest region) still falls into a gap it is AMBIGUOUS, and such a scene
asks no question about it. Many scenes are filmed at once; `simulate_scene` is the same code for one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.events import Events
from cascade_runtime.training.facts import (
    AMBIGUOUS,
    DIRECTIONS,
    NONE,
    REGIONS,
    SHAPES,
    SUBJECTS,
    Facts,
    balance_class,
    rate_class,
    region_class,
)

SIDE = 64
STEPS = 20
KINDS = ("nothing", "shift", "zoom", "shapes")
KIND_SHARES = (0.05, 0.22, 0.13, 0.60)
_DISPLACEMENT = ((0.05, 0.10), (0.15, 0.23), (0.34, 0.48))
_WAVES = 8
_MAX_SHAPES = 3
_GRID = np.arange(SIDE, dtype=np.float32) + 0.5


@dataclass(frozen=True)
class SceneBatch:
    """n scenes of one kind before they are filmed; angles in radians, lengths in pixels, image y pointing down."""

    kind: str
    subject: int
    count: int
    direction: NDArray[np.int64]
    speed: NDArray[np.int64]
    angle: NDArray[np.float32]
    displacement: NDArray[np.float32]
    threshold_on: NDArray[np.float32]
    threshold_off: NDArray[np.float32]
    contrast: NDArray[np.float32]
    noise: NDArray[np.float32]
    duration_us: NDArray[np.int64]
    seed: int

    def __len__(self) -> int:
        return len(self.direction)


@dataclass(frozen=True)
class EventBatch:
    """The events of many scenes, sorted by scene and time: `scene` says which one each belongs to."""

    scene: NDArray[np.int64]
    t: NDArray[np.int64]
    x: NDArray[np.uint16]
    y: NDArray[np.uint16]
    p: NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """One simulated recording with what is true of it. frames: (STEPS + 1, SIDE, SIDE) intensities in 0..1."""

    events: Events
    frames: NDArray[np.float32]
    facts: Facts


def simulate_scene(seed: int, *, kind: str | None = None) -> Scene:
    """One scene, the same for the same seed; kind as in KINDS, drawn by the seed where None."""
    rng = np.random.default_rng([seed, 0])
    batch = draw(rng, 1, kind=kind)
    film_1 = film(batch)
    exposed = expose(batch, film_1)
    events = Events(exposed.t, exposed.x, exposed.y, exposed.p, width=SIDE, height=SIDE)
    intensity = np.exp(film_1[0] - film_1[0].max())
    return Scene(events, intensity.astype(np.float32), Facts.from_row(label(batch, exposed)[0]))


def draw(rng: np.random.Generator, n: int, *, kind: str | None = None) -> SceneBatch:
    """n scenes that share kind, subject and count; all else is drawn per scene."""
    kind = kind or str(rng.choice(KINDS, p=KIND_SHARES))
    subject, count = SUBJECTS.index("nothing"), 0
    if kind in ("shift", "zoom"):
        subject = SUBJECTS.index("camera")
    elif kind == "shapes":
        subject, count = SUBJECTS.index(str(rng.choice(SHAPES))), int(rng.integers(1, _MAX_SHAPES + 1))
    direction = rng.integers(0, 8, n)
    if kind == "zoom":
        direction = rng.integers(DIRECTIONS.index("toward"), len(DIRECTIONS), n)
    speed = rng.integers(0, 3, n)
    low, high = np.asarray(_DISPLACEMENT).T
    displacement = SIDE * rng.uniform(low[speed], high[speed])
    if kind == "nothing":
        direction, speed, displacement = np.full(n, NONE), np.full(n, NONE), np.zeros(n)
    contrast = np.exp(rng.uniform(np.log(0.35), np.log(1.4), n))
    base = contrast / np.exp(rng.uniform(np.log(2.2), np.log(11.0), n))
    skew = np.sqrt(rng.choice([1.0, 1.9, 1 / 1.9], n) * rng.uniform(0.9, 1.1, n))
    least, most = (0.02, 0.15) if kind == "nothing" else (0.002, 0.03)
    return SceneBatch(
        kind=kind,
        subject=subject,
        count=count,
        direction=direction,
        speed=speed,
        angle=(direction * (np.pi / 4) + rng.uniform(-0.25, 0.25, n)).astype(np.float32),
        displacement=displacement.astype(np.float32),
        threshold_on=(base * skew).astype(np.float32),
        threshold_off=(base / skew).astype(np.float32),
        contrast=contrast.astype(np.float32),
        noise=np.exp(rng.uniform(np.log(least), np.log(most), n)).astype(np.float32),
        duration_us=rng.integers(8_000, 100_000, n),
        seed=int(rng.integers(2**62)),
    )


def film(batch: SceneBatch) -> NDArray[np.float32]:
    """Log intensities (n, STEPS + 1, SIDE, SIDE) of a batch."""
    rng = np.random.default_rng([batch.seed, 1])
    time = np.linspace(-0.5, 0.5, STEPS + 1, dtype=np.float32)
    if batch.kind == "nothing":
        return np.zeros((len(batch), STEPS + 1, SIDE, SIDE), dtype=np.float32)
    if batch.kind == "shapes":
        return _film_shapes(batch, rng, time)
    return _film_texture(batch, rng, time)


def expose(batch: SceneBatch, logs: NDArray[np.float32]) -> EventBatch:
    """ESIM's rule (Rebecq et al. 2018): an event whenever a pixel's log intensity has moved one threshold, at the
    interpolated time.

    Thresholds vary by 4 % from pixel to pixel; noise adds events at random places and times, and a few hot pixels.
    """
    rng = np.random.default_rng([batch.seed, 2])
    n = len(batch)
    spread = (1 + 0.04 * rng.standard_normal((n, SIDE, SIDE))).clip(0.8, 1.2).astype(np.float32)
    on, off = (threshold[:, None, None] * spread for threshold in (batch.threshold_on, batch.threshold_off))
    per_on, per_off = 1 / on, 1 / off
    reference = logs[:, 0] - on + (on + off) * rng.random((n, SIDE, SIDE), dtype=np.float32)
    parts = []
    for step in range(STEPS):
        before, after = logs[:, step], logs[:, step + 1]
        rise = after - reference
        crossed = (rise * np.where(rise > 0, per_on, per_off)).astype(np.int32)  # towards zero: whole thresholds only
        pixel = np.flatnonzero(crossed)
        if not len(pixel):
            continue
        times = crossed.ravel()[pixel]
        up, number = times > 0, np.minimum(np.abs(times), 12)
        size = np.where(up, on.ravel()[pixel], -off.ravel()[pixel])
        which = np.repeat(np.arange(len(pixel)), number)
        k = np.arange(len(which)) - np.repeat(np.cumsum(number) - number, number) + 1
        level = reference.ravel()[pixel][which] + k * size[which]
        start, change = before.ravel()[pixel], (after - before).ravel()[pixel]
        part = ((level - start[which]) / np.where(change == 0, 1, change)[which]).clip(0, 1)
        reference.ravel()[pixel] += size * np.abs(times)
        parts.append((pixel[which], (step + part) / STEPS, up[which]))
    parts.append(_noise(batch, rng))
    flat, moment, up = (np.concatenate(column) for column in zip(*parts, strict=True))
    scene, cell = flat // SIDE**2, flat % SIDE**2
    t = (moment * batch.duration_us[scene]).astype(np.int64)
    order = np.lexsort((t, scene))
    y, x = (cell // SIDE).astype(np.uint16), (cell % SIDE).astype(np.uint16)
    return EventBatch(scene[order], t[order], x[order], y[order], up.astype(np.uint8)[order])


def label(batch: SceneBatch, exposed: EventBatch) -> NDArray[np.int8]:
    """(n, len(Facts.names())) class of every fact, AMBIGUOUS where it lies between two."""
    n = len(batch)
    total = np.bincount(exposed.scene, minlength=n)
    on = np.bincount(exposed.scene, weights=exposed.p, minlength=n)
    third = (exposed.y.astype(np.int64) * 3 // SIDE) * 3 + exposed.x.astype(np.int64) * 3 // SIDE
    counts = np.bincount(exposed.scene * 9 + third, minlength=9 * n).reshape(n, 9)
    rows = np.full((n, len(Facts.names())), AMBIGUOUS, dtype=np.int8)
    for i in range(n):
        rate = rate_class(total[i] / SIDE**2)
        balance = balance_class(on[i] / max(total[i], 1))
        region = REGIONS.index("everywhere") if batch.kind == "nothing" else region_class(counts[i])
        rows[i] = (batch.subject, batch.count, batch.direction[i], batch.speed[i], rate, balance, region)
    return rows


def _noise(batch: SceneBatch, rng: np.random.Generator) -> tuple[NDArray, NDArray, NDArray]:
    """Background activity: (flat pixel, moment in 0..1, polarity) over all scenes, at least two events in each."""
    number = np.maximum(rng.poisson(batch.noise * SIDE**2), 2)
    scene = np.repeat(np.arange(len(batch)), number)
    pixel = scene * SIDE**2 + rng.integers(0, SIDE**2, len(scene))
    hot = rng.integers(0, 3, len(batch))
    hot_scene = np.repeat(np.arange(len(batch)), hot)
    hot_pixel = np.repeat(hot_scene * SIDE**2 + rng.integers(0, SIDE**2, len(hot_scene)), 6)
    bias = np.repeat(rng.uniform(0.1, 0.9, len(hot_scene)), 6)
    flat = np.concatenate([pixel, hot_pixel])
    sign_bias = rng.choice([0.25, 0.5, 0.75], len(batch)) if batch.kind == "nothing" else np.full(len(batch), 0.5)
    return flat, rng.random(len(flat)), rng.random(len(flat)) < np.concatenate([sign_bias[scene], bias])


def _film_texture(batch: SceneBatch, rng: np.random.Generator, time: NDArray[np.float32]) -> NDArray[np.float32]:
    """A sum of plane waves pushed through tanh, so that it has edges: carried along, or scaled about a point near the
    centre.

    cos(a x + b y + c) is separable into products of one-dimensional waves, so a frame is one small matrix product.
    """
    n = len(batch)
    frequency = 2 * np.pi * np.exp(rng.uniform(np.log(1.5), np.log(9.0), (n, _WAVES))) / SIDE
    heading = rng.uniform(0, 2 * np.pi, (n, _WAVES))
    strength = rng.uniform(0.3, 1.0, (n, _WAVES)) * frequency**-0.3
    strength /= np.sqrt((strength**2).sum(1, keepdims=True) / 2)
    phase = rng.uniform(0, 2 * np.pi, (n, 1, _WAVES))
    ax, ay = (frequency * np.cos(heading))[:, None, :, None], (frequency * np.sin(heading))[:, None, :, None]
    along = batch.displacement[:, None] * time  # (n, T)
    scale = np.ones_like(along)
    focus = np.full((n, 2), SIDE / 2)
    shift_x, shift_y = np.cos(batch.angle)[:, None] * along, np.sin(batch.angle)[:, None] * along
    if batch.kind == "zoom":
        sign = np.where(batch.direction == DIRECTIONS.index("toward"), 1.0, -1.0)[:, None]
        scale = np.exp(-sign * along / (0.38 * SIDE))
        focus = rng.uniform(0.4, 0.6, (n, 2)) * SIDE
        shift_x = shift_y = np.zeros_like(along)
    x = (_GRID - focus[:, :1])[:, None, :] * scale[:, :, None] - shift_x[:, :, None]  # (n, T, SIDE)
    y = (_GRID - focus[:, 1:])[:, None, :] * scale[:, :, None] - shift_y[:, :, None]
    wave_x = ax * x[:, :, None] + phase[..., None]  # (n, T, WAVES, SIDE)
    wave_y = ay * y[:, :, None]
    left = (
        np.concatenate([np.cos(wave_y), np.sin(wave_y)], 2) * np.concatenate([strength, strength], 1)[:, None, :, None]
    )
    right = np.concatenate([np.cos(wave_x), -np.sin(wave_x)], 2)
    field = np.matmul(left.astype(np.float32).swapaxes(2, 3), right.astype(np.float32))
    sharp = rng.uniform(0.8, 3.0, (n, 1, 1, 1)).astype(np.float32)
    np.tanh(field * sharp, out=field)
    return field * (0.5 * batch.contrast[:, None, None, None] * _envelope(rng, n)[:, None])


def _envelope(rng: np.random.Generator, n: int) -> NDArray[np.float32]:
    """(n, SIDE, SIDE) in 0..1: half of the views are textured all over, the others mostly around one of nine places."""
    spot = (np.stack([rng.integers(0, 3, n), rng.integers(0, 3, n)]) + rng.uniform(0.35, 0.65, (2, n))) * SIDE / 3
    width = rng.uniform(0.14, 0.22, (n, 1, 1)) * SIDE
    distance = (_GRID[None, None, :] - spot[0][:, None, None]) ** 2 + (
        _GRID[None, :, None] - spot[1][:, None, None]
    ) ** 2
    bump = np.exp(-distance / (2 * width**2))
    floor = np.where(rng.random(n) < 0.5, 1.0, rng.uniform(0.0, 0.15, n))[:, None, None]
    return (floor + (1 - floor) * bump).astype(np.float32)


def _film_shapes(batch: SceneBatch, rng: np.random.Generator, time: NDArray[np.float32]) -> NDArray[np.float32]:
    """One to three shapes of equal size moving alike over a still, faintly textured background."""
    n = len(batch)
    centre, radius = _place_shapes(batch, rng)
    turn = rng.uniform(0, 2 * np.pi, n).astype(np.float32)
    fill = (rng.choice([-1.0, 1.0], n) * batch.contrast).astype(np.float32)[:, None, None, None]
    stripes = rng.uniform(0.0, 0.25, n).astype(np.float32)[:, None, None, None] * np.abs(fill)
    pitch = (2 * np.pi / rng.uniform(5, 10, n)).astype(np.float32)[:, None, None, None]
    ground = 0.15 * rng.random((n, 1, 1, 1)).astype(np.float32) * np.abs(fill)
    ground = ground * np.sin(_GRID[None, None, None, :] * pitch * 0.7 + _GRID[None, None, :, None] * pitch * 0.4)
    step_x = (np.cos(batch.angle) * batch.displacement)[:, None] * time
    step_y = (np.sin(batch.angle) * batch.displacement)[:, None] * time
    logs = np.broadcast_to(ground, (n, len(time), SIDE, SIDE)).astype(np.float32)
    cos, sin = np.cos(turn)[:, None, None, None], np.sin(turn)[:, None, None, None]
    for k in range(batch.count):
        dx = _GRID - (centre[:, k, 0, None] + step_x)[:, :, None]
        dy = _GRID - (centre[:, k, 1, None] + step_y)[:, :, None]
        dx, dy = dx[:, :, None, :].astype(np.float32), dy[:, :, :, None].astype(np.float32)
        u, v = cos * dx + sin * dy, cos * dy - sin * dx
        inside = (0.6 - _distance(SUBJECTS[batch.subject], u, v, radius[:, None, None, None])).clip(0, 1)
        logs += inside * (fill + stripes * np.sin(u * pitch) - logs)
    return logs


def _distance(shape: str, u: NDArray, v: NDArray, r: NDArray) -> NDArray[np.float32]:
    """Signed distance in pixels to the outline of a shape of radius r, negative inside; (u, v) are its own axes."""
    if shape == "disk":
        return np.sqrt(u * u + v * v) - r
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.9 * r
    if shape == "bar":
        return np.maximum(np.abs(u) - 1.5 * r, np.abs(v) - 0.28 * r)
    side = np.float32(np.sqrt(3) / 2)
    return np.maximum(np.maximum(side * u - 0.5 * v, -side * u - 0.5 * v), v) - 0.62 * r


def _place_shapes(batch: SceneBatch, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centres at mid-time (n, count, 2) and radii (n,): paths stay in view and keep clear of each other."""
    n, count = len(batch), batch.count
    largest = {1: 12.5, 2: 10.5, 3: 9.0}[count]
    radius = rng.uniform(6.5, largest, n).astype(np.float32)
    centre = np.zeros((n, count, 2), dtype=np.float32)
    heading = np.stack([np.cos(batch.angle), np.sin(batch.angle)], -1)
    for i in range(n):
        reach = np.abs(heading[i]) * batch.displacement[i] / 2
        across = np.array([-heading[i][1], heading[i][0]])
        for _ in range(200):
            margin = np.minimum(reach + 0.7 * radius[i], SIDE / 2 - 1)
            spots = rng.uniform(margin, SIDE - margin, (count, 2))
            gaps = spots[:, None] - spots[None]
            clear = np.abs(gaps @ across) > 2.1 * radius[i]
            apart = np.linalg.norm(gaps, axis=-1) > 2.4 * radius[i] + 0.5 * batch.displacement[i]
            if (clear | apart | np.eye(count, dtype=bool)).all():
                break
            radius[i] = max(radius[i] * 0.99, 4.5)
        centre[i] = spots
    return centre, radius
