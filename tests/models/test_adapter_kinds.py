"""Adapters of every kind: where they begin, what they may see, what is frozen, and that the loader takes them."""

from __future__ import annotations

import json

import pytest
import torch

from cascade_runtime.errors import ConfigError, FeatureSpaceError
from cascade_runtime.models.adapter_kinds import KINDS, KindAdapter
from cascade_runtime.models.event_encoder import Adapter, alignment_loss, load_adapter, save_adapter
from cascade_runtime.training.event_adapters import FeaturePairs, fit_kind

SOURCE, TARGET, HIDDEN = 6, 10, 12


@pytest.fixture
def base() -> Adapter:
    torch.manual_seed(0)
    return Adapter(source_dim=SOURCE, target_dim=TARGET, hidden=HIDDEN, source_space="events-a", target_space="tower-b")


def _made(kind: str) -> KindAdapter:
    torch.manual_seed(1)
    return KindAdapter(
        kind, source_dim=SOURCE, target_dim=TARGET, hidden=4, base_hidden=HIDDEN, source_space="e", target_space="t"
    )


@pytest.mark.parametrize("kind", ["houlsby", "lora"])
@torch.no_grad()
def test_what_stands_on_an_adapter_begins_as_that_adapter(kind: str, base: Adapter) -> None:
    adapter, features = _made(kind), torch.randn(3, 5, SOURCE)
    adapter.build_on(base)
    assert torch.allclose(adapter(features), base(features), atol=1e-6)
    assert torch.equal(adapter.predicted_cosine(features), base.predicted_cosine(features))


@pytest.mark.parametrize("kind", ["bottleneck", "attention", "causal"])
@torch.no_grad()
def test_residual_kinds_begin_as_their_linear_map(kind: str) -> None:
    adapter, features = _made(kind), torch.randn(3, 5, SOURCE)
    linear = adapter.body[0] if kind == "bottleneck" else adapter.body.base
    assert torch.allclose(adapter(features), linear(features), atol=1e-6)


def _depends(kind: str) -> torch.Tensor:
    """(F, F) bool: whether frame i of the output depends on frame j of the input."""
    adapter = _made(kind)
    with torch.no_grad():
        for weight in adapter.body.parameters():
            weight.normal_()
    features = torch.randn(3, 4, SOURCE, requires_grad=True)
    rows = []
    for frame in range(3):
        (gradient,) = torch.autograd.grad(adapter(features)[frame].sum(), features)
        rows.append(gradient.abs().sum((1, 2)) > 0)
    return torch.stack(rows)


def test_causal_looks_at_this_and_earlier_frames_and_others_at_this_one() -> None:
    assert torch.equal(_depends("causal"), torch.ones(3, 3).tril().bool())
    for kind in set(KINDS) - {"causal"}:
        assert torch.equal(_depends(kind), torch.eye(3).bool()), kind


def test_attention_looks_at_other_patches_and_a_bottleneck_does_not() -> None:
    for kind, looks in (("attention", True), ("bottleneck", False), ("mlp", False)):
        adapter = _made(kind)
        with torch.no_grad():
            for weight in adapter.body.parameters():
                weight.normal_()
        features = torch.randn(1, 4, SOURCE, requires_grad=True)
        (gradient,) = torch.autograd.grad(adapter(features)[0, 0].sum(), features)
        assert bool(gradient[0, 1:].any()) == looks


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_kind_is_loaded_as_it_was_saved(kind: str, base: Adapter, tmp_path) -> None:
    adapter = _made(kind)
    adapter.build_on(base)
    save_adapter(adapter, tmp_path)
    loaded = load_adapter(tmp_path)
    features = torch.randn(2, 3, 5, SOURCE)
    assert isinstance(loaded, KindAdapter) and loaded.kind == kind and loaded.target_space == "t"
    assert torch.allclose(loaded(features), adapter(features), atol=2e-2)
    assert torch.allclose(loaded(features)[1], loaded(features[1]), atol=1e-6)  # clips do not see each other


@pytest.mark.parametrize("fields", [{"kind": "magic"}, {"kind": ["mlp"]}, {"base_hidden": 0}, {"hidden": 10**9}])
def test_a_checkpoint_of_no_kind_is_refused(fields, tmp_path) -> None:
    save_adapter(_made("mlp"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **fields}))
    with pytest.raises(ConfigError, match=next(iter(fields))):
        load_adapter(tmp_path)


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(FeatureSpaceError):
        _made("linear")(torch.zeros(2, 3, SOURCE + 1))


def test_the_loss_of_alignment_has_its_hand_value() -> None:
    dense = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert float(alignment_loss(dense, dense)) == pytest.approx(0.0, abs=1e-6)
    # cosine -1, squared error 2, spread .5 (unbiased variance of 1, 0 and of 0, 1)
    assert float(alignment_loss(-dense, dense)) == pytest.approx(2.0 + 0.5 * 2.0 / 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_comes_closer_and_leaves_what_is_frozen(kind: str, base: Adapter) -> None:
    torch.manual_seed(2)
    event = torch.randn(40, 2, 4, SOURCE)
    dense = torch.tanh(event @ torch.randn(SOURCE, TARGET))
    losses: list[str] = []
    pairs = FeaturePairs(event, dense)
    adapter = fit_kind(kind, base, pairs, hidden=8, steps=60, rate=2e-2, progress=losses.append)
    begun = fit_kind(kind, base, pairs, hidden=8, steps=1, rate=1e-9, progress=lambda line: None)
    with torch.no_grad():
        before, after = (
            float(alignment_loss(each(event).flatten(0, 1), dense.flatten(0, 1))) for each in (begun, adapter)
        )
    assert after < 0.6 * before and adapter.target_space == base.target_space
    if kind in ("houlsby", "lora"):
        assert torch.equal(adapter.body.base.up.weight, base.up.weight)
