"""The family's shape: depths, widths, tokens and files, with random weights."""

from __future__ import annotations

import json

import pytest
import torch

from cascade_runtime.errors import ConfigError
from cascade_runtime.models import load_checkpoint
from cascade_runtime.models.bundled import LAYERS, MEMBERS, family_path
from cascade_runtime.models.event_encoder import load_adapter, load_event_encoder
from cascade_runtime.models.family import (
    SPECIAL_TOKENS,
    VISUAL_TOKENS,
    build_model,
    build_tokenizer,
    read_model,
    write_random_family,
)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("family")
    write_random_family(directory, seed=3)
    return directory


def test_members_load_and_share_one_raw_space(family) -> None:
    models = {name: load_checkpoint(family / name) for name in LAYERS}
    spaces = {model.vision.space for model in models.values() if model.vision is not None}
    assert len(spaces) == 1
    encoder, adapter = load_event_encoder(family / "event_encoder"), load_adapter(family / "adapter")
    assert (adapter.source_space, adapter.target_space) == (encoder.space, spaces.pop())
    frames = torch.rand(2, 3, 64, 64)
    aligned = adapter(encoder(frames))
    for model in models.values():
        assert model.projector is not None
        assert model.projector.project(aligned).shape == (VISUAL_TOKENS, 256)
        assert model.pixels.event_representation == ("activity", {"frames": 2, "size": 64})


def test_depths_are_one_five_and_twenty_and_heavy_has_tens_of_millions(family) -> None:
    sizes = {}
    for name, layers in LAYERS.items():
        model, _ = read_model(family / name)
        assert len(model.model.language_model.layers) == layers
        sizes[name] = sum(parameter.numel() for parameter in model.parameters())
    assert (LAYERS["light"], LAYERS["mid"], LAYERS["heavy"]) == (1, 5, 20)
    assert 10e6 < sizes["heavy"] < 30e6 and sizes["light"] < sizes["mid"] < sizes["heavy"]


def test_heads_have_more_rows_than_the_tokenizer_and_not_equally_many(family) -> None:
    rows = {name: read_model(family / name)[0].lm_head.weight.shape[0] for name in LAYERS}
    entries = read_model(family / "light")[1].get_vocab_size()
    assert min(rows.values()) > entries and len(set(rows.values())) > 1


def test_a_saved_member_is_half_precision_and_comes_back_as_it_was(family) -> None:
    from safetensors.torch import load_file

    weights = load_file(family / "light" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert "lm_head.weight" not in weights and "language_model.lm_head.weight" not in weights
    model, _ = read_model(family / "light")
    assert model.lm_head.weight.data_ptr() == model.model.language_model.embed_tokens.weight.data_ptr()
    assert json.loads((family / "light" / "config.json").read_text())["dtype"] == "float16"


def test_saving_does_not_change_the_model(tmp_path) -> None:
    from cascade_runtime.models.family import save_model

    tokenizer = build_tokenizer(["a few words of text"], 300)
    model = build_model("light", tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(model, tokenizer, tmp_path)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_same_seed_writes_the_same_family(family, tmp_path) -> None:
    write_random_family(tmp_path, seed=3)
    for member in MEMBERS:
        ours, again = (root / member / "model.safetensors" for root in (family, tmp_path))
        assert ours.read_bytes() == again.read_bytes()


def test_an_unknown_member_is_refused_by_name() -> None:
    assert family_path("heavy").name == "heavy"
    with pytest.raises(ConfigError, match="light, mid, heavy, event_encoder, adapter"):
        family_path("huge")
    with pytest.raises(ConfigError):
        build_model("adapter", build_tokenizer(["x"], 300))


def test_special_tokens_are_one_token_each() -> None:
    tokenizer = build_tokenizer(["some text"], 300)
    for token in SPECIAL_TOKENS:
        assert tokenizer.encode(token).ids == [tokenizer.token_to_id(token)]
