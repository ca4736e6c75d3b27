"""Preallocated key-value slots, and attention over them: a row is a slot number and a length, and rollback is lowering
the length.

One tensor per layer, (slots, max_len, 2, kv_heads, head_dim): a position's keys and values lie side by side, so that
a pass writes all its tokens with one copy. A forward pass over B rows first calls `place`, which says for every row
in which slot it lives, where its new tokens go and how many there are; every layer's `attend` then writes the new
keys and values and attends over those slots up to the longest row: in place where the slots are neighbours in
ascending order, on a copy otherwise, and on a CPU that is to look only once (`_FEW`). What lies beyond a row's length
is left-over of earlier use: the mask "key position <= query position" hides it, and it is overwritten when the row
grows.

Tokens of a pass lie one after the other, N in all, without padding. Attention alone pads, within groups of rows that
feed similar numbers of tokens. Query heads that share a key head attend as more queries of it, so that keys and
values are never repeated. It knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from cascade_runtime.errors import ConfigError, InputError

_FEW = 16  # with fewer queries a row, on a CPU, attention waits for keys and values more than it computes


@dataclass(frozen=True)
class Branches:
    """A row that feeds nodes of a tree: they see what lies before position `origin` of their slot, and beyond it what
    they descend from. sees: per node of the pass, the last of the row's tokens, bit b for position origin + b, its own
    included.
    """

    origin: int
    sees: Sequence[int]


@dataclass(frozen=True)
class _Group:
    """Consecutive rows that attend together. tokens: theirs among all of the pass. rows: their slots. width: keys that
    they look at. queries: of the longest row. pad: for each of rows * queries the token that stands there; real:
    where each token stands among those; both None where the rows are equally long. mask: what is added to scores, or
    None.
    """

    tokens: slice
    rows: slice | torch.Tensor
    width: int
    queries: int
    pad: torch.Tensor | None
    real: torch.Tensor | None
    mask: torch.Tensor | None

    def on(self, device: torch.device) -> _Group:
        """The same on another device."""
        rows = self.rows if isinstance(self.rows, slice) else self.rows.to(device)
        pad, real, mask = (None if each is None else each.to(device) for each in (self.pad, self.real, self.mask))
        return _Group(self.tokens, rows, self.width, self.queries, pad, real, mask)


class SlotCache:
    """Keys and values of `slots` rows of at most `max_len` positions each, for every layer of one text model with
    `heads` query heads.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        max_len: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | Sequence[torch.device] = "cpu",
    ) -> None:
        for field, value in (("layers", layers), ("slots", slots), ("max_len", max_len)):
            if value < 1:
                raise ConfigError(field, value, "an integer >= 1")
        if heads % kv_heads:
            raise ConfigError("num_attention_heads", heads, f"a multiple of the {kv_heads} heads for keys and values")
        shape = (slots, max_len, 2, kv_heads, head_dim)
        # One position stands unused before them: a compiler takes an offset of 0 for another case than all others.
        size = (1 + slots * max_len, 2, kv_heads, head_dim)
        each = [device] * layers if isinstance(device, torch.device | str) else device
        self.held = [torch.zeros(size, dtype=dtype, device=at)[1:].view(shape) for at in each]
        self._devices = tuple(dict.fromkeys(held.device for held in self.held))
        self.slots = slots
        self.max_len = max_len
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self._queries_end = heads * head_dim
        # What `place` says of the next pass. Positions in `_write_at` are counted over slots and positions. Further
        # devices have both once more.
        self._write_at = torch.zeros(0, dtype=torch.long)
        self._groups: list[_Group] = []
        self._elsewhere: dict[torch.device, tuple[torch.Tensor, list[_Group]]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held by keys and values together."""
        return sum(each.numel() * each.element_size() for each in self.held)

    def check(self, slots: Sequence[int], starts: Sequence[int], counts: Sequence[int]) -> None:
        """Raise InputError where a row would outgrow its slot or two rows share one."""
        if len(set(slots)) != len(slots):
            raise InputError("slots", list(slots), "a different slot for every row")
        for slot, start, count in zip(slots, starts, counts, strict=True):
            if not 0 <= slot < self.slots:
                raise InputError("slot", slot, f"0..{self.slots - 1}")
            if start < 0 or count < 1 or start + count > self.max_len:
                raise InputError("row end", start + count, f"start >= 0, 1 or more tokens, at most {self.max_len}")

    def place(
        self,
        slots: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        groups: Sequence[int] | None = None,
        branches: Sequence[Branches | None] | None = None,
    ) -> None:
        """Say where the next forward pass writes and what it sees.

        slots, starts, counts: per row, its slot, its length before the pass, and its new tokens. groups: how many of
        the rows, in order, attend together; None: all of them. Rows of a group whose slots ascend one by one are
        read in place. branches: per row, None where its tokens are a chain. Raises InputError as `check` does.
        """
        self.check(slots, starts, counts)
        at = [
            slot * self.max_len + position
            for slot, start, count in zip(slots, starts, counts, strict=True)
            for position in range(start, start + count)
        ]
        self._write_at = torch.tensor(at, device=self._devices[0])
        self._groups, row, token = [], 0, 0
        for size in groups or [len(slots)]:
            part = slice(row, row + size)
            trees = (branches or [None] * len(slots))[part]
            self._groups.append(self._group(slots[part], starts[part], counts[part], trees, token))
            row, token = row + size, token + sum(counts[part])
        for other in self._devices[1:]:
            self._elsewhere[other] = (self._write_at.to(other), [group.on(other) for group in self._groups])

    def _group(
        self,
        slots: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        trees: Sequence[Branches | None],
        first: int,
    ) -> _Group:
        device, longest = self.held[0].device, max(counts)
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        run, width = range(slots[0], slots[0] + len(slots)), max(ends)
        rows = slice(run.start, run.stop) if list(slots) == list(run) else torch.tensor(slots, device=device)
        pad = real = mask = None
        if min(counts) < longest:
            before = [0]
            for count in counts:
                before.append(before[-1] + count)
            stands = [before[i] + min(j, count - 1) for i, count in enumerate(counts) for j in range(longest)]
            pad = torch.tensor(stands, device=device)
            real = torch.tensor([i * longest + j for i, n in enumerate(counts) for j in range(n)], device=device)
        if longest > 1 or min(ends) < width or any(trees):
            query_at = torch.tensor([[start + j for j in range(longest)] for start in starts], device=device)
            hidden = torch.arange(width, device=device) > query_at[:, :, None]
            for row, (count, tree) in enumerate(zip(counts, trees, strict=True)):
                if tree is not None:
                    hide_branches(hidden[row, :count], tree)
            mask = torch.zeros_like(hidden, dtype=self.held[0].dtype).masked_fill_(hidden, -torch.inf)
            mask = mask.repeat(1, self.heads // self.kv_heads, 1)[:, None]
        return _Group(slice(first, first + sum(counts)), rows, width, longest, pad, real, mask)

    def attend(self, layer: int, mixed: torch.Tensor) -> torch.Tensor:
        """Write a layer's new keys and values and look. mixed (N, (heads + 2 kv_heads) * head_dim): queries, keys
        and values of the pass's tokens, rotated. Returns what each token attends to, (N, heads * head_dim).
        """
        held, end = self.held[layer], self._queries_end
        write_at, groups = self._elsewhere.get(held.device, (self._write_at, self._groups))
        held.view(-1, mixed.shape[1] - end).index_copy_(0, write_at, mixed[:, end:])
        if len(groups) == 1:
            return self._look(held, groups[0], mixed[:, :end])
        return torch.cat([self._look(held, group, mixed[group.tokens, :end]) for group in groups])

    def _look(self, held: torch.Tensor, group: _Group, queries: torch.Tensor) -> torch.Tensor:
        seen = held[:, : group.width]
        seen = seen[group.rows] if isinstance(group.rows, slice) else seen.index_select(0, group.rows)
        if group.queries < _FEW and isinstance(group.rows, slice) and seen.device.type == "cpu":
            seen = seen.clone()  # read in order; attention reads head by head, a cache line here and one there
        keys, values = seen.transpose(1, 3).unbind(2)  # (B, kv_heads, width, head_dim) each
        if group.pad is not None:
            queries = queries.index_select(0, group.pad)
        rows, shared = seen.shape[0], self.heads // self.kv_heads
        asked = queries.view(rows, group.queries, self.kv_heads, shared, self.head_dim).permute(0, 2, 3, 1, 4)
        asked = asked.reshape(rows, self.kv_heads, shared * group.queries, self.head_dim)
        found = F.scaled_dot_product_attention(asked, keys, values, group.mask)
        found = found.view(rows, self.kv_heads, shared, group.queries, self.head_dim).permute(0, 3, 1, 2, 4)
        found = found.reshape(rows * group.queries, self._queries_end)
        return found if group.real is None else found.index_select(0, group.real)

    def move(self, slot: int, positions: Sequence[int], target: int) -> None:
        """Give positions target, target + 1, .. of a slot what lies at these others of it."""
        at = torch.tensor(positions, device=self.held[0].device)
        for each in self.held:
            each[slot, target : target + len(positions)] = each[slot].index_select(0, at.to(each.device))

    def copy(self, source: int, target: int, length: int) -> None:
        """Give one slot the first `length` positions of another."""
        for each in self.held:
            each[target, :length] = each[source, :length]

    def scrub(self, slot: int) -> None:
        """Zero one slot.

        Needed only after non-finite numbers were written: a masked NaN value still spoils a weighted sum.
        """
        for each in self.held:
            each[slot].zero_()


def hide_branches(hidden: torch.Tensor, tree: Branches) -> None:
    """Hide from a row's nodes what they do not descend from. hidden (queries, positions): what a chain does not see."""
    nodes = len(tree.sees)
    if not nodes:
        return
    width = hidden.shape[1] - tree.origin
    seen = [[sees >> bit & 1 for bit in range(width)] for sees in tree.sees]
    hidden[-nodes:, tree.origin :] |= ~torch.tensor(seen, dtype=torch.bool, device=hidden.device)
