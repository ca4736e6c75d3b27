"""`Plan`: what one row feeds in a pass. `plan` rolls the row back to where its cache agrees with what is wanted.

A cache holds the prompt, then answer tokens. Where the last pass looked along a tree, it holds the tree's nodes in
their order; of those, the path that became the answer is moved together, and the rest is forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cascade_runtime.decoding.row import Extension, Row
from cascade_runtime.errors import InputError
from cascade_runtime.models.slot_cache import Branches


@dataclass(frozen=True)
class Plan:
    """Positions start to stop of a row's slot. wanted: the answer tokens that the slot holds after the pass. above: as
    in `Row`. prefix: how many of them are not drafts. choices: how many are asked for, the last.
    """

    row: Row
    start: int
    stop: int
    wanted: list[int]
    choices: int
    prefix: int = 0
    above: list[int] | None = None

    @property
    def count(self) -> int:
        """Positions this row feeds."""
        return self.stop - self.start

    @property
    def prompt_count(self) -> int:
        """How many of them are of the prompt."""
        return max(min(len(self.row.prompt), self.stop) - self.start, 0)

    @property
    def first_token(self) -> int:
        """The first answer token among them."""
        return max(self.start - len(self.row.prompt), 0)

    @property
    def positions(self) -> Sequence[int]:
        """Of each answer token that is fed, its position in the model: a node's is that of its depth."""
        first = self.row.prompt.next_position
        if self.above is None:
            return range(first + self.first_token, first + len(self.wanted))
        return [first + depth for depth in self._depths()[self.first_token :]]

    @property
    def chosen_at(self) -> Sequence[int]:
        """Of each choice that is asked for, its position in the answer."""
        first = len(self.wanted) - self.choices
        if self.above is None:
            return range(first + 1, len(self.wanted) + 1)
        return [0] * (first < 0) + [depth + 1 for depth in self._depths()[max(first, 0) :]]

    @property
    def branches(self) -> Branches | None:
        """What the fed nodes of a tree see of it."""
        if self.above is None:
            return None
        sees: list[int] = []
        for node, parent in enumerate(self.above[self.prefix :]):
            sees.append(1 << node | (sees[parent - self.prefix] if parent >= self.prefix else 0))
        return Branches(len(self.row.prompt) + self.prefix, sees[max(0, self.first_token - self.prefix) :])

    def _depths(self) -> list[int]:
        assert self.above is not None
        depths: list[int] = []
        for parent in self.above:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return depths


def plan(extension: Extension, cache: Any) -> Plan:
    """Roll the row back; list what must be fed (at least one position). Raises `InputError` for a released row and for
    parents that are no tree.
    """
    row, prompt, prefix = extension.row, len(extension.row.prompt), extension.prefix
    if row.released:
        raise InputError("row", row.slot, "a row that was not released")
    wanted = [*prefix, *extension.drafts]
    asked = len(extension.drafts) + 1 if extension.asked is None else extension.asked
    above = None if extension.parents is None else _above(len(prefix), len(extension.drafts), extension.parents)
    if not 1 <= asked <= len(extension.drafts) + 1:
        raise InputError("asked", asked, f"1..{len(extension.drafts) + 1}")
    agree = _agreeing(row, wanted, above)
    if row.above is not None and agree < len(prefix):
        path = _path(row, agree, prefix)
        if path:
            cache.move(row.slot, [prompt + node for node in path], prompt + agree)
            agree += len(path)
    row.held = min(row.held, prompt + agree, prompt + len(wanted) - asked)
    kept = max(row.held - prompt, 0)
    row.tokens, row.above = wanted[:kept], None if above is None else above[:kept]
    if extension.prompt is not None and prompt - row.held > extension.prompt:
        return Plan(row, row.held, row.held + extension.prompt, [], choices=0)
    return Plan(row, row.held, prompt + len(wanted), wanted, asked, len(prefix), above)


def _above(prefix: int, drafts: int, parents: Sequence[int]) -> list[int] | None:
    if len(parents) != drafts or any(not -1 <= parent < i for i, parent in enumerate(parents)):
        raise InputError("parents", list(parents), f"per draft ({drafts}) an earlier one, or -1")
    return [*range(-1, prefix - 1), *(prefix + parent for parent in parents)]


def _agreeing(row: Row, wanted: list[int], above: list[int] | None) -> int:
    """How many of the first tokens in the cache are those that are wanted, where they are wanted."""
    agree = 0
    for mine, theirs in zip(row.tokens, wanted, strict=False):
        if mine != theirs:
            break
        agree += 1
    if row.above is None and above is None:
        return agree
    for at in range(agree):
        if (at - 1 if row.above is None else row.above[at]) != (at - 1 if above is None else above[at]):
            return at
    return agree


def _path(row: Row, agree: int, prefix: Sequence[int]) -> list[int]:
    """The nodes of a row's tree that say prefix[agree:], as far as there are any."""
    assert row.above is not None
    path, node = list[int](), agree - 1
    for token in prefix[agree:]:
        found = (i for i in range(max(agree, node + 1), len(row.tokens)) if row.above[i] == node)
        child = next((i for i in found if row.tokens[i] == token), None)
        if child is None:
            break
        path.append(child)
        node = child
    return path
