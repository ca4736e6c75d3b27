"""`Compiled`: passes of one row on a CPU as one compiled function, for stages that ask for it (`compile = true`).

A pass of few tokens is a few hundred calls into PyTorch, and on a CPU they cost as much as the arithmetic. Inductor
makes one function of embedding, blocks and head, with the weights packed as they are multiplied. It takes a C++
compiler, a second copy of the weights and, at the first start on a machine, most of a minute; so it is never on by
itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._inductor import config as inductor
from torch.nn import functional as F

from cascade_runtime.errors import ConfigError
from cascade_runtime.models.block import Block
from cascade_runtime.models.language import LanguageModel
from cascade_runtime.models.linear import Linear
from cascade_runtime.models.slot_cache import Branches, SlotCache, hide_branches

_LEAST, _MOST = 4, 64  # tokens of a pass; fewer are padded, since four cost no more than one
_OPTIONS: dict[str, Any] = {"freezing": True, "cpp_wrapper": True, "compile_threads": 1}
_CLOSE = 1e-3  # of the largest logit: what the compiled pass may differ by


class Compiled:
    """One model's compiled passes over one cache. Raises `ConfigError` where it cannot be compiled, and where what was
    compiled computes something else.
    """

    def __init__(self, language: LanguageModel, cache: SlotCache) -> None:
        if language.device.type != "cpu":
            raise ConfigError("compile", True, "only on a CPU: a GPU's passes are captured anyway")
        self._language, self._cache, self.calls = language, cache, 0
        self._run: Any = torch.compile(_Whole(language).eval(), dynamic=True, fullgraph=True)
        try:
            with inductor.patch(_OPTIONS):
                self._check()
        except ConfigError:
            raise
        except Exception as error:
            told = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(
                "compile", True, f"a machine that can: a C++ compiler is needed ({told[0][:200]})"
            ) from error

    @torch.inference_mode()
    def logits(
        self,
        tokens: Sequence[Sequence[int]],
        *,
        slots: Sequence[int],
        starts: Sequence[int],
        positions: Sequence[Sequence[int]],
        branches: Sequence[Branches | None],
        keeps: tuple[int, ...] = (),
    ) -> torch.Tensor | None:
        """Append the row's tokens to its slot; float32 logits (1, T, V), T at least its tokens. None where that is not
        served: more rows, many tokens, a slot's very end, states to keep. Raises InputError as `LanguageModel.check`
        does.
        """
        count = max(_LEAST, len(tokens[0]))
        if keeps or len(tokens) > 1 or count > _MOST or starts[0] + count > self._cache.max_len:
            return None
        self._language.check(tokens[0])
        self.calls += 1
        padding = [0] * (count - len(tokens[0]))
        ids, at = torch.tensor([*tokens[0], *padding]), torch.tensor([*positions[0], *padding])
        mask = self._mask(starts[0], count)
        if branches[0] is not None:
            hide_branches(mask[: len(tokens[0])], branches[0])
        return self._passed(ids, slots[0], starts[0], at, mask)[None]

    @staticmethod
    def _mask(start: int, count: int) -> torch.Tensor:
        """Of each of `count` tokens what is hidden, if they are a chain."""
        return torch.arange(start + count) > torch.arange(start, start + count)[:, None]

    def _passed(
        self, ids: torch.Tensor, slot: int, start: int, positions: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        language, cache, (count, end) = self._language, self._cache, hidden.shape
        turns = language.turns.index_select(0, positions)
        at = torch.arange(start, end)
        mask = torch.zeros(count, end).masked_fill_(hidden, -torch.inf)
        seen = [held[slot, :end] for held in cache.held]
        return self._run(ids, turns, at, mask.repeat(language.heads // language.kv_heads, 1), seen)

    @torch.inference_mode()
    def _check(self) -> None:
        """Compile, and compare with the blocks as they are run otherwise. Slot 0 is written to, its beginning only."""
        language, cache = self._language, self._cache
        slots, longest = range(min(2, cache.slots)), min(cache.max_len, language.turns.shape[0])
        for slot in slots:
            for count, start in ((5, 92), (_LEAST, 33), (9, 20)):  # odd numbers: an equal size is taken for the same
                if start + count > longest:
                    continue
                ids = torch.arange(count) % language.vocab_size
                at = torch.arange(start, start + count)
                wanted = language.logits(
                    language.forward(
                        language.embed(ids.tolist()),
                        slots=[slot],
                        starts=[start],
                        counts=[count],
                        positions=at.expand(3, -1) if language.position_axes == 3 else at,
                        cache=cache,
                    )
                )
                found = self._passed(ids, slot, start, at, self._mask(start, count))
                worst = float((found - wanted).abs().max() / wanted.abs().max())
                if not worst < _CLOSE:
                    raise ConfigError("compile", True, f"a compiler that gives the same numbers: {worst:.1e} off")


class _Whole(nn.Module):
    """Token ids to logits, weights as parameters, which is what Inductor packs."""

    def __init__(self, language: LanguageModel) -> None:
        super().__init__()
        self.embedding = _kept(language.decoder.embed_tokens.weight)
        self.blocks = nn.ModuleList(_Block(block) for block in language.blocks)
        self.norm, self.epsilon = _kept(language.norm.weight), language.norm.epsilon
        self.head = _Product(language.head)

    def forward(
        self, ids: torch.Tensor, turns: torch.Tensor, at: torch.Tensor, mask: torch.Tensor, seen: list[torch.Tensor]
    ) -> torch.Tensor:
        """ids (T,), turns (T, d / 2, 2), at (T,) where in the slot they go, mask (H / K * T, positions), seen: per
        layer the slot's keys and values (positions, 2, K, d), which are written to. Logits (T, V).
        """
        hidden = F.embedding(ids, self.embedding)
        for block, kept in zip(self.blocks, seen, strict=True):
            hidden = block(hidden, turns, at, mask, kept)
        return self.head(_normed(hidden, self.norm, self.epsilon))


class _Block(nn.Module):
    def __init__(self, block: Block) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = block.heads, block.kv_heads, block.head_dim
        self.query_key_value, self.out = _Product(block.query_key_value), _Product(block.out)
        self.gate_up, self.down = _Product(block.gate_up), _Product(block.down)
        before, after = block.norms
        self.before, self.after, self.epsilon = _kept(before.weight), _kept(after.weight), before.epsilon

    def forward(
        self, x: torch.Tensor, turns: torch.Tensor, at: torch.Tensor, mask: torch.Tensor, seen: torch.Tensor
    ) -> torch.Tensor:
        heads, kv_heads, size, count = self.heads, self.kv_heads, self.size, x.shape[0]
        mixed = self.query_key_value(_normed(x, self.before, self.epsilon))
        turned = (heads + kv_heads) * size
        even, odd = mixed[:, :turned].view(count, heads + kv_heads, size // 2, 2).unbind(-1)
        cosine, sine = turns[:, None].unbind(-1)
        both = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], -1)
        both = both.view(count, heads + kv_heads, size)
        values = mixed[:, turned:].view(count, kv_heads, size)
        seen.index_copy_(0, at, torch.stack([both[:, heads:], values], 1))
        asked = both[:, :heads].view(count, kv_heads, heads // kv_heads, size).permute(1, 2, 0, 3)
        keys, kept = seen.transpose(0, 2).unbind(1)
        asked = asked.reshape(1, kv_heads, heads // kv_heads * count, size)
        found = F.scaled_dot_product_attention(asked, keys[None], kept[None], mask[None, None])
        found = found.view(kv_heads, heads // kv_heads, count, size).permute(2, 0, 1, 3)
        x = x + self.out(found.reshape(count, heads * size))
        gate, up = self.gate_up(_normed(x, self.after, self.epsilon)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class _Product(nn.Module):
    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.weight = _kept(linear.weight)
        self.bias = None if linear.bias is None else _kept(linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


def _normed(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def _kept(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight.clone(), requires_grad=False)
