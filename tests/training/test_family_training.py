"""Training steps: shared prefixes change nothing, growth keeps the function, losses fall, and a tiny plan makes a
family.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cascade_runtime.models import load_checkpoint
from cascade_runtime.models.bundled import MEMBERS
from cascade_runtime.models.event_encoder import Adapter, EventEncoder, load_adapter, load_event_encoder
from cascade_runtime.models.family import build_model, build_tokenizer, read_model
from cascade_runtime.training.adapter import AdapterConfig, adapter_quality, spoil, train_adapter
from cascade_runtime.training.descent import learning_rate
from cascade_runtime.training.language import (
    IGNORED,
    FactReader,
    LanguageConfig,
    Packer,
    answer_greedily,
    answer_loss,
    choices,
    grow,
    project,
    teach_reading,
    train_language,
)
from cascade_runtime.training.plan import QUICK, train_family
from cascade_runtime.training.pool import read_chunk, write_chunk
from cascade_runtime.training.questions import corpus
from cascade_runtime.training.tower import FactProbe, TowerConfig, encode, train_tower

PAIRS = [("What is moving?", "One disk is moving."), ("Describe the scene.", "In this scene"), ("How fast?", "slow")]


@pytest.fixture(scope="module")
def packer() -> Packer:
    return Packer(build_tokenizer(list(corpus())))


@pytest.fixture(scope="module")
def light(packer: Packer):
    torch.manual_seed(0)
    return build_model("light", packer.tokenizer).eval()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("pool")
    write_chunk(directory, 0, 128)
    return directory


@torch.no_grad()
def test_pairs_that_share_a_prefix_lose_as_much_as_alone(packer: Packer, light) -> None:
    raw = torch.randn(2, 2, 64, 128)
    together, _ = answer_loss(light, packer.pack([PAIRS, PAIRS[:2]]), raw, packer)
    total, tokens = 0.0, 0
    for row, pairs in ((0, PAIRS), (1, PAIRS[:2])):
        for pair in pairs:
            alone = packer.pack([[pair]])
            count = int((alone.targets != IGNORED).sum())
            loss, _ = answer_loss(light, alone, raw[row : row + 1], packer)
            total, tokens = total + count * float(loss), tokens + count
    assert float(together) == pytest.approx(total / tokens, abs=1e-4)


@torch.no_grad()
def test_training_prompts_are_the_prompts_of_the_loaded_checkpoint(packer: Packer, light, tmp_path) -> None:
    from cascade_runtime.models.family import save_model

    save_model(light, packer.tokenizer, tmp_path)
    loaded = load_checkpoint(tmp_path)
    prompt = loaded.prompts.build("What is moving?", num_visual=None, frames=2)
    packed = packer.pack_ids([[("What is moving?", [])]])
    assert prompt.input_ids.tolist() == packed.ids[0].tolist()
    raw = torch.randn(1, 2, 64, 128)
    assert loaded.projector is not None
    again, _ = read_model(tmp_path)
    assert torch.allclose(loaded.projector.project(raw[0]), project(again, raw)[0], atol=1e-5)


@torch.no_grad()
def test_features_are_those_of_the_loaded_tower(packer: Packer, light, tmp_path) -> None:
    from cascade_runtime.models.family import save_model

    save_model(light, packer.tokenizer, tmp_path)
    loaded, again = load_checkpoint(tmp_path), read_model(tmp_path)[0]
    maps = torch.rand(2, 3, 64, 64)
    assert loaded.vision is not None
    raw = loaded.vision.encode(loaded.pixels(maps.numpy()))
    assert torch.allclose(raw, encode(again.model.vision_tower, maps[None])[0], atol=1e-5)


@torch.no_grad()
def test_growth_keeps_the_function(packer: Packer, light) -> None:
    torch.manual_seed(1)
    deep = build_model("mid", packer.tokenizer).eval()
    raw, packed = torch.randn(1, 2, 64, 128), packer.pack([PAIRS])
    before, _ = answer_loss(deep, packed, raw, packer)
    grow(light, deep)
    grown, _ = answer_loss(deep, packed, raw, packer)
    shallow, _ = answer_loss(light, packed, raw, packer)
    assert float(grown) == pytest.approx(float(shallow), abs=1e-4) != pytest.approx(float(before), abs=1e-4)
    assert all(block.self_attn.q_proj.weight.abs().sum() > 0 for block in deep.model.language_model.layers)


def test_greedy_answers_are_what_the_model_chooses_after_them(packer: Packer, light) -> None:
    raw = torch.randn(2, 2, 64, 128)
    questions = ["What is moving?", "Where is the activity in this long question?"]
    said = answer_greedily(light, packer, raw, questions, max_tokens=6)
    for row, (question, ids) in enumerate(zip(questions, said, strict=True)):
        packed = packer.pack_ids([[(question, ids)]])
        counted = packed.targets != IGNORED
        wanted, chosen = packed.targets[counted], choices(light, packed, raw[row : row + 1], packer)[counted]
        assert wanted[: len(ids)].tolist() == chosen[: len(ids)].tolist()


def test_the_tower_learns_from_clips(pool) -> None:
    torch.manual_seed(2)
    tower = build_model("light", build_tokenizer(["x"], 300)).model.vision_tower
    probe, held_out = FactProbe(), read_chunk(pool, 0)
    config = TowerConfig(clips=960, batch=32, learning_rate=2e-3, report_every=10_000)
    lines: list[str] = []
    accuracy = train_tower(tower, pool, range(1), held_out, config, probe=probe, progress=lines.append)
    assert accuracy["speed"] > 0.42 and accuracy["rate"] > 0.5  # chance is .33 and about .35
    assert set(accuracy) == {"subject", "count", "direction", "speed", "rate", "balance", "region"} and lines


def test_a_model_learns_a_few_answers_by_heart(packer: Packer) -> None:
    torch.manual_seed(3)
    model = build_model("light", packer.tokenizer)
    raw = torch.randn(4, 2, 64, 128)
    answers = ["One disk is moving to the left.", "Two bars move upward.", "Nothing is moving.", "It is a fast motion."]

    def clips():
        while True:
            yield raw, [[("What is moving?", answer)] for answer in answers], None

    config = LanguageConfig(clips=4 * 60, batch=4, learning_rate=3e-3, report_every=1000)
    train_language(model, clips(), packer, config, name="light", progress=lambda line: None)
    said = answer_greedily(model, packer, raw, ["What is moving?"] * 4)
    assert [packer.tokenizer.decode(ids) for ids in said] == answers


def test_reading_is_learnt_from_the_prefix_alone(packer: Packer) -> None:
    torch.manual_seed(5)
    model = build_model("mid", packer.tokenizer)
    reader = FactReader(model, packer)
    rows = np.array([[2, 1, 0, 0, 0, 0, 0], [3, 2, 1, 1, 1, 1, 1], [4, 3, 2, 2, 2, 2, 2]], dtype=np.int8)
    raw = torch.randn(3, 2, 64, 128)
    top = model.model.language_model.layers[4].mlp.up_proj.weight.detach().clone()
    lines: list[str] = []
    config = LanguageConfig(clips=120, batch=3, learning_rate=2e-3, report_every=60)
    teach_reading(model, reader, iter([(raw, rows)] * 40), packer, config, progress=lines.append)
    assert float(lines[-1].split()[-1]) < 0.5 < 1.0
    assert len(model.model.language_model.layers) == 5
    assert torch.equal(model.model.language_model.layers[4].mlp.up_proj.weight, top)


def test_the_adapter_comes_closer_to_the_tower(pool) -> None:
    torch.manual_seed(4)
    tower = build_model("light", build_tokenizer(["x"], 300)).model.vision_tower.eval()
    encoder, adapter = EventEncoder(width=32, layers=1), Adapter(source_dim=32, target_dim=128, hidden=64)
    maps, _ = read_chunk(pool, 0)
    before = adapter_quality(encoder, adapter, tower, maps)
    config = AdapterConfig(clips=640, learning_rate=3e-3, report_every=10_000)
    quality = train_adapter(encoder, adapter, tower, pool, range(1), maps, config, progress=lambda line: None)
    assert quality["cosine"] > before["cosine"] + 0.4 and quality["gate_error"] < 0.25


def test_spoiling_damages_some_clips_and_leaves_the_rest() -> None:
    maps = torch.rand(40, 2, 3, 64, 64)
    spoilt = spoil(maps, 0.5, np.random.default_rng(0))
    changed = (spoilt != maps).flatten(1).any(1)
    assert 8 <= int(changed.sum()) <= 32
    assert torch.equal(spoil(maps, 0.0, np.random.default_rng(0)), maps)


def test_the_rate_warms_up_and_comes_down() -> None:
    rates = [learning_rate(done, 1.0, 0.1) for done in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert rates == pytest.approx([0.01, 0.5, 1.0, 0.51, 0.02])


def test_a_tiny_plan_makes_a_family_that_loads(tmp_path) -> None:
    def few(config, clips: int):
        return replace(config, clips=clips, report_every=10_000)

    plan = replace(
        QUICK,
        chunks=1,
        chunk_clips=64,
        tower=(few(TowerConfig(batch=16), 32),),
        reading=few(QUICK.reading, 32),
        light=few(QUICK.light, 6),
        mid=few(QUICK.mid, 6),
        heavy=few(QUICK.heavy, 4),
        adapter=few(replace(QUICK.adapter, batch=16), 32),
        spoken_clips=8,
        spoken_pairs=1,
        mid_taught=few(QUICK.mid_taught, 6),
        light_taught=few(QUICK.light_taught, 8),
    )
    lines: list[str] = []
    train_family(tmp_path, plan=plan, progress=lines.append)
    heavy = load_checkpoint(tmp_path / "heavy")
    encoder, adapter = load_event_encoder(tmp_path / "event_encoder"), load_adapter(tmp_path / "adapter")
    assert heavy.vision is not None and adapter.target_space == heavy.vision.space
    assert adapter.source_space == encoder.space
    for member in ("light", "mid"):
        loaded = load_checkpoint(tmp_path / member)
        assert loaded.vision is not None and loaded.vision.space == heavy.vision.space
    assert all((tmp_path / member).is_dir() for member in MEMBERS)
    for step in ("pool", "tower", "reading", "light", "mid", "heavy", "adapter", "mid, taught", "light, taught"):
        assert any(line.startswith(step) for line in lines), step
