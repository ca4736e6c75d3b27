"""The order of the steps and how much of each: `train_family(out_dir)` makes every directory of the family.

    pool      simulate clips                                                     pool.py, scenes.py
    tower     classify facts, twice round                                        tower.py
    light     one block: reads the visual prefix, then learns to answer          language.py, clips.py
    mid       light grown to 5 blocks, learns on                                 language.grow
    heavy     mid grown to 20 blocks, learns on; all on the same frozen tower
    adapter   event encoder into the tower's space, gate head                    adapter.py
    mid, light once more, taught by heavy's own answers                          distillation.py

Depth is paid for in clips: a clip costs heavy thirty times what it costs light, so most is learnt while the model is
shallow. The bundled weights are what FULL made, in one run of 84 minutes on two cores shared with other work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cascade_runtime.models.event_encoder import (
    Adapter,
    EventEncoder,
    load_event_encoder,
    save_adapter,
    save_event_encoder,
)
from cascade_runtime.models.family import FRAME_SIZE, PATCH, TOWER_WIDTH, build_model, build_tokenizer, save_model
from cascade_runtime.training.adapter import AdapterConfig, train_adapter
from cascade_runtime.training.clips import from_facts, only_seen, see_with
from cascade_runtime.training.distillation import from_answers, let_heavy_speak, see_through
from cascade_runtime.training.language import (
    FactReader,
    LanguageConfig,
    Packer,
    grow,
    teach_reading,
    train_language,
)
from cascade_runtime.training.pool import CHUNK, HELD_OUT, read_chunk, write_chunk
from cascade_runtime.training.questions import corpus
from cascade_runtime.training.tower import FactProbe, TowerConfig, train_tower

HARD_FACTS = (2.5, 1.5, 1.5, 1.0, 1.0, 1.0, 1.5)
"""Loss weights of the tower's second cycle: shapes, counts, directions and places take longest to learn."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of every step."""

    chunks: int
    chunk_clips: int
    tower: tuple[TowerConfig, ...]
    reading: LanguageConfig
    light: LanguageConfig
    mid: LanguageConfig
    heavy: LanguageConfig
    adapter: AdapterConfig
    spoken_clips: int
    spoken_pairs: int
    mid_taught: LanguageConfig
    light_taught: LanguageConfig
    aligned: float = 0.4


FULL = Plan(
    chunks=60,
    chunk_clips=CHUNK,
    tower=(
        TowerConfig(clips=110_000, learning_rate=1.2e-3, seed=1),
        TowerConfig(clips=46_000, learning_rate=8e-4, warmup=0.02, weights=HARD_FACTS, plain=1.0, seed=10),
    ),
    reading=LanguageConfig(
        clips=16_000, batch=32, learning_rate=1.5e-3, weight_decay=0.02, report_every=3_200, seed=15
    ),
    light=LanguageConfig(clips=16_000, batch=6, pairs=4, learning_rate=2e-3, reading=0.2, seed=21),
    mid=LanguageConfig(clips=6_000, batch=6, pairs=4, learning_rate=1.4e-3, reading=0.2, seed=41),
    heavy=LanguageConfig(clips=2_000, batch=4, pairs=3, learning_rate=4e-4, reading=0.2, seed=51),
    adapter=AdapterConfig(clips=26_000),
    spoken_clips=400,
    spoken_pairs=5,
    mid_taught=LanguageConfig(clips=1_800, batch=6, learning_rate=4e-4, seed=6),
    light_taught=LanguageConfig(clips=5_000, batch=8, learning_rate=8e-4, seed=7),
)


def _shrink(config: Any, clips: int) -> Any:
    return replace(config, clips=clips, report_every=clips)


QUICK = replace(
    FULL,
    chunks=4,
    chunk_clips=256,
    tower=tuple(_shrink(config, 2_000) for config in FULL.tower),
    reading=_shrink(FULL.reading, 320),
    light=_shrink(FULL.light, 400),
    mid=_shrink(FULL.mid, 120),
    heavy=_shrink(FULL.heavy, 40),
    adapter=_shrink(FULL.adapter, 1_000),
    spoken_clips=32,
    spoken_pairs=3,
    mid_taught=_shrink(FULL.mid_taught, 80),
    light_taught=_shrink(FULL.light_taught, 160),
)
"""Proves the path in a few minutes; the models it makes cannot answer yet."""


def train_family(
    out_dir: str | Path, *, quick: bool = False, progress: Callable[[str], None] = print, plan: Plan | None = None
) -> Path:
    """Train every member and write its directory under `out_dir`, which is returned. The pool stays in out_dir/pool.

    quick: the plan QUICK instead of FULL; plan: one of your own. Same plan, machine and library versions: same weights.
    """
    plan = plan or (QUICK if quick else FULL)
    out = Path(out_dir)
    pool, chunks = out / "pool", range(plan.chunks)
    for number in (*chunks, HELD_OUT):
        write_chunk(pool, number, plan.chunk_clips)
        progress(f"pool: chunk {number} of {plan.chunk_clips} clips")
    tokenizer = build_tokenizer(list(corpus()))
    packer = Packer(tokenizer)
    torch.manual_seed(1)
    light, mid, heavy = (build_model(name, tokenizer) for name in ("light", "mid", "heavy"))
    tower = light.model.vision_tower
    probe, held_out = FactProbe(), read_chunk(pool, HELD_OUT)
    for config in plan.tower:
        train_tower(tower, pool, chunks, held_out, config, probe=probe, progress=progress)
    see = see_with(tower)
    reader = FactReader(light, packer)
    seen = only_seen(pool, chunks, see, batch=plan.reading.batch, seed=plan.reading.seed)
    teach_reading(light, reader, seen, packer, plan.reading, progress=progress)

    def learn(model: Any, config: LanguageConfig, name: str) -> None:
        clips = from_facts(pool, chunks, see, batch=config.batch, pairs=config.pairs, seed=config.seed)
        train_language(model, clips, packer, config, name=name, progress=progress, reader=reader)

    learn(light, plan.light, "light")
    grow(light, mid)
    reader.depth = FactReader(mid, packer).depth
    learn(mid, plan.mid, "mid")
    grow(mid, heavy)
    reader.depth = FactReader(heavy, packer).depth
    learn(heavy, plan.heavy, "heavy")
    save_model(heavy, tokenizer, out / "heavy")
    encoder, adapter = _fit_adapter(out, tower, plan, pool, held_out[0], progress)
    said = let_heavy_speak(
        heavy,
        packer,
        see,
        pool,
        chunks,
        clips=plan.spoken_clips,
        pairs=plan.spoken_pairs,
        seed=8,
        progress=progress,
    )

    see_aligned = see_through(encoder, adapter)
    for name, model, config in (("mid", mid, plan.mid_taught), ("light", light, plan.light_taught)):
        clips = from_answers(said, see, see_aligned, batch=config.batch, aligned=plan.aligned, seed=config.seed)
        train_language(model, clips, packer, config, name=f"{name}, taught", progress=progress)
        save_model(model, tokenizer, out / name)
    return out


def _fit_adapter(
    out: Path, tower: Any, plan: Plan, pool: Path, held_out: torch.Tensor, progress: Callable[[str], None]
) -> tuple[EventEncoder, Adapter]:
    """Train and save the event encoder and the adapter; out/heavy must be written, for its tower's tag."""
    torch.manual_seed(3)
    encoder = EventEncoder(size=FRAME_SIZE, patch=PATCH)
    adapter = Adapter(source_dim=encoder.feature_size, target_dim=TOWER_WIDTH, hidden=2 * TOWER_WIDTH)
    train_adapter(encoder, adapter, tower, pool, range(plan.chunks), held_out, plan.adapter, progress=progress)
    save_pair(out, encoder, adapter)
    return encoder, adapter


def save_pair(out: Path, encoder: EventEncoder, adapter: Adapter) -> None:
    """Write event encoder and adapter with the tags that loading will give the encoder and out/heavy's tower."""
    from cascade_runtime.models import load_checkpoint

    save_event_encoder(encoder, out / "event_encoder")
    adapter.source_space = load_event_encoder(out / "event_encoder").space
    tower = load_checkpoint(out / "heavy", parts=("vision",)).vision
    assert tower is not None
    adapter.target_space = tower.space
    save_adapter(adapter, out / "adapter")
