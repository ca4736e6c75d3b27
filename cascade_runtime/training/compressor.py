"""A compressor for a trained drafter: heavy answers, the drafter looks through fewer visual tokens, and learns to see.

    python -m cascade_runtime.training.compressor --out DIR [--member light] [--clips 400]

The drafter itself stays as it is. The convolution and the resampler learn from the cross entropy of heavy's answers
seen through them, dense features and aligned ones by turns. Then, for other clips, each of the gate's five options is
tried: an option costs what it gets wrong of heavy's tokens, plus `PRICE` times the share of visual positions that it
leaves, and the gate learns the cheapest from the question (SpecVLM, arXiv 2509.11815, learns its gate with a
Gumbel-softmax instead: here every option's cost is known). Writes DIR/compressor.safetensors.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cascade_runtime.config import Sees
from cascade_runtime.decoding.sight import busiest, compress
from cascade_runtime.events.representations.activity import DENSITY_GAIN
from cascade_runtime.models.bundled import family_path
from cascade_runtime.models.compressor import OPTIONS, Compressor, save_compressor
from cascade_runtime.models.event_encoder import load_adapter, load_event_encoder
from cascade_runtime.models.family import FRAME_SIZE, FRAMES, PATCH, VISUAL_TOKENS, read_model
from cascade_runtime.models.visual_layout import VisualLayout
from cascade_runtime.training.clips import See, see_with
from cascade_runtime.training.descent import Descent, Training
from cascade_runtime.training.distillation import Said, from_answers, let_heavy_speak, see_through
from cascade_runtime.training.language import IGNORED, Clips, Packed, Packer, project
from cascade_runtime.training.pool import write_chunk

PRICE = 0.02
"""What all visual positions cost, in shares of wrong tokens."""
LAYOUT = VisualLayout((FRAMES, FRAME_SIZE // PATCH // 2, FRAME_SIZE // PATCH // 2), trailing=1)
_LEARNT = (Sees(method="conv"), Sees(method="resampler"))


@dataclass(frozen=True, kw_only=True)
class CompressorConfig(Training):
    """How long and how fast: clips seen in all."""

    clips: int = 6_000
    learning_rate: float = 1e-3
    warmup: float = 0.03
    weight_decay: float = 0.01
    seed: int = 9
    aligned: float = 0.4
    gate_steps: int = 400
    report_every: int = 800


def narrowed(
    model: Any, packed: Packed, raw: torch.Tensor, counts: torch.Tensor, packer: Packer, sees: Sees, compressor: Any
) -> tuple[torch.Tensor, Packed]:
    """A packed batch as a drafter that `sees` less gets it: embeddings (B, L', D) and the rest of it, L' <= L.

    counts (B, patches): events in each patch.
    """
    text = model.model.language_model
    embeds = text.embed_tokens(packed.ids)
    visual, start = project(model, raw), packer.prefix.index(packer.video)
    stop, patches, rows = start + VISUAL_TOKENS, LAYOUT.patches().flatten(), len(packed.ids)
    if sees.method == "text":
        tokens, places = visual[:, :0], torch.zeros(rows, 0, dtype=torch.long)
    else:
        if sees.method == "events":
            keep = sees.kept(len(patches))
            places = torch.stack([patches[busiest(each, keep)] for each in counts])
            tokens = visual.gather(1, places[..., None].expand(-1, -1, visual.shape[2]))
        else:
            tokens, among = compress(sees, LAYOUT, visual[:, patches], compressor)
            places = among.expand(rows, -1)
        others = LAYOUT.others()
        tokens = torch.cat([tokens, visual[:, others]], 1)
        places = torch.cat([places, others.expand(rows, -1)], 1)
    before, after = torch.arange(start), torch.arange(stop, packed.ids.shape[1])
    columns = torch.cat([before.expand(rows, -1), places + start, after.expand(rows, -1)], 1)
    fields = (packed.ids, packed.positions, packed.branch, packed.targets)
    return (
        torch.cat([embeds[:, :start], tokens, embeds[:, stop:]], 1),
        Packed(*(each.gather(1, columns) for each in fields)),
    )


def _logits(model: Any, embeds: torch.Tensor, packed: Packed, packer: Packer) -> tuple[torch.Tensor, torch.Tensor]:
    """(answer tokens, V) and the targets."""
    hidden = model.model.language_model(
        inputs_embeds=embeds, attention_mask=packed.mask(), position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    said = packed.targets != IGNORED
    return model.lm_head(hidden[said])[:, : packer.tokenizer.get_vocab_size()], packed.targets[said]


def train_sight(
    model: Any,
    compressor: Compressor,
    clips: Clips,
    packer: Packer,
    config: CompressorConfig,
    *,
    progress: Callable[[str], None] = print,
) -> None:
    """Train convolution and resampler in place; the drafter is not touched."""
    model.requires_grad_(False)
    trained = [value for name, value in compressor.named_parameters() if not name.startswith("gate")]
    descent = Descent(trained, config, vectors_decay=True)
    start, seen, since, losses = time.perf_counter(), 0, 0, []
    while seen < config.clips:
        raw, pairs, _ = next(clips)
        packed = packer.pack(pairs)
        descent.begin(seen / config.clips)
        each = []
        for sees in _LEARNT:
            logits, targets = _logits(
                model, *narrowed(model, packed, raw, torch.empty(0), packer, sees, compressor), packer
            )
            loss = F.cross_entropy(logits, targets)
            loss.backward()
            each.append(float(loss.detach()))
        descent.step()
        losses.append(each)
        seen += len(pairs)
        since += len(pairs)
        if since >= config.report_every or seen >= config.clips:
            since = 0
            conv, resampler = np.mean(losses[-50:], axis=0)
            speed = seen / (time.perf_counter() - start)
            progress(f"compressor {seen} clips, {speed:.0f}/s, loss conv {conv:.4f}, resampler {resampler:.4f}")


@torch.no_grad()
def option_costs(
    model: Any, compressor: Compressor, said: Said, see: See, packer: Packer
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the gate learns from, for each question of `said`: the mean embedding of its text (Q, D), and the cost of
    every option (Q, 5).
    """
    texts, costs = [], []
    for at in range(0, len(said.pairs), 8):
        maps = said.maps[at : at + 8]
        raw, counts = see(maps), map_counts(maps)
        flat = [(row, pair) for row, pairs in enumerate(said.pairs[at : at + 8]) for pair in pairs]
        rows = torch.tensor([row for row, _ in flat])
        packed = packer.pack([[pair] for _, pair in flat])
        cost = []
        for option in OPTIONS:
            embeds, rest = narrowed(model, packed, raw[rows], counts[rows], packer, Sees.parse(option), compressor)
            hidden = model.model.language_model(
                inputs_embeds=embeds, attention_mask=rest.mask(), position_ids=rest.positions, use_cache=False
            ).last_hidden_state
            chosen = model.lm_head(hidden)[..., : packer.tokenizer.get_vocab_size()].argmax(-1)
            answered = rest.targets != IGNORED
            wrong = ((chosen != rest.targets) & answered).sum(1) / answered.sum(1)
            left = VISUAL_TOKENS - (packed.ids.shape[1] - embeds.shape[1])
            cost.append(wrong + PRICE * left / VISUAL_TOKENS)
        costs.append(torch.stack(cost, 1))
        for _, (question, _) in flat:
            ids = [*packer.prefix[-1:], *packer.encode(question), *packer.turn]
            texts.append(model.model.language_model.embed_tokens(torch.tensor(ids)).mean(0))
    return torch.stack(texts), torch.cat(costs)


def train_gate(compressor: Compressor, texts: torch.Tensor, costs: torch.Tensor, steps: int) -> torch.Tensor:
    """Train the gate in place to choose cheaply; returns how often it takes each option (5,), as shares."""
    nn.init.zeros_(compressor.gate.weight)
    nn.init.zeros_(compressor.gate.bias)
    optimizer = torch.optim.Adam(compressor.gate.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        (compressor.gate(texts).softmax(-1) * costs).sum(-1).mean().backward()
        optimizer.step()
    with torch.no_grad():
        return F.one_hot(compressor.gate(texts).argmax(-1), len(OPTIONS)).float().mean(0)


def map_counts(maps: torch.Tensor) -> torch.Tensor:
    """Activity maps (n, F, 3, S, S) to what is proportional to the events in each patch (n, F * h * w)."""
    events = torch.expm1(maps[:, :, :2].float() * DENSITY_GAIN).sum(2)
    cell = maps.shape[-1] // LAYOUT.grid[1]
    return F.avg_pool2d(events, cell).flatten(1)


def main() -> None:
    """Train a compressor for a bundled drafter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--member", default="light", choices=("light", "mid"))
    parser.add_argument("--clips", type=int, default=400, help="that heavy answers 5 questions about")
    args = parser.parse_args()
    heavy, tokenizer = read_model(family_path("heavy"))
    model, _ = read_model(family_path(args.member))
    packer, see, config = Packer(tokenizer), see_with(heavy.model.vision_tower), CompressorConfig()
    see_aligned = see_through(load_event_encoder(family_path("event_encoder")), load_adapter(family_path("adapter")))
    with tempfile.TemporaryDirectory() as pool:
        for chunk in range(2):
            write_chunk(pool, chunk)
        said, other = (
            let_heavy_speak(
                heavy, packer, see, Path(pool), range(chunk, chunk + 1), clips=clips, pairs=5, seed=30 + chunk
            )
            for chunk, clips in ((0, args.clips), (1, args.clips // 4))
        )
    torch.manual_seed(config.seed)
    compressor = Compressor(model.config.text_config.hidden_size)
    clips = from_answers(said, see, see_aligned, batch=config.batch, aligned=config.aligned, seed=config.seed)
    train_sight(model, compressor, clips, packer, config)
    texts, costs = option_costs(model, compressor, other, see, packer)
    taken = train_gate(compressor, texts, costs, config.gate_steps)
    for option, cost, share in zip(OPTIONS, costs.mean(0).tolist(), taken.tolist(), strict=True):
        print(f"{option:<12} costs {cost:.4f} on average, taken for {100 * share:.0f} % of questions")
    args.out.mkdir(parents=True, exist_ok=True)
    save_compressor(compressor, args.out)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
