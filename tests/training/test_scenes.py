"""Scenes: what the labels say is what the events show, and the batched path is the single one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cascade_runtime.errors import InputError
from cascade_runtime.events import Events
from cascade_runtime.events.representations.activity import activity, activity_of_groups
from cascade_runtime.training.facts import (
    AMBIGUOUS,
    DIRECTIONS,
    NONE,
    REGIONS,
    SUBJECTS,
    balance_class,
    rate_class,
    region_class,
    turn,
)
from cascade_runtime.training.pool import make_chunk, read_chunk, turn_maps, write_chunk
from cascade_runtime.training.scenes import KINDS, SIDE, draw, expose, film, label, simulate_scene


def events_of(exposed, scene: int) -> Events:
    mine = exposed.scene == scene
    return Events(exposed.t[mine], exposed.x[mine], exposed.y[mine], exposed.p[mine], width=SIDE, height=SIDE)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_a_batch_are_the_maps_of_its_recordings(kind: str) -> None:
    batch = draw(np.random.default_rng(5), 3, kind=kind)
    exposed = expose(batch, film(batch))
    together = activity_of_groups(
        exposed.scene, 3, exposed.t, exposed.x, exposed.y, exposed.p, sensor=(SIDE, SIDE), frames=2, size=64
    )
    for scene in range(3):
        np.testing.assert_allclose(together[scene], activity(events_of(exposed, scene)), atol=1e-6)


def test_a_scene_is_the_same_for_the_same_seed() -> None:
    first, again, other = (simulate_scene(seed, kind="shapes") for seed in (4, 4, 5))
    assert first.events == again.events and first.facts == again.facts
    assert first.events != other.events


def test_labels_are_what_the_events_measure() -> None:
    batch = draw(np.random.default_rng(6), 24, kind="shift")
    exposed = expose(batch, film(batch))
    rows = label(batch, exposed)
    for scene in range(len(batch)):
        events = events_of(exposed, scene)
        third = events.y.astype(int) * 3 // SIDE * 3 + events.x.astype(int) * 3 // SIDE
        assert rows[scene, 4] == rate_class(len(events) / SIDE**2)
        assert rows[scene, 5] == balance_class(events.p.mean())
        assert rows[scene, 6] == region_class(np.bincount(third, minlength=9))


def test_shapes_move_the_way_their_label_says() -> None:
    batch = draw(np.random.default_rng(7), 48, kind="shapes")
    logs = film(batch)
    changed = np.abs(np.diff(logs, axis=1))
    grid = np.arange(SIDE)
    errors = []
    for scene in range(len(batch)):
        early, late = changed[scene, :5].sum(0), changed[scene, -5:].sum(0)
        centres = [np.array([(w.sum(0) * grid).sum(), (w.sum(1) * grid).sum()]) / w.sum() for w in (early, late)]
        step = centres[1] - centres[0]
        off = np.angle(np.exp(1j * (np.arctan2(step[1], step[0]) - batch.direction[scene] * np.pi / 4)))
        errors.append(abs(off))
    # Headings stray by up to .25 from their class, and a shape half out of view shifts the centre.
    assert np.median(errors) < 0.25 and np.quantile(errors, 0.9) < np.pi / 4


def test_brighter_is_on_and_the_number_of_events_follows_the_threshold() -> None:
    batch = draw(np.random.default_rng(8), 1, kind="shapes")
    ramp = np.zeros((1, 21, SIDE, SIDE), dtype=np.float32)
    ramp[0, :, 10, 20] = np.linspace(0, 2.0, 21)
    ramp[0, :, 40, 50] = np.linspace(0, -2.0, 21)
    exposed = expose(batch, ramp)
    for (y, x), polarity, threshold in (((10, 20), 1, batch.threshold_on), ((40, 50), 0, batch.threshold_off)):
        here = (exposed.y == y) & (exposed.x == x)
        expected = 2.0 / threshold[0]
        assert (exposed.p[here] == polarity).mean() > 0.9
        assert 0.78 * expected - 2 <= here.sum() <= 1.25 * expected + 8
        assert (np.diff(exposed.t[here]) >= 0).all()


def test_turning_a_recording_turns_its_facts() -> None:
    maps, rows = make_chunk(12, 96)
    clips = torch.from_numpy(maps).float()
    density = torch.expm1(clips[:, :, :2] * 4) / 4
    names = [f"{'f' if f else ''}{q}{'r' if r else ''}{'i' if i else ''}" for f, q, r, i in ALL_TURNS]
    assert len(set(names)) == 32
    for flip, quarter, reverse, invert in ALL_TURNS:
        options = {"flip": flip, "quarter": quarter, "reverse": reverse, "invert": invert}
        turned, facts = turn_maps(clips, **options), turn(rows, **options)
        counts = torch.expm1(turned[:, :, :2] * 4) / 4
        assert torch.allclose(counts.sum((1, 2, 3, 4)), density.sum((1, 2, 3, 4)), rtol=1e-3)
        on = (counts[:, :, 0].sum((1, 2, 3)) / counts.sum((1, 2, 3, 4))).numpy()
        balance = facts[:, 5]
        assert (on[balance == 0] < 0.42).all() and (on[balance == 2] > 0.58).all()
        ninth = torch.arange(64) * 3 // 64
        both = counts.sum((1, 2))
        cells = torch.stack([both[:, ninth == k // 3][:, :, ninth == k % 3].sum((1, 2)) for k in range(9)], 1)
        placed = (facts[:, 6] >= 0) & (facts[:, 6] < 9)
        assert (cells.argmax(1).numpy() == facts[:, 6])[placed].mean() > 0.9  # ninths of 64 are 22, 21 and 21 wide


ALL_TURNS = [(f, q, r, i) for f in (False, True) for q in range(4) for r in (False, True) for i in (False, True)]


def test_turned_directions_are_those_of_the_plane() -> None:
    row = np.array([[2, 1, DIRECTIONS.index("up-right"), 1, 1, 0, REGIONS.index("upper left")]], dtype=np.int8)

    def direction_and_region(**options: object) -> tuple[str, str]:
        settings = {"flip": False, "quarter": 0, "reverse": False, "invert": False} | options
        turned = turn(row, **settings)[0]
        return DIRECTIONS[turned[2]], REGIONS[turned[6]]

    assert direction_and_region(flip=True) == ("up-left", "upper right")
    assert direction_and_region(quarter=1) == ("down-right", "upper right")
    assert direction_and_region(reverse=True) == ("down-left", "upper left")
    assert direction_and_region(flip=True, quarter=3) == ("down-left", "upper left")
    zoom = row.copy()
    zoom[0, 2] = DIRECTIONS.index("toward")
    assert DIRECTIONS[turn(zoom, flip=True, quarter=2, reverse=True, invert=False)[0, 2]] == "away"


def test_facts_that_are_not_decided_stay_so() -> None:
    row = np.array([[SUBJECTS.index("nothing"), 0, NONE, NONE, AMBIGUOUS, AMBIGUOUS, AMBIGUOUS]], dtype=np.int8)
    assert (turn(row, flip=True, quarter=1, reverse=True, invert=False) == row).all()


def test_classes_have_a_gap_between_them() -> None:
    assert [balance_class(share) for share in (0.3, 0.43, 0.5, 0.56, 0.7)] == [0, AMBIGUOUS, 1, AMBIGUOUS, 2]
    assert [rate_class(rate) for rate in (0.01, 0.18, 0.3, 1.0, 3.0)] == [0, AMBIGUOUS, 1, 2, 3]
    assert region_class([1, 1, 1, 1, 9, 1, 1, 1, 1]) == 4
    assert region_class([5] * 9) == REGIONS.index("everywhere")
    assert region_class([5, 5, 0, 0, 0, 0, 0, 0, 0]) == AMBIGUOUS


def test_a_chunk_on_disk_is_the_chunk_made(tmp_path) -> None:
    write_chunk(tmp_path, 3, 40)
    maps, rows = read_chunk(tmp_path, 3)
    again_maps, again_rows = make_chunk(3, 40)
    assert torch.equal(maps, torch.from_numpy(again_maps)) and (rows == again_rows).all()
    assert [path.name for path in tmp_path.iterdir()] == ["chunk_00003.npz"]


def test_activity_counts_each_polarity_and_times_each_cell() -> None:
    events = Events([0, 40, 50, 99], [0, 0, 3, 3], [0, 0, 1, 1], [1, 1, 0, 0], width=4, height=2)
    maps = activity(events, frames=2, size=2)
    assert maps.shape == (2, 3, 2, 2)
    assert maps[0, 0, 0, 0] == pytest.approx(np.log1p(4 * 2 / 2) / 4)
    assert maps[1, 1, 1, 1] == pytest.approx(np.log1p(4 * 2 / 2) / 4)
    assert maps[0, 2, 0, 0] == pytest.approx(np.mean([0 / 50, 40 / 50]) * 2 - 1)
    assert maps[:, :2].sum() == pytest.approx(2 * np.log1p(4.0) / 4)


def test_activity_does_not_depend_on_sensor_size_or_time_scale() -> None:
    events = simulate_scene(9, kind="shift").events
    tall = Events(events.t * 3, events.x * 2, events.y * 2, events.p, width=2 * SIDE, height=2 * SIDE)
    one, four = activity(events), activity(tall)
    np.testing.assert_allclose(np.expm1(4 * one[:, :2]), 4 * np.expm1(4 * four[:, :2]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one[:, 2], four[:, 2], atol=0.15)


def test_activity_of_nothing_is_zero_and_impossible_sizes_are_refused() -> None:
    empty = Events([], [], [], [], width=10, height=10)
    assert not activity(empty).any()
    for options in ({"frames": 0}, {"size": 0}, {"size": 100_000}, {"frames": True}):
        with pytest.raises(InputError):
            activity(empty, **options)
