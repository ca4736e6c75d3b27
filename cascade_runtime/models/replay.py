"""`Replays`: passes without a prompt on a GPU, each shape captured once as a CUDA graph and replayed.

A pass of a few tokens is some hundred small launches, and a CPU takes longer to make them than a GPU to read the
weights. A graph is one launch. Its shape is fixed, so rows are padded to a power of two and tokens to the longest
row's: a pass of few tokens costs what its weights cost, padding next to nothing. What a row is (its slot, its length,
how many of its tokens are real) lies in device memory and is filled in before each replay.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from cascade_runtime.models.kernels import (
    MAX_TOKENS,
    Attention,
    Places,
    added,
    product,
    query_key_value,
    sums,
)
from cascade_runtime.models.language import LanguageModel
from cascade_runtime.models.slot_cache import Branches, SlotCache

_TOKENS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128)  # of a row
_LARGE, _MOST = 4e9, 64  # bytes of weights; beyond so many tokens arithmetic costs more than launches (gpu_h200.txt)
_CAPTURING = threading.Lock()  # a capture begins by waiting for the whole device, which ends another that is under way
_NODES = 63  # of a tree: what one token sees of it is an integer of the device


class Replays:
    """All captured shapes of one model over one cache; they share the memory that they work in."""

    def __init__(self, language: LanguageModel, cache: SlotCache, *, captures: bool = True) -> None:
        self._language, self._cache, self._captures = language, cache, captures
        self._passes: dict[tuple[tuple[int, int], tuple[int, ...]], FixedPass] = {}
        self.states: torch.Tensor | None = None  # of the last call, see `logits`
        self.captured = 0  # shapes so far: a pass that captured one took longer than it will again
        self._most = _MOST if language.weight_bytes > _LARGE else MAX_TOKENS

    def shape(self, counts: Sequence[int]) -> tuple[int, int] | None:
        """Rows and tokens of the pass that serves rows with so many tokens each; None: too many to be worth it."""
        rows = 1 << (len(counts) - 1).bit_length()
        return next(((rows, tokens) for tokens in _TOKENS if max(counts) <= tokens <= self._most // rows), None)

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
        """Append each row's tokens to its slot; float32 logits (rows, T, V), valid until the next call, T at least the
        longest row. None where the shape is not served.

        positions: of each token. branches: as for `SlotCache.place`; trees of more than 63 nodes are not served.
        keeps: blocks as in `Decoder.keeps`, whose outputs (rows, T, blocks * D) are `states` until the next call.
        Raises InputError as `SlotCache.place` does.
        """
        counts = [len(row) for row in tokens]
        shape = self.shape(counts)
        nodes = [sees.bit_length() for tree in branches if tree is not None for sees in tree.sees]
        if shape is None or max(nodes, default=0) > _NODES:
            return None
        self._cache.check(slots, starts, counts)
        self._language.check([token for row in tokens for token in row])
        one = self._passes.get((shape, keeps))
        if one is None:
            one = self._passes[shape, keeps] = FixedPass(self._language, self._cache, *shape, keeps)
        one.fill(tokens, slots, starts, positions, branches)
        if self._captures and one.graph is None:
            one.capture(next((each.graph.pool() for each in self._passes.values() if each.graph is not None), None))
            self.captured += 1
        logits, self.states = one.run()
        return logits[: len(tokens)]


class FixedPass:
    """One pass of B rows and T tokens each, its inputs in buffers of its own."""

    def __init__(
        self, language: LanguageModel, cache: SlotCache, rows: int, tokens: int, keeps: tuple[int, ...]
    ) -> None:
        self._language, self._cache, self._rows, self._tokens, self._keeps = language, cache, rows, tokens, keeps
        count, device = rows * tokens, language.device
        self._host = torch.zeros(3 * count + 4 * rows, dtype=torch.long, pin_memory=device.type == "cuda")
        self._device = self._host.to(device)
        self._ids, positions, sees, *places = self._device.split([count, count, count, rows, rows, rows, rows])
        slots, starts, counts, origins = places
        self._places = Places(slots, starts, counts, positions, origins, sees)
        self._attention = Attention(cache, rows, tokens)
        self.graph: torch.cuda.CUDAGraph | None = None

    def fill(
        self,
        tokens: Sequence[Sequence[int]],
        slots: Sequence[int],
        starts: Sequence[int],
        positions: Sequence[Sequence[int]],
        branches: Sequence[Branches | None],
    ) -> None:
        """Write a pass's inputs to its buffers. Padding: tokens 0 at position 0, rows of no tokens."""
        ids, at, sees, origins = list[int](), list[int](), list[int](), list[int]()
        for row, places, tree in zip(tokens, positions, branches, strict=True):
            rest = [0] * (self._tokens - len(row))
            ids += [*row, *rest]
            at += [*places, *rest]
            origins.append(self._cache.max_len if tree is None else tree.origin)
            nodes = [] if tree is None else tree.sees
            sees += [*[0] * (len(row) - len(nodes)), *nodes, *rest]
        rows = [0] * (self._rows - len(tokens))
        padding, counts = rows * self._tokens, [len(row) for row in tokens]
        each = [ids, padding, at, padding, sees, padding, slots, rows, starts, rows, counts, rows, origins, rows]
        self._host.copy_(torch.tensor([number for numbers in each for number in numbers]))
        self._device.copy_(self._host, non_blocking=True)

    def run(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits (B, T, V) for what the buffers hold, and the states that are kept."""
        if self.graph is None:
            return self.compute()
        self.graph.replay()
        return self._out

    def capture(self, pool: Any) -> None:
        """Record `compute`. It is run once before, which compiles its kernels and writes what a run writes."""
        graph = torch.cuda.CUDAGraph()
        with _CAPTURING:
            self.compute()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._out = self.compute()
        self.graph = graph

    def compute(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The model's arithmetic, as `LanguageModel.forward` and `logits` have it."""
        language, cache, places = self._language, self._cache, self._places
        hidden, parts = F.embedding(self._ids, language.decoder.embed_tokens.weight), None
        kept: dict[int, torch.Tensor] = {}
        for block in language.blocks:
            before, after = block.norms
            hidden, normed = added(hidden, parts, before)
            kept[block.index - 1] = hidden
            queries = query_key_value(normed, block.query_key_value, language.turns, places, cache, block.index)
            found = self._attention(queries, places, cache, block.index)
            hidden, normed = added(hidden, sums(found, block.out), after)
            parts = sums(product(normed, block.gate_up, gated=True), block.down)
        hidden, normed = added(hidden, parts, language.norm)
        kept |= {language.num_layers - 1: hidden, language.num_layers: normed}
        logits = product(normed, language.head, dtype=torch.float32).unflatten(0, (self._rows, self._tokens))
        if not self._keeps:
            return logits, None
        states = torch.cat([kept[index] for index in self._keeps], -1)
        return logits, states.unflatten(0, (self._rows, self._tokens))
