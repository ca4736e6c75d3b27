"""Steps 2, 3 and 5: language models learn to answer. Many question-answer pairs of one clip share its visual prefix.

    <|im_start|>user [33 visual] \n | question 1 <|im_end|> <|im_start|>assistant\n answer 1 <|im_end|>
                                    | question 2 ...                               each branch sees the prefix and
                                    itself

The visual prefix costs as much as two answers, so a 4-D mask lets K pairs share one; positions restart at the prefix
in each branch and so are those of a lone question. Only answer tokens are trained on. `grow` makes a deep model of a
shallow trained one without changing what it computes: copied blocks are put in between, their two output projections
zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

from cascade_runtime.models.family import VISUAL_TOKENS
from cascade_runtime.training.descent import Descent, Training
from cascade_runtime.training.facts import CLASSES
from cascade_runtime.training.tower import probe_loss

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(Training):
    """How long and how fast: `clips` seen in all, each with `pairs` question-answer pairs. reading: weight of the
    loss of `FactReader`.
    """

    clips: int
    seed: int = 2
    pairs: int = 6
    reading: float = 0.3
    report_every: int = 512


@dataclass(frozen=True)
class Packed:
    """A batch of B rows of length L. branch: 0 for the prefix, 1.. for pairs, -1 for padding; targets: IGNORED
    elsewhere.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    branch: torch.Tensor
    targets: torch.Tensor

    def mask(self) -> torch.Tensor:
        """(B, 1, L, L) bool: causal, within a branch or into the prefix; padding sees only itself."""
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        same = self.branch[:, :, None] == self.branch[:, None, :]
        prefix = (self.branch[:, None, :] == 0) & (self.branch[:, :, None] >= 0)
        return ((same | prefix) & causal)[:, None]


class Packer:
    """Question-answer texts to `Packed` batches, with the chat template of `models/prompts.py`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}
        start, self.end = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")
        self.video = tokenizer.token_to_id("<video>")
        self.prefix = [start, *self.encode("user "), *[self.video] * VISUAL_TOKENS, *self.encode("\n")]
        self.turn = [self.end, start, *self.encode("assistant\n")]

    def encode(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self._ids[text]

    def pack(self, rows: list[list[tuple[str, str]]]) -> Packed:
        """rows: per clip its (question, answer) pairs."""
        return self.pack_ids([[(question, self.encode(answer)) for question, answer in pairs] for pairs in rows])

    def pack_ids(self, rows: list[list[tuple[str, list[int]]]]) -> Packed:
        """Like `pack`, with the answers as token ids without the end."""
        packed = [self._row(pairs) for pairs in rows]
        length = max(len(ids) for ids, *_ in packed)
        fill = (self.end, 0, -1, IGNORED)
        columns = zip(*packed, strict=True)
        tensors = [
            torch.tensor([[*values, *[empty] * (length - len(values))] for values in column])
            for column, empty in zip(columns, fill, strict=True)
        ]
        return Packed(*tensors)

    def _row(self, pairs: list[tuple[str, list[int]]]) -> tuple[list[int], list[int], list[int], list[int]]:
        ids, start = list(self.prefix), len(self.prefix)
        positions, branch, targets = list(range(start)), [0] * start, [IGNORED] * start
        for number, (question, answer) in enumerate(pairs, 1):
            asked = [*self.encode(question), *self.turn]
            said = [*answer, self.end]
            fed = asked + said[:-1]
            ids += fed
            positions += range(start, start + len(fed))
            branch += [number] * len(fed)
            targets += [*[IGNORED] * (len(asked) - 1), *said]
        return ids, positions, branch, targets


def project(model: Any, raw_BFPC: torch.Tensor) -> torch.Tensor:
    """Raw features to visual embeddings (B, 33, D), as the model's own `get_video_features` makes them."""
    batch, frames, patches, _ = raw_BFPC.shape
    side = int(patches**0.5)
    projected = model.model.multi_modal_projector(raw_BFPC.flatten(0, 1))
    grid = projected.view(batch * frames, side, side, -1).permute(0, 3, 1, 2)
    pooled = F.interpolate(grid.contiguous(), size=((side + 1) // 2,) * 2, mode="bilinear")
    tokens = pooled.permute(0, 2, 3, 1).reshape(batch, -1, pooled.shape[1])
    return torch.cat([tokens, model.model.image_newline.expand(batch, 1, -1)], dim=1)


def embedded(model: Any, packed: Packed, raw: torch.Tensor, packer: Packer) -> torch.Tensor:
    """(B, L, D) what the first block is fed: token embeddings, visual ones in their places.

    An answer may hold the video's token too, as the token that it is.
    """
    embeds = model.model.language_model.embed_tokens(packed.ids)
    visual = (packed.ids == packer.video) & (packed.branch == 0)
    return embeds.masked_scatter(visual[..., None], project(model, raw))


def hidden_states(model: Any, packed: Packed, raw: torch.Tensor, packer: Packer) -> torch.Tensor:
    """The decoder's last hidden states (B, L, D) over a packed batch."""
    return model.model.language_model(
        inputs_embeds=embedded(model, packed, raw, packer),
        attention_mask=packed.mask(),
        position_ids=packed.positions,
        use_cache=False,
    ).last_hidden_state


def answer_loss(model: Any, packed: Packed, raw: torch.Tensor, packer: Packer) -> tuple[torch.Tensor, float]:
    """(mean cross entropy over answer tokens, share of them predicted right)."""
    hidden = hidden_states(model, packed, raw, packer)
    chosen = packed.targets != IGNORED
    entries = packer.tokenizer.get_vocab_size()  # the head has more rows, which are never chosen
    logits, target = model.lm_head(hidden[chosen])[:, :entries], packed.targets[chosen]
    right = float((logits.detach().argmax(-1) == target).float().mean())
    return F.cross_entropy(logits, target), right


@torch.inference_mode()
def choices(model: Any, packed: Packed, raw: torch.Tensor, packer: Packer) -> torch.Tensor:
    """(B, L) the token that the model would choose after each position, among the tokenizer's entries."""
    logits = model.lm_head(hidden_states(model, packed, raw, packer))
    return logits[..., : packer.tokenizer.get_vocab_size()].argmax(-1)


class FactReader(nn.Module):
    """A training aid: the seven facts, linearly, from the hidden state of the prefix's last token in an early block.

    Answers alone teach reading slowly: a fact is one token in seven, and questions ask for few. With this loss the
    lower third of the model gathers every fact in one place, where the upper blocks find them.
    """

    def __init__(self, model: Any, packer: Packer) -> None:
        super().__init__()
        self.last = len(packer.prefix) - 1
        self.depth = max(2 * len(model.model.language_model.layers) // 5, 1)
        self.norm = nn.LayerNorm(model.config.text_config.hidden_size)
        self.heads = nn.ModuleList(nn.Linear(self.norm.normalized_shape[0], len(names)) for names in CLASSES.values())

    def watch(self, model: Any) -> Callable[[], None]:
        """Keep what block `depth` of `model` gives from now on; the returned function ends that."""

        def keep(module: nn.Module, args: tuple[object, ...], output: Any) -> None:
            self._seen = output[0] if isinstance(output, tuple) else output

        return model.model.language_model.layers[self.depth - 1].register_forward_hook(keep).remove

    def loss(self, rows: NDArray[np.int8]) -> torch.Tensor:
        """Mean cross entropy over facts, after a forward pass of the watched model over clips with these facts."""
        summary = self.norm(self._seen[:, self.last])
        return probe_loss([head(summary) for head in self.heads], rows, (1.0,) * len(self.heads))


def teach_reading(
    model: Any,
    reader: FactReader,
    clips: Iterator[tuple[torch.Tensor, NDArray[np.int8]]],
    packer: Packer,
    config: LanguageConfig,
    *,
    progress: Callable[[str], None] = print,
) -> None:
    """Train projector, newline and the lower blocks on the visual prefix alone: many clips, no text, little cost."""
    torch.manual_seed(config.seed)
    text = model.model.language_model
    blocks, text.layers = text.layers, text.layers[: reader.depth]
    unwatch = reader.watch(model)
    parts = (model.model.multi_modal_projector, text.layers, reader)
    trained = [p for part in parts for p in part.parameters()] + [model.model.image_newline]
    descent = Descent(trained, config, vectors_decay=True)
    start, seen, since, losses = time.perf_counter(), 0, 0, []
    while seen < config.clips:
        raw, rows = next(clips)
        descent.begin(seen / config.clips)
        packed = packer.pack([[]] * len(rows))
        hidden_states(model, packed, raw, packer)
        loss = reader.loss(rows)
        loss.backward()
        descent.step()
        losses.append(float(loss.detach()))
        seen += len(rows)
        since += len(rows)
        if since >= config.report_every or seen >= config.clips:
            since = 0
            speed = seen / (time.perf_counter() - start)
            progress(f"reading {seen} clips, {speed:.0f}/s, loss {np.mean(losses[-30:]):.3f}")
    unwatch()
    text.layers = blocks


Clips = Iterator[tuple[torch.Tensor, list[list[tuple[str, str]]], NDArray[np.int8] | None]]
"""Endless batches: raw features (B, F, P, Dv), each clip's question-answer pairs, and its facts where they are known.
"""


def train_language(
    model: Any,
    clips: Clips,
    packer: Packer,
    config: LanguageConfig,
    *,
    name: str,
    progress: Callable[[str], None] = print,
    reader: FactReader | None = None,
) -> None:
    """Train projector, newline and language model in place; the tower is not touched."""
    torch.manual_seed(config.seed)
    reader = reader or FactReader(model, packer)
    unwatch = reader.watch(model)
    parts = (model.model.multi_modal_projector, model.model.language_model, reader)
    trained = [p for part in parts for p in part.parameters()] + [model.model.image_newline]
    descent = Descent(trained, config)
    start, seen, since, losses, rights, reads = time.perf_counter(), 0, 0, [], [], [0.0]
    model.train()
    while seen < config.clips:
        raw, pairs, facts = next(clips)
        descent.begin(seen / config.clips)
        loss, right = answer_loss(model, packer.pack(pairs), raw, packer)
        total = loss
        if facts is not None and config.reading:
            read = reader.loss(facts)
            reads.append(float(read.detach()))
            total = loss + config.reading * read
        total.backward()
        descent.step()
        losses.append(float(loss.detach()))
        rights.append(right)
        seen += len(pairs)
        since += len(pairs)
        if since >= config.report_every or seen >= config.clips:
            since = 0
            speed = seen / (time.perf_counter() - start)
            progress(
                f"{name} {seen} clips, {speed:.1f}/s, loss {np.mean(losses[-30:]):.3f}, "
                f"reading {np.mean(reads[-30:]):.3f}, tokens right {np.mean(rights[-30:]):.4f}"
            )
    unwatch()
    model.eval()


def grow(shallow: Any, deep: Any) -> None:
    """Give `deep` the function of `shallow`: its blocks spread evenly, each followed by copies with zeroed outputs.

    Every added block starts as the identity and its inner weights are trained ones, so that it is useful at once.
    """
    few, many = shallow.model.language_model.layers, deep.model.language_model.layers
    assert len(many) % len(few) == 0
    times = len(many) // len(few)
    for index, block in enumerate(many):
        block.load_state_dict(few[index // times].state_dict())
        if index % times:
            nn.init.zeros_(block.self_attn.o_proj.weight)
            nn.init.zeros_(block.mlp.down_proj.weight)
    for part in ("multi_modal_projector", "vision_tower"):
        getattr(deep.model, part).load_state_dict(getattr(shallow.model, part).state_dict())
    deep.model.language_model.norm.load_state_dict(shallow.model.language_model.norm.state_dict())
    with torch.no_grad():
        deep.model.image_newline.copy_(shallow.model.image_newline)
        rows = min(deep.lm_head.weight.shape[0], shallow.lm_head.weight.shape[0])
        deep.model.language_model.embed_tokens.weight[:rows] = shallow.model.language_model.embed_tokens.weight[:rows]


@torch.inference_mode()
def answer_greedily(
    model: Any, packer: Packer, raw: torch.Tensor, questions: list[str], *, max_tokens: int = 64
) -> list[list[int]]:
    """Greedy answers (token ids without the end) to one question per clip, all clips in one batch.

    raw: (B, F, P, Dv). Rows are padded on the left; positions count only real tokens.
    """
    prompts = [[*packer.prefix, *packer.encode(question), *packer.turn] for question in questions]
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[packer.end] * (width - len(p)) + p for p in prompts])
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    text = model.model.language_model
    embeds = text.embed_tokens(ids).masked_scatter((ids == packer.video)[..., None], project(model, raw))
    positions = (real.cumsum(1) - 1).clamp(min=0)
    size = packer.tokenizer.get_vocab_size()
    out = text(inputs_embeds=embeds, attention_mask=real, position_ids=positions, use_cache=True)
    cache, last = out.past_key_values, positions[:, -1:]
    done = torch.zeros(len(prompts), dtype=torch.bool)
    said = []
    hidden = out.last_hidden_state[:, -1]
    for _ in range(max_tokens):
        token = model.lm_head(hidden)[:, :size].argmax(-1)
        token[done] = packer.end
        said.append(token)
        done |= token == packer.end
        if bool(done.all()):
            break
        real = torch.cat([real, torch.ones(len(prompts), 1, dtype=real.dtype)], 1)
        last = last + 1
        out = text(
            input_ids=token[:, None], attention_mask=real, position_ids=last, past_key_values=cache, use_cache=True
        )
        hidden = out.last_hidden_state[:, -1]
    rows = torch.stack(said, 1).tolist()
    return [row[: row.index(packer.end)] if packer.end in row else row for row in rows]
