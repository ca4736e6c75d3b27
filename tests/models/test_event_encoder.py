"""Event encoder and adapter: shapes, what is stored, and every way a directory can be wrong."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade_runtime.errors import ConfigError, FeatureSpaceError, InputError
from cascade_runtime.models.event_encoder import (
    Adapter,
    EventEncoder,
    load_adapter,
    load_event_encoder,
    save_adapter,
    save_event_encoder,
)


@pytest.fixture
def encoder() -> EventEncoder:
    torch.manual_seed(0)
    return EventEncoder(size=32, patch=8, width=24, layers=2, heads=4).eval()


@pytest.fixture
def adapter() -> Adapter:
    torch.manual_seed(1)
    return Adapter(source_dim=24, target_dim=40, hidden=16, source_space="events-1", target_space="siglip-1").eval()


@torch.no_grad()
def test_frames_do_not_see_each_other(encoder: EventEncoder) -> None:
    frames = torch.rand(3, 3, 32, 32)
    together = encoder(frames)
    assert together.shape == (3, 16, 24)
    assert torch.allclose(together[1], encoder(frames[1:2])[0], atol=1e-5)


@torch.no_grad()
def test_an_encoder_comes_back_within_half_precision_under_the_tag_it_was_given(encoder, tmp_path) -> None:
    tag = save_event_encoder(encoder, tmp_path)
    loaded = load_event_encoder(tmp_path)
    assert loaded.space == tag and tag.startswith("events-") and loaded.feature_size == 24
    frames = torch.rand(2, 3, 32, 32)
    assert torch.allclose(loaded(frames), encoder(frames), atol=2e-2)
    assert load_event_encoder(tmp_path, dtype=torch.float16).position.dtype == torch.float16
    assert load_event_encoder(tmp_path, dtype="float64").position.dtype == torch.float64


def test_other_weights_get_another_tag(encoder, tmp_path) -> None:
    first = save_event_encoder(encoder, tmp_path / "a")
    with torch.no_grad():
        encoder.position[0, 0] += 1.0
    assert save_event_encoder(encoder, tmp_path / "b") != first


@torch.no_grad()
def test_an_adapter_comes_back_with_its_spaces(adapter, tmp_path) -> None:
    save_adapter(adapter, tmp_path)
    loaded = load_adapter(tmp_path)
    assert (loaded.source_space, loaded.target_space) == ("events-1", "siglip-1")
    features = torch.randn(2, 16, 24)
    assert torch.allclose(loaded(features), adapter(features), atol=2e-2)
    cosine = loaded.predicted_cosine(features)
    assert cosine.shape == (2,) and cosine.abs().max() <= 1
    assert torch.allclose(cosine, adapter.predicted_cosine(features), atol=2e-2)


def test_wrong_shapes_are_refused(encoder, adapter) -> None:
    with pytest.raises(InputError, match="frames"):
        encoder(torch.rand(2, 3, 64, 64))
    with pytest.raises(FeatureSpaceError, match="features"):
        adapter(torch.rand(2, 16, 25))
    with pytest.raises(FeatureSpaceError):
        adapter.predicted_cosine(torch.rand(2, 24))
    with pytest.raises(ConfigError):
        EventEncoder(size=30, patch=8)


def change(path, **fields: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "cascade_adapter"}, "model_type"),
        ({"width": "24"}, "width"),
        ({"width": 10**9}, "width"),
        ({"layers": True}, "layers"),
        ({"layers": 3}, "model.safetensors"),
        ({"width": 4096, "layers": 64}, "model.safetensors"),
    ],
)
def test_a_config_that_lies_is_refused_by_field(encoder, tmp_path, fields, named) -> None:
    save_event_encoder(encoder, tmp_path)
    change(tmp_path, **fields)
    with pytest.raises(ConfigError, match=named):
        load_event_encoder(tmp_path)


def test_broken_files_are_refused(encoder, adapter, tmp_path) -> None:
    save_event_encoder(encoder, tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="safetensors"):
        load_event_encoder(tmp_path)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    tensors.pop("position")
    save_file(tensors, weights)
    with pytest.raises(ConfigError, match="position"):
        load_event_encoder(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_event_encoder(tmp_path)
    with pytest.raises(ConfigError, match="checkpoint"):
        load_event_encoder(tmp_path / "nowhere")
    save_adapter(adapter, tmp_path / "adapter")
    change(tmp_path / "adapter", target_space=None)
    with pytest.raises(ConfigError, match="target_space"):
        load_adapter(tmp_path / "adapter")
