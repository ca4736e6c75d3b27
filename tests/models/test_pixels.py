"""Pixels: the numbers of the checkpoint's own file, and the results of the library's processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cascade_runtime.errors import ConfigError, InputError
from cascade_runtime.models import PixelProcessor
from cascade_runtime.models.pixels import smart_size

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
FIELDS = {"image_mean": MEAN, "image_std": STD, "size": {"height": 56, "width": 42}, "resample": 3}


def smooth_frame(height, width):
    """A picture with edges and gradients, as natural ones have."""
    y, x = np.mgrid[0:height, 0:width]
    waves = 127 + 90 * np.sin(x / 9) * np.cos(y / 7)
    return np.stack([waves, np.where((x // 16 + y // 16) % 2, 230, 30), 255 * x / width], axis=-1).astype(np.uint8)


def test_a_frame_of_the_right_size_is_only_scaled_and_normalised():
    frame = np.random.default_rng(0).integers(0, 256, (1, 56, 42, 3), dtype=np.uint8)
    pixels = PixelProcessor(FIELDS, family="llava_onevision")(frame)
    expected = (frame[0].astype(np.float64) / 255 - MEAN) / STD
    assert pixels.frames == 1 and pixels.grid is None
    assert np.allclose(pixels.values[0].numpy(), expected.transpose(2, 0, 1), atol=1e-5)


def test_every_switch_of_the_file_is_obeyed():
    frame = np.full((1, 56, 42, 3), 51, dtype=np.uint8)
    plain = PixelProcessor({**FIELDS, "do_normalize": False}, family="llava_onevision")(frame)
    assert torch.allclose(plain.values, torch.tensor(0.2))
    raw = PixelProcessor({**FIELDS, "do_normalize": False, "do_rescale": False}, family="llava_onevision")(frame)
    assert torch.equal(raw.values, torch.full((1, 3, 56, 42), 51.0))
    halved = PixelProcessor({**FIELDS, "do_normalize": False, "rescale_factor": 0.5}, family="llava_onevision")(frame)
    assert torch.equal(halved.values, torch.full((1, 3, 56, 42), 25.5))
    kept = PixelProcessor({**FIELDS, "do_resize": False}, family="llava_onevision")(frame[:, :30])
    assert kept.values.shape == (1, 3, 30, 42)


def test_frames_drawn_as_floats_are_not_scaled_again():
    drawn = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64)
    same = PixelProcessor({"do_resize": False, "do_normalize": False}, family="llava_onevision")(drawn)
    assert torch.equal(same.values, drawn)


@pytest.mark.parametrize(("resample", "height", "width"), [(3, 90, 130), (2, 90, 130), (3, 30, 40), (3, 384, 640)])
def test_resizing_is_pillows_within_one_level_of_255(resample, height, width):
    image = pytest.importorskip("PIL.Image")
    frame = smooth_frame(height, width)
    fields = {**FIELDS, "resample": resample, "do_normalize": False, "do_rescale": False}
    ours = PixelProcessor(fields, family="llava_onevision")(frame[None]).values[0].numpy()
    theirs = np.asarray(image.fromarray(frame).resize((42, 56), resample=resample), dtype=np.float32).transpose(2, 0, 1)
    assert np.abs(ours - theirs).max() <= 1
    assert np.abs(ours - theirs).mean() < 0.15  # both round: Pillow after each of its two passes


def test_shortest_edge_and_centre_crop_are_the_librarys_clip_processor():
    pytest.importorskip("PIL")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    fields = {
        **FIELDS,
        "size": {"shortest_edge": 56},
        "do_center_crop": True,
        "crop_size": {"height": 56, "width": 56},
    }
    for height, width in ((70, 121), (133, 80), (56, 56)):
        frame = smooth_frame(height, width)
        theirs = CLIPImageProcessorPil(**fields, do_convert_rgb=True)(frame, return_tensors="np")["pixel_values"][0]
        ours = PixelProcessor(fields, family="video_llava")(frame[None]).values[0].numpy()
        assert ours.shape == theirs.shape == (3, 56, 56)
        assert np.abs(ours - theirs).max() <= 1.01 / 255 / min(STD)
        assert np.abs(ours - theirs).mean() < 0.15 / 255 / min(STD)


def test_patches_are_laid_out_as_the_librarys_qwen2_vl_processor_lays_them():
    pytest.importorskip("PIL")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    fields = {"image_mean": MEAN, "image_std": STD, "min_pixels": 28 * 28, "max_pixels": 84 * 84, "resample": 3}
    ours = PixelProcessor(fields, family="qwen2_vl")
    reference = Qwen2VLImageProcessorPil(**fields)
    for height, width in ((56, 84), (100, 61), (20, 20)):
        frame = smooth_frame(height, width)
        theirs = reference(frame, return_tensors="np")
        still = ours(np.stack([frame, frame]))
        assert still.grid == tuple(theirs["image_grid_thw"][0].tolist())
        assert still.values.shape == theirs["pixel_values"].shape
        assert np.abs(still.values.numpy() - theirs["pixel_values"]).max() <= 1.01 / 255 / min(STD)
    first, second = smooth_frame(56, 84), 255 - smooth_frame(56, 84)
    both = ours(np.stack([first, second])).values.view(-1, 3, 2, 14, 14)
    for step, frame in enumerate((first, second)):  # each step of a patch is its own frame's
        alone = ours(np.stack([frame, frame])).values.view(-1, 3, 2, 14, 14)
        assert torch.equal(both[:, :, step], alone[:, :, step])
    odd = ours(np.stack([first, second, first]))
    assert odd.grid == (2, 4, 6)
    assert torch.equal(odd.values[24:], ours(first[None]).values)  # the last frame is repeated


def test_smart_size_keeps_the_range_and_the_factor():
    for height, width in ((100, 100), (1080, 1920), (10, 400), (3000, 20)):
        tall, wide = smart_size(height, width, 28, 56 * 56, 28 * 28 * 1280)
        assert tall % 28 == wide % 28 == 0
        assert 56 * 56 <= tall * wide <= 28 * 28 * 1280
    with pytest.raises(InputError, match="aspect"):
        smart_size(1, 201, 28, 1, 10**6)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, 3, 56, 42), np.uint8),
        np.zeros((1, 56, 42, 3), np.float32),
        np.zeros((56, 42, 3), np.uint8),
        np.zeros((0, 56, 42, 3), np.uint8),
        np.zeros((1, 56, 42, 3), np.int64),
        np.zeros((4097, 1, 1, 3), np.uint8),
        np.full((1, 3, 4, 4), np.nan, np.float32),
    ],
    ids=["8-bit channels first", "float channels last", "one picture", "none", "int64", "too many", "not finite"],
)
def test_frames_of_another_kind_are_refused(frames):
    with pytest.raises(InputError, match="frames"):
        PixelProcessor(FIELDS, family="llava_onevision")(frames)


def test_a_blow_up_is_refused_before_it_is_allocated():
    huge = PixelProcessor({**FIELDS, "size": {"height": 16384, "width": 16384}}, family="llava_onevision")
    with pytest.raises(InputError, match="after resizing"):
        huge(np.zeros((8, 2, 2, 3), np.uint8))
    strip = PixelProcessor({**FIELDS, "size": {"shortest_edge": 16384}}, family="video_llava")
    with pytest.raises(InputError, match="after resizing"):
        strip(np.zeros((1, 1, 16384, 3), np.uint8))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_std": [0.2, 0.0, 0.2]}, "image_std"),
        ({"image_mean": None}, "image_mean"),
        ({"size": {"height": 0, "width": 5}}, "height"),
        ({"size": {"height": 10**9, "width": 5}}, "height"),
        ({"size": "big"}, "size"),
        ({"resample": 1}, "resample"),
        ({"do_resize": "yes"}, "do_resize"),
        ({"rescale_factor": float("nan")}, "rescale_factor"),
        ({"do_center_crop": True}, "crop_size"),
        ({"event_representation": {"frames": 2}}, "event_representation"),
    ],
)
def test_a_file_that_cannot_be_followed_is_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        PixelProcessor({**FIELDS, **change}, family="llava_onevision")


def test_without_a_word_on_events_frames_are_eventgpts():
    assert PixelProcessor(FIELDS, family="llava_onevision").event_representation == (
        "event_frame/last_wins",
        {"frames": 5},
    )


def test_read_only_arrays_from_a_store_are_taken_and_left_alone():
    frames = np.full((1, 56, 42, 3), 9, np.uint8)
    frames.flags.writeable = False
    PixelProcessor(FIELDS, family="llava_onevision")(frames)
    assert (frames == 9).all()
