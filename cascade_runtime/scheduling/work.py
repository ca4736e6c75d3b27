"""What a stage runs next for one request (`Work`), and what came of it: `Settled`, or a tree of drafts (`Grown`)."""

from __future__ import annotations

from dataclasses import dataclass

from cascade_runtime.scheduling import branching


@dataclass(frozen=True)
class Work:
    """What a stage extends next: stand on `prefix`, look along `drafts` (possibly none: the stage just decodes).

    masks: per draft, the stages that stand by it. parents: of drafts that branch, see `branching.py`; None: a chain.
    """

    prefix: tuple[int, ...]
    drafts: tuple[int, ...]
    masks: tuple[int, ...] = ()
    parents: tuple[int, ...] | None = None

    @property
    def depth(self) -> int:
        """Drafts one after the other, at most."""
        return len(self.drafts) if self.parents is None else 1 + max(branching.depths(self.parents), default=-1)


@dataclass(frozen=True)
class Grown:
    """A tree that a stage has drafted beyond its prefix, see `branching.py`."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]


@dataclass(frozen=True)
class Settled:
    """What one pass brought: `accepted` of `drafted` hints, and the tokens now added to the prefix. Of hints that
    branch, `drafted` is how far they reach.
    """

    drafted: int
    accepted: int
    added: tuple[int, ...]
