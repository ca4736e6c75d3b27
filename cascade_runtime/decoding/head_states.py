"""What drafters beside a target share: what they are asked, and what a row's last pass says along its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.choice import gumbel_noise, process_logits
from cascade_runtime.decoding.row import Row
from cascade_runtime.decoding.trees.tree import Tree
from cascade_runtime.errors import InputError


class Held(Protocol):
    """What a drafter keeps of a row."""

    @property
    def row(self) -> Row:
        """Whose it is."""
        ...


Kept = TypeVar("Kept", bound=Held)


@dataclass(frozen=True)
class Ask:
    """A row that wants drafts: at most `budget` nodes, at most `depth` of them one after the other."""

    row: Row
    budget: int
    depth: int

    def __post_init__(self) -> None:
        for name, value in (("budget", self.budget), ("depth", self.depth)):
            if value < 0:
                raise InputError(name, value, "0 or more")


class Drafter(Protocol):
    """What a target's loop may ask of a head."""

    def observe(self, row: Row, answer: Sequence[int]) -> None:
        """Take over the states of the row's last pass. Raises `InputError` where a pass was left out."""
        ...

    def propose(self, asks: Sequence[Ask]) -> list[Tree]:
        """A tree for each, in their order."""
        ...

    def forget(self, row: Row) -> None:
        """The row has ended."""
        ...


def held_of(held: dict[int, Kept], row: Row) -> Kept | None:
    """What is held of a row; a slot may have gone to another."""
    one = held.get(row.slot)
    return one if one is not None and one.row is row else None


def agreeing(mine: Sequence[int], theirs: Sequence[int]) -> int:
    agree = 0
    while agree < min(len(mine), len(theirs)) and mine[agree] == theirs[agree]:
        agree += 1
    return agree


def confirmed(row: Row, answer: Sequence[int]) -> tuple[int, torch.Tensor]:
    """Of the row's last pass, the states along prompt and answer: the position of the first, and (n, blocks * D)."""
    if row.states is None:
        raise InputError("row.states", None, "states of a pass: set Decoder.keeps to what the drafter keeps")
    path, start, prompt = _path(row, answer), row.states.start, len(row.prompt)
    places = [*range(start, min(row.held, prompt)), *(prompt + node for node in path if prompt + node >= start)]
    first = start if start < prompt else prompt + sum(prompt + node < start for node in path)
    at = torch.tensor([place - start for place in places], dtype=torch.long, device=row.states.values.device)
    return first, row.states.values.index_select(0, at)


def _path(row: Row, answer: Sequence[int]) -> list[int]:
    """The nodes in the row's slot that say the answer, as far as there are any: of a chain the first so many."""
    if row.above is None:
        return list(range(agreeing(row.tokens, answer)))
    path, node = list[int](), -1
    for token in answer:
        above, tokens = row.above, row.tokens
        child = next((i for i in range(node + 1, len(tokens)) if above[i] == node and tokens[i] == token), None)
        if child is None:
            break
        path.append(child)
        node = child
    return path


def log_probs(logits: torch.Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> torch.Tensor:
    """Logarithms of the probabilities (N, V) that candidates are ranked by, row i as position `positions[i]` of an
    answer sampled with `params[i]`. Where a row's numbers are not finite none of it is.
    """
    scores = logits.float().clone()
    for row, (wants, at) in enumerate(zip(params, positions, strict=True)):
        if wants.temperature > 0:
            noisy = process_logits(scores[row : row + 1], wants)
            scores[row] = (noisy + gumbel_noise([wants.seed], [at], noisy.shape[-1], noisy.device))[0].float()
    return scores.log_softmax(-1)
