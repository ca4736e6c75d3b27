"""A compressor learns, its drafter does not; the gate takes what is cheap; training sees what running sees."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from cascade_runtime.config import Sees, load_recipe
from cascade_runtime.decoding.level import Level
from cascade_runtime.events.cell_counts import cell_counts
from cascade_runtime.models.bundled import family_path
from cascade_runtime.models.compressor import OPTIONS, Compressor
from cascade_runtime.models.family import read_model
from cascade_runtime.training.compressor import (
    CompressorConfig,
    map_counts,
    narrowed,
    option_costs,
    train_gate,
    train_sight,
)
from cascade_runtime.training.distillation import Said
from cascade_runtime.training.language import Packer
from cascade_runtime.training.scenes import simulate_scene
from cascade_runtime.vision.event_branch import EventBranch
from cascade_runtime.vision.features import VisualFeatures

PAIRS = [("What moves?", "A bar moves left."), ("How fast is it?", "Slow.")]


@pytest.fixture(scope="module")
def light():
    model, tokenizer = read_model(family_path("light"))
    return model, Packer(tokenizer)


def some_clips(packer, rows: int = 4):
    raw = torch.randn(rows, 2, 64, 128, generator=torch.Generator().manual_seed(1))
    while True:
        yield raw, [PAIRS] * rows, None


def test_a_compressor_learns_and_its_drafter_stays_as_it_is(light) -> None:
    model, packer = light
    torch.manual_seed(0)
    compressor, said = Compressor(256), list[str]()
    before = {name: value.clone() for name, value in (*model.named_parameters(), *compressor.named_parameters())}
    config = CompressorConfig(clips=96, batch=4, report_every=24, learning_rate=3e-3)
    train_sight(model, compressor, some_clips(packer), packer, config, progress=said.append)
    losses = [[float(word) for word in re.findall(r"(?:conv|resampler) ([\d.]+)", line)] for line in said]
    assert len(said) == 4 and all(last < 0.9 * first for first, last in zip(losses[0], losses[-1], strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert not torch.equal(compressor.queries, before["queries"]) and torch.equal(
        compressor.gate.weight, before["gate.weight"]
    )


def test_the_gate_learns_which_option_is_cheap_for_which_text() -> None:
    torch.manual_seed(0)
    compressor, kind = Compressor(256), torch.arange(60) % 3
    texts = torch.randn(3, 256)[kind] + 0.1 * torch.randn(60, 256)
    costs = torch.full((60, 5), 0.3)
    costs[torch.arange(60), torch.tensor([1, 3, 4])[kind]] = 0.1
    assert train_gate(compressor, texts, costs, 100).tolist() == pytest.approx([0, 1 / 3, 0, 1 / 3, 1 / 3])
    assert OPTIONS[compressor.choose(texts[2:3])] == "text"


def test_maps_tell_how_events_are_spread_as_the_events_do() -> None:
    events = simulate_scene(seed=7_100_000).events
    branch = EventBranch(("activity", {"frames": 2, "size": 64}), None, counts=True)
    view = branch.view(events)
    assert view.density is not None
    exact = view.density.reshape(2, 4, 14, 4, 14).sum((2, 4)).flatten()
    found = map_counts(torch.from_numpy(view.frames)[None])[0].numpy()
    assert np.allclose(found / found.sum(), exact / exact.sum(), atol=1e-3) and exact.sum() > 1000
    assert cell_counts(events, np.zeros(len(events), int), 1, cells=2).sum() == len(events)


@pytest.mark.parametrize("sees", OPTIONS)
def test_training_sees_what_running_sees(light, sees: str) -> None:
    model, packer = light
    recipe = load_recipe("light_heavy", [f'stages.light.sees="{sees}"'])
    level = Level.load(recipe.stages[0], recipe.cascade)
    rng = np.random.default_rng(3)
    raw = torch.from_numpy(rng.normal(size=(1, 2, 64, 128)).astype(np.float32))
    density = rng.integers(0, 50, (2, 56, 56)).astype(np.float32)
    features = VisualFeatures(raw[0].numpy(), level.space, ("dense",), "ab", density=density)
    prompt = level.prompt(PAIRS[0][0], features)
    counts = torch.from_numpy(density.reshape(2, 4, 14, 4, 14).sum((2, 4)).reshape(1, 32))
    compressor = level.sight.compressor if level.sight else None
    with torch.no_grad():
        packed = packer.pack([PAIRS[:1]])
        embeds, rest = narrowed(model, packed, raw, counts, packer, Sees.parse(sees), compressor)
    n = len(prompt)
    assert torch.allclose(embeds[0, :n], prompt.embeds, atol=1e-4)
    assert torch.equal(rest.positions[0, :n], prompt.positions)
    assert (rest.targets != -100).sum() == (packed.targets != -100).sum()


def test_an_option_costs_what_it_gets_wrong_and_what_it_leaves(light) -> None:
    model, packer = light
    maps = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) / 4
    raw = next(some_clips(packer, 2))[0]
    texts, costs = option_costs(
        model, Compressor(256), Said(maps, [PAIRS, PAIRS[:1]]), lambda maps: raw[: len(maps)], packer
    )
    assert texts.shape == (3, 256) and costs.shape == (3, 5)
    assert torch.equal(texts[0], texts[2]) and not torch.equal(texts[0], texts[1])
    share = costs - 0.02 * torch.tensor([9, 9, 12, 3, 0]) / 33  # of wrong tokens
    tokens = [len(packer.encode(answer)) + 1 for _, answer in (*PAIRS, PAIRS[0])]
    wrong = share * torch.tensor(tokens)[:, None]
    assert torch.allclose(wrong, wrong.round(), atol=1e-4) and float(wrong.max()) > 0
