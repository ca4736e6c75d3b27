"""The order of the steps and how much of each: `train_family(out_dir)` makes every directory of the family.

    pool      simulate clips                                                pool.py, scenes.py
    tower     classify facts                                                tower.py
    reading   a 5-layer model gathers the facts from the visual prefix      language.teach_reading
    ancestor  the same model learns to answer                               language.py, clips.py
    heavy     the ancestor grown to 20 layers learns on; the same tower     language.grow
    adapter   event encoder into the tower's space, gate head               adapter.py
    mid       the ancestor, taught by heavy                                 distillation.py
    light     one layer, first from facts, then taught by heavy

The bundled weights were made with FULL on a machine of two cores shared with other work; family/README.md has times
and results. There the ancestor and heavy began on snapshots of the tower while it was still being trained, which
saves waiting and, since every snapshot is a teacher of the next, costs nothing in accuracy; here each step waits for
the one before.
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
    Clips,
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
    ancestor: LanguageConfig
    heavy: LanguageConfig
    adapter: AdapterConfig
    spoken_clips: int
    spoken_pairs: int
    mid: LanguageConfig
    light_facts: LanguageConfig
    light: LanguageConfig
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
    ancestor=LanguageConfig(clips=5_000, batch=5, learning_rate=1.5e-3, seed=2),
    heavy=LanguageConfig(clips=2_400, batch=4, learning_rate=6e-4, seed=4),
    adapter=AdapterConfig(clips=30_000),
    spoken_clips=1_500,
    spoken_pairs=5,
    mid=LanguageConfig(clips=2_500, batch=5, pairs=5, learning_rate=5e-4, seed=6),
    light_facts=LanguageConfig(clips=8_000, batch=8, learning_rate=2e-3, seed=5),
    light=LanguageConfig(clips=6_000, batch=8, pairs=5, learning_rate=8e-4, seed=7),
)


def _shrink(config: Any, clips: int) -> Any:
    return replace(config, clips=clips, report_every=clips)


QUICK = replace(
    FULL,
    chunks=4,
    chunk_clips=256,
    tower=tuple(_shrink(config, 2_000) for config in FULL.tower),
    reading=_shrink(FULL.reading, 320),
    ancestor=_shrink(FULL.ancestor, 200),
    heavy=_shrink(FULL.heavy, 40),
    adapter=_shrink(FULL.adapter, 1_000),
    spoken_clips=32,
    spoken_pairs=3,
    mid=_shrink(FULL.mid, 80),
    light_facts=_shrink(FULL.light_facts, 400),
    light=_shrink(FULL.light, 160),
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
    ancestor = build_model("mid", tokenizer)
    tower = ancestor.model.vision_tower
    probe, held_out = FactProbe(), read_chunk(pool, HELD_OUT)
    for config in plan.tower:
        train_tower(tower, pool, chunks, held_out, config, probe=probe, progress=progress)
    see = see_with(tower)

    def learn(model: Any, config: LanguageConfig, clips: Clips, name: str, reader: FactReader | None = None) -> None:
        train_language(model, clips, packer, config, name=name, progress=progress, reader=reader)

    def read(model: Any, config: LanguageConfig) -> FactReader:
        reader = FactReader(model, packer)
        seen = only_seen(pool, chunks, see, batch=config.batch, seed=config.seed)
        teach_reading(model, reader, seen, packer, config, progress=progress)
        return reader

    def facts(config: LanguageConfig) -> Clips:
        return from_facts(pool, chunks, see, batch=config.batch, pairs=config.pairs, seed=config.seed)

    learn(ancestor, plan.ancestor, facts(plan.ancestor), "ancestor", read(ancestor, plan.reading))
    heavy = build_model("heavy", tokenizer)
    grow(ancestor, heavy)
    learn(heavy, plan.heavy, facts(plan.heavy), "heavy")
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

    def spoken(config: LanguageConfig) -> Clips:
        aligned = see_through(encoder, adapter)
        return from_answers(said, see, aligned, batch=config.batch, aligned=plan.aligned, seed=config.seed)

    learn(ancestor, plan.mid, spoken(plan.mid), "mid")
    save_model(ancestor, tokenizer, out / "mid")
    light = build_model("light", tokenizer)
    light.model.vision_tower.load_state_dict(tower.state_dict())
    learn(light, plan.light_facts, facts(plan.light_facts), "light, from facts")
    learn(light, plan.light, spoken(plan.light), "light")
    save_model(light, tokenizer, out / "light")
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
