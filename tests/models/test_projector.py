"""Tower, then projector, equals the library's get_video_features; what may be shared is the tower's raw output."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import tiny_checkpoint
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionForConditionalGeneration

from cascade_runtime.errors import FeatureSpaceError, InputError
from cascade_runtime.models import Pixels, load_checkpoint


def library_features(model, library, pixels):
    if model.family == "qwen2_vl":
        out = library.model.get_video_features(pixels.values, torch.tensor([pixels.grid]))
        return torch.cat(out.pooler_output)
    return library.model.get_video_features(pixels.values[None]).pooler_output.flatten(0, -2)


@torch.inference_mode()
def test_tower_then_projector_is_get_video_features(pair, frames):
    model, library = pair
    pixels = model.pixels(frames)
    raw = model.vision.encode(pixels)
    ours = model.projector.project(raw)
    theirs = library_features(model, library, pixels)
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=1e-6)
    assert raw.shape[2] == model.vision.feature_size == model.projector.feature_size
    assert len(ours) == model.prompts.visual_tokens(pixels.frames, pixels.grid)


@torch.inference_mode()
def test_more_frames_than_one_pass_takes_change_nothing(pair, frames):
    model, library = pair
    many = torch.cat([torch.from_numpy(frames)] * 4).numpy()[:11]
    pixels = model.pixels(many)
    ours = model.projector.project(model.vision.encode(pixels))
    assert torch.allclose(ours, library_features(model, library, pixels), atol=1e-6, rtol=1e-6)


@torch.inference_mode()
def test_several_feature_layers_are_joined_as_the_library_joins_them(tmp_path, frames):
    tiny_checkpoint("llava_onevision", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_feature_layer"] = [-2, -1]
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path)
    rebuilt = LlavaOnevisionForConditionalGeneration(type(model.config).from_dict(config))
    rebuilt.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path)
    pixels = ours.pixels(frames)
    raw = ours.vision.encode(pixels)
    assert raw.shape[2] == 64
    theirs = library_features(ours, rebuilt.eval(), pixels)
    assert torch.allclose(ours.projector.project(raw), theirs, atol=1e-6, rtol=1e-6)


def test_raw_features_of_another_shape_are_refused(pair):
    model, _ = pair
    positions = model.projector.positions or 8
    for shape in (
        (1, positions, model.projector.feature_size + 1),
        (positions, model.projector.feature_size),
        (0, 1, 1),
    ):
        with pytest.raises(FeatureSpaceError, match="raw features"):
            model.projector.project(torch.zeros(shape))
    with pytest.raises(InputError, match="pixels"):
        model.vision.encode(Pixels(torch.zeros(1, 3, 28, 42), 1))


def test_the_space_follows_the_tower_and_nothing_else(tmp_path):
    one = load_checkpoint(tiny_checkpoint("llava_onevision", tmp_path / "a", seed=1))
    same = load_checkpoint(tmp_path / "a", parts=("projector",), dtype="bfloat16")
    other = load_checkpoint(tiny_checkpoint("llava_onevision", tmp_path / "b", seed=2), parts=("vision",))
    assert one.space == one.vision.space == one.projector.space == same.projector.space
    assert one.space.startswith("siglip-") and len(one.space) == len("siglip-") + 12
    assert other.space != one.space
    # another language model and projector around the same tower: the same space
    library = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path / "a")
    with torch.no_grad():
        library.model.multi_modal_projector.linear_1.weight.add_(1)
        library.lm_head.weight.add_(1)
    tiny_checkpoint("llava_onevision", tmp_path / "c")
    library.save_pretrained(tmp_path / "c")
    assert load_checkpoint(tmp_path / "c", parts=("projector",)).space == one.space
    with torch.no_grad():
        library.model.vision_tower.encoder.layers[1].mlp.fc1.bias[3] += 1e-3
    library.save_pretrained(tmp_path / "c")
    assert load_checkpoint(tmp_path / "c", parts=("projector",)).space != one.space
