"""Typed features refuse what is not theirs; the gate accepts, falls back and rejects by its numbers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cascade_runtime.config import GateConfig
from cascade_runtime.errors import FeatureSpaceError
from cascade_runtime.events.representations.window import source_hash
from cascade_runtime.vision.adapter_verifier import spot_frames
from cascade_runtime.vision.features import VisualFeatures
from cascade_runtime.vision.gate import decide, frame_cosines, random_baseline


def packet(
    value: float = 1.0, *, space: str = "tower-a", source: str = "ab", shape: tuple[int, ...] = (2, 3, 4)
) -> VisualFeatures:
    return VisualFeatures(np.full(shape, value, np.float32), space, ("dense",), source)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (lambda: packet().expect("tower-b", 4), "features.space"),
        (lambda: packet().expect("tower-a", 5), "features.dim"),
        (lambda: packet(shape=(2, 3)), "features.shape"),
        (lambda: packet(shape=(0, 3, 4)), "features.shape"),
        (lambda: VisualFeatures(np.ones((1, 1, 1), np.int32), "s", (), "ab"), "features.dtype"),
        (lambda: VisualFeatures(np.ones((1, 1, 1), np.float32), "s", (), "ab", bfloat16=True), "features.dtype"),
        (lambda: packet(float("nan")).tensor(), "features.data"),
        (lambda: packet().choose_frames((True, False), packet(source="cd")), "features"),
        (lambda: packet().choose_frames((True, False), packet(space="tower-b")), "features.space"),
        (lambda: packet().choose_frames((True,), packet()), "features"),
    ],
)
def test_a_packet_is_refused_by_the_field_that_is_wrong(wrong: object, field: str) -> None:
    with pytest.raises(FeatureSpaceError) as error:
        wrong()  # type: ignore[operator]
    assert error.value.field == field


@given(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_tensors_survive_the_packet_and_the_pickle_bit_for_bit(dtype: torch.dtype) -> None:
    tensor = torch.randn(2, 3, 4).to(dtype)
    made = VisualFeatures.from_tensor(tensor, space="s", transforms=("dense",), source="ab")
    again = pickle.loads(pickle.dumps(made, protocol=5))  # noqa: S301  our own bytes
    assert torch.equal(again.tensor(), tensor) and again.tensor().dtype == dtype
    again.tensor().zero_()
    assert torch.equal(again.tensor(), tensor)  # what a stage does to its copy stays there


def test_frames_are_mixed_one_by_one() -> None:
    mixed = packet(1.0).choose_frames((True, False), packet(2.0))
    assert mixed.data[:, 0, 0].tolist() == [1.0, 2.0]
    assert packet(1.0).choose_frames((True, True), packet(2.0)).data[:, 0, 0].tolist() == [1.0, 1.0]


def test_the_source_hash_is_of_content_shape_and_type() -> None:
    frames = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    tags = {source_hash(frames), source_hash(frames + 1), source_hash(frames.reshape(1, 3, 4, 1))}
    tags.add(source_hash(frames.astype(np.float64)))
    assert len(tags) == 4 and source_hash(frames.copy()) in tags


def test_cosines_are_per_frame_means_over_patches() -> None:
    a = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [3.0, 0.0]]])
    b = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    assert frame_cosines(a, b) == pytest.approx((0.5, 1.0))


def test_the_gate_decides_by_its_bounds_and_its_baseline() -> None:
    config = GateConfig(accept=0.8, reject=0.5)
    decision = decide(config, (0.8, 0.79, 0.5, 0.49, 0.9, float("nan")), (0.0, 0.0, 0.0, 0.0, 0.9, 0.0))
    assert decision.verdicts == ("accepted", "dense", "dense", "rejected", "rejected", "rejected")
    assert decision.accepted == (True, False, False, False, False, False)
    assert decide(config, (0.9, 0.6)).verdicts == ("accepted", "dense")  # predicted: no baseline to beat


def test_the_random_baseline_is_fixed_and_beaten_by_the_truth() -> None:
    torch.manual_seed(0)
    events, dense = torch.randn(2, 16, 8), torch.randn(2, 16, 32)
    baseline = random_baseline(events, dense)
    assert baseline == random_baseline(events, dense)
    assert all(abs(cosine) < 0.3 for cosine in baseline)


@given(st.integers(1, 60), st.floats(0, 1))
def test_spot_measures_a_fixed_fraction(frames: int, fraction: float) -> None:
    chosen = spot_frames("00ff", frames, fraction)
    assert chosen == spot_frames("00ff", frames, fraction) and chosen <= set(range(frames))
    assert fraction * frames <= len(chosen) <= fraction * frames + 1
