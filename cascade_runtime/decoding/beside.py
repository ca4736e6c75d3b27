"""`Heads`: drafting heads beside a target that is the only level of its cascade, as a recipe asks for them."""

from __future__ import annotations

from collections.abc import Sequence

from cascade_runtime.config import StageConfig, TreeConfig
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.head_states import Ask
from cascade_runtime.decoding.heads import load_drafter
from cascade_runtime.decoding.row import Row
from cascade_runtime.decoding.trees.tree import Tree
from cascade_runtime.models.head_folder import bundled_head, head_kind

_CHAIN = 5  # nodes, one after the other, where the recipe has no [tree]


class Heads:
    """`stages.<target>.heads`. Raises `ConfigError` for a folder that holds none, or those of another target."""

    def __init__(self, stage: StageConfig, tree: TreeConfig | None, decoder: Decoder) -> None:
        member = stage.heads.removeprefix("family:")
        folder = bundled_head(member) if member != stage.heads else stage.heads
        self.kind = head_kind(folder)
        self._nodes, self._depth = (_CHAIN, _CHAIN) if tree is None else (tree.nodes, tree.depth)
        self._drafter = load_drafter(folder, decoder, width=1 if tree is None else tree.width)

    def grow(self, rows: Sequence[Row], most: Sequence[int]) -> list[Tree]:
        """One tree per row of the target, none deeper than most[i]; empty before its first pass."""
        asks = [Ask(row, self._nodes, min(self._depth, max(0, deep))) for row, deep in zip(rows, most, strict=True)]
        return self._drafter.propose(asks)

    def observe(self, row: Row, answer: Sequence[int]) -> None:
        """The row's pass is over, and the answer stands so."""
        self._drafter.observe(row, answer)

    def forget(self, row: Row) -> None:
        """The row has ended."""
        self._drafter.forget(row)
