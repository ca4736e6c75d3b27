"""Heads beside the bundled heavy learn to draft its answers: `train_heads(kind, out_dir)`.

    spoken.py   heavy answers questions about scenes of the heads' own, and keeps its states
    medusa      cross entropy of each head, .8 ** i of it for head i (Cai et al. 2024)
    eagle       SmoothL1 of the predicted state + .1 cross entropy; noise on the states that go in (Li et al. 2024)
    eagle3      cross entropy alone, over steps that are fed the head's own outputs in place of the target's states
                (training-time test, Li et al. 2025); later steps weigh .8 of those before
    hivis       eagle's loss over eagle3's steps, without noise, and a bias for each step
    msd, vispec, dream   as eagle
    exits       cross entropy of both exits, the second's .8 of it (HiSpec; the target itself is not trained)

Cross entropy is against the target's own distribution at the same place (embedding and `lm_head` are the target's and
stay as they are). What heavy said about N scenes lies in OUT/said_N.safetensors and is used again by the next kind
(exits read other blocks: OUT/said_exits_N.safetensors).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from cascade_runtime.errors import ConfigError
from cascade_runtime.models import load_checkpoint
from cascade_runtime.models.bundled import family_path
from cascade_runtime.models.eagle import EagleNet, save_eagle
from cascade_runtime.models.exits import ExitHeads, exit_layers, save_exits
from cascade_runtime.models.head_folder import HEAD_KINDS
from cascade_runtime.models.medusa import MedusaHeads, save_medusa
from cascade_runtime.training.descent import Descent, Training
from cascade_runtime.training.spoken import Said, ask, let_target_speak, read_said, save_said, training_scenes

DEPTH = dict.fromkeys(HEAD_KINDS, 1) | {"medusa": 5, "eagle3": 5, "hivis": 5}  # tokens ahead that are trained on
STEPS = 4  # that have a bias of their own, of hivis (as published)


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Training):
    """How long and how fast: `epochs` over the answers to `questions_each` questions about each of `scenes`."""

    scenes: int = 500
    questions_each: int = 3
    epochs: float = 4.0
    batch: int = 16
    weight_decay: float = 0.02
    seed: int = 31
    fade: float = 0.8
    noise: float = 0.1  # of the states' own spread, for eagle
    report_every: int = 60  # batches


FULL = {
    "exits": HeadConfig(epochs=6.0),
    "medusa": HeadConfig(epochs=8.0),
    "eagle": HeadConfig(epochs=4.0),
    "eagle3": HeadConfig(epochs=3.0),
    "hivis": HeadConfig(epochs=3.0),
    **{kind: HeadConfig(epochs=4.0) for kind in ("msd", "vispec", "dream")},
}
QUICK = {kind: HeadConfig(scenes=60, epochs=2.0, report_every=20) for kind in HEAD_KINDS}
"""Proves the path in two minutes."""


@dataclass(frozen=True)
class Batch:
    """Answers side by side. ids (B, L + 1), states (B, L, blocks * D), asked (B,), lengths (B,): of real states; seen
    (B, P, D).
    """

    ids: torch.Tensor
    states: torch.Tensor
    asked: torch.Tensor
    lengths: torch.Tensor
    seen: torch.Tensor

    @classmethod
    def of(cls, said: Sequence[Said]) -> Batch:
        """Padded at the end, where causal attention does not look."""
        return cls(
            nn.utils.rnn.pad_sequence([one.ids for one in said], batch_first=True),
            nn.utils.rnn.pad_sequence([one.states.float() for one in said], batch_first=True),
            torch.tensor([one.asked for one in said]),
            torch.tensor([len(one.states) for one in said]),
            torch.stack([one.seen.float() for one in said]),
        )


@dataclass(frozen=True)
class Guess:
    """A head's guesses `ahead` tokens beyond the target's own next one, at M places. out (M, D): its state; read
    (M, D): that as lm_head reads it. state (M, D): the target's own there. truth (M,): the token that came.
    """

    ahead: int
    out: torch.Tensor
    read: torch.Tensor
    state: torch.Tensor
    truth: torch.Tensor


def guesses(head: Any, batch: Batch, embedding: torch.Tensor, *, depth: int, noise: float = 0.0) -> Iterator[Guess]:
    """What a `MedusaHeads` or `EagleNet` guesses at every place of the answers, 1 .. depth tokens ahead.

    EAGLE's further guesses are fed the tokens that came, and the head's own states. Exits guess the target's own next
    token: `ahead` is 1 for the first exit, 2 for the second.
    """
    width = embedding.shape[1]
    last = batch.states[..., -width:]
    at = torch.arange(batch.states.shape[1])

    def told(ahead: int, out: torch.Tensor, read: torch.Tensor, root: torch.Tensor, place: torch.Tensor) -> Guess:
        """root (L,): the last position whose target state is known; place (L,): where the guessed token stands."""
        real = (root >= batch.asked[:, None] - 1) & (place <= batch.lengths[:, None])
        rows, columns = real.nonzero(as_tuple=True)
        truth = place[columns]
        return Guess(ahead, out[rows, columns], read[rows, columns], last[rows, truth - 1], batch.ids[rows, truth])

    if isinstance(head, MedusaHeads):
        out = head(last.flatten(0, 1)).unflatten(0, last.shape[:2])
        for ahead in range(1, min(depth, head.heads) + 1):
            yield told(ahead, out[:, :, ahead - 1], out[:, :, ahead - 1], at, at + 1 + ahead)
        return
    if isinstance(head, ExitHeads):
        for number, behind in enumerate(batch.states[..., :-width].split(width, -1)):
            read = head.read(number, behind)
            yield told(number + 1, read, read, at, at + 1)
        return
    states = head.taken(batch.states[..., :-width] if head.blocks else last)
    if noise:
        states = states + (2 * torch.rand_like(states) - 1) * noise * states.std()
    embeds, past = F.embedding(batch.ids[:, 1:], embedding), DynamicCache()
    looked, also = 0, dict[str, Any]()
    if head.looks and batch.seen.shape[1]:
        inputs, also["gist"] = head.seen(batch.seen)
        head.look(inputs, past)
        looked = inputs.shape[1]
    for step in range(depth):
        own = (at[None] == at[:, None] - step + i for i in range(1, step + 1))
        seen = [torch.ones(len(at), looked, dtype=torch.bool), at[None] <= at[:, None] - step, *own]
        if head.across is not None:
            also |= {"known": last, "sees": (at - step + 1).clamp(min=1)[None]}
        mask = torch.cat(seen, 1)[None, None]
        out = head(states, embeds, mask=mask, positions=at + looked, past=past, steps=step, **also)
        yield told(step + 1, out, head.read(out), at - step, at + 2)
        states = F.pad(out, (0, 0, 1, 0))[:, :-1]


def loss_of(kind: str, guess: Guess, lm_head: torch.Tensor) -> torch.Tensor:
    """Cross entropy against the target's distribution, and for eagle the distance to its state."""
    wanted = (guess.state @ lm_head.T).softmax(-1)
    cross = -(wanted * (guess.read @ lm_head.T).log_softmax(-1)).sum(-1).mean()
    if kind in ("medusa", "eagle3", "exits"):
        return cross
    return F.smooth_l1_loss(guess.out, guess.state) + 0.1 * cross


@torch.inference_mode()
def accuracy(
    head: Any, said: Sequence[Said], embedding: torch.Tensor, lm_head: torch.Tensor, *, depth: int
) -> list[dict[int, float]]:
    """Per token ahead, the share of places where the token that came is among the best 1, 2 and 4 guesses."""
    right, asked = np.zeros((depth, 4)), np.zeros(depth)
    for at in range(0, len(said), 32):
        for guess in guesses(head, Batch.of(said[at : at + 32]), embedding, depth=depth):
            found = (guess.read @ lm_head.T).topk(4).indices == guess.truth[:, None]
            right[guess.ahead - 1] += found.float().cumsum(1).sum(0).numpy()
            asked[guess.ahead - 1] += len(found)
    return [{n: float(r[n - 1] / max(a, 1)) for n in (1, 2, 4)} for r, a in zip(right, asked, strict=True) if a]


def new_head(kind: str, language: Any) -> Any:
    """An untrained head for this target, small enough to ship. Raises ConfigError for another kind."""
    sizes = {"hidden_size": language.hidden_size, "vocab_size": language.vocab_size}
    if kind == "medusa":
        return MedusaHeads(**sizes, heads=DEPTH[kind])
    if kind == "exits":
        draft, middle = exit_layers(language.num_layers)
        return ExitHeads(**sizes, intermediate_size=512, draft_layers=draft, middle_layers=middle)
    if kind not in HEAD_KINDS:
        raise ConfigError("kind", kind, f"one of {', '.join(HEAD_KINDS)}")
    inner = {"eagle3": 256, "vispec": 256, "dream": 160}.get(kind, 384)
    heads = {"num_attention_heads": language.heads, "num_key_value_heads": language.kv_heads}
    blocks = blocks_of(language) if kind == "eagle3" else ()
    steps = STEPS if kind == "hivis" else 0
    return EagleNet(kind, **sizes, **heads, intermediate_size=inner, blocks=blocks, steps=steps)


def blocks_of(language: Any) -> tuple[int, ...]:
    """The low, the middle and the high block that eagle3 reads."""
    return (min(2, language.num_layers - 1), language.num_layers // 2, max(language.num_layers - 3, 0))


def blocks_read(kind: str, language: Any) -> tuple[int, ...]:
    """Whose outputs a head of this kind is taught with, beside the target's last states."""
    if kind == "exits":
        return tuple(layers - 1 for layers in exit_layers(language.num_layers))
    return blocks_of(language)


def save_any(kind: str, head: Any, path: Path) -> None:
    """Write a head's folder."""
    savers: dict[str, Callable[[Any, Path], None]] = {"medusa": save_medusa, "exits": save_exits}
    savers.get(kind, save_eagle)(head, path)


def teach(
    kind: str,
    head: Any,
    said: Sequence[Said],
    language: Any,
    config: HeadConfig,
    *,
    progress: Callable[[str], None] = print,
) -> None:
    """Train a head in place on what the target said."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng([config.seed, 37])
    embedding, lm_head = language.decoder.embed_tokens.weight.detach().float(), language.head.weight.detach().float()
    descent = Descent(head.parameters(), config, betas=(0.9, 0.95))
    batches = max(1, int(config.epochs * len(said) / config.batch))
    order, start = np.zeros(0, dtype=np.int64), time.perf_counter()
    losses: list[float] = []
    head.train()
    for number in range(1, batches + 1):
        if len(order) < config.batch:
            order = rng.permutation(len(said))
        pick, order = order[: config.batch], order[config.batch :]
        descent.begin((number - 1) / batches)
        batch, noise = Batch.of([said[i] for i in pick]), config.noise if DEPTH[kind] == 1 else 0.0
        loss = torch.zeros(())
        for guess in guesses(head, batch, embedding, depth=DEPTH[kind], noise=noise):
            loss = loss + config.fade ** (guess.ahead - 1) * loss_of(kind, guess, lm_head)
        loss.backward()
        descent.step()
        losses.append(float(loss.detach()))
        if number % config.report_every == 0 or number == batches:
            seconds = time.perf_counter() - start
            progress(f"{kind} batch {number} of {batches}, {seconds:.0f} s, loss {np.mean(losses[-30:]):.4f}")
    head.eval()


def train_heads(
    kind: str,
    out_dir: str | Path,
    *,
    quick: bool = False,
    scenes: int | None = None,
    progress: Callable[[str], None] = print,
) -> Path:
    """Train a head of `kind` for the bundled heavy; the folder OUT/kind that was written.

    scenes: how many heavy is asked about (default: the plan's). Raises ConfigError for another kind.
    """
    if kind not in HEAD_KINDS:
        raise ConfigError("kind", kind, f"one of {', '.join(HEAD_KINDS)}")
    out, config = Path(out_dir), (QUICK if quick else FULL)[kind]
    wanted = scenes or config.scenes
    model = load_checkpoint(family_path("heavy"))
    language = model.language
    assert language is not None
    answers = out / f"said_{'exits_' if kind == 'exits' else ''}{wanted}.safetensors"
    if not answers.exists():
        drawn = training_scenes(wanted, questions_each=config.questions_each, seed=config.seed)
        keeps = (*blocks_read(kind, language), language.num_layers)
        save_said(let_target_speak(model, ask(model, drawn), keeps=keeps, progress=progress), answers)
    said = read_said(answers)
    checked, taught = said[: max(len(said) // 20, 8)], said[max(len(said) // 20, 8) :]
    torch.manual_seed(config.seed)
    head = new_head(kind, language)
    teach(kind, head, taught, language, config, progress=progress)
    weights = language.decoder.embed_tokens.weight.float(), language.head.weight.float()
    found = accuracy(head, checked, *weights, depth=5)
    where = "at its exits" if kind == "exits" else "1, 2, .. tokens beyond heavy's own next"
    progress(f"{kind}: guessed {where}: " + ", ".join(f"{each[1]:.3f}" for each in found))
    save_any(kind, head, out / kind)
    return out / kind
